"""Set-ups that must give the same update, and what they are compared on. Run as a script it serves several processes:

torchrun --nproc-per-node 2 tests/exactness_cases.py OUTPUT.pt [fsdp2]
"""

import random
import sys
import tempfile
from typing import Any

import torch
from trl_runs import ours, stock, weights

G = 4
STEP_ROWS = 16  # completions of one optimizer step
TOKEN_METRICS = ("cov/", "weight/", "update/", "hold/", "entropy")
STOCK = "stock TRL"  # in place of a scheme: TRL's own trainer

SCHEMES: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "gaussian_through": {"weighting_kwargs": {"padded_mean": True}},
    "clip_cov": {"weighting_kwargs": {"ratio": 0.1, "low": 0.1, "high": 50.0}, "epsilon": 1e6},
    # Its penalty acts only on a policy that has moved: two updates a rollout batch.
    "kl_cov": {"weighting_kwargs": {"ratio": 0.1, "coef": 0.5}, "epsilon": 1e6, "num_iterations": 2},
}


def rollouts_by_prompt(trainer: Any):
    """Completions that depend on the prompt and the row's number in its group, on whichever process and call."""

    def generate(prompt_ids: list[list[int]], images: Any, fields: Any, num_generations: int, *args: Any, **kw: Any):
        first = trainer.accelerator.process_index * len(prompt_ids)
        completions = []
        for row, prompt in enumerate(prompt_ids):
            rng = random.Random(f"{prompt}-{(first + row) % num_generations}")
            size = rng.randint(1, 10)
            if trainer.mask_truncated_completions and prompt[-5] % 2:
                size = 10  # every completion of this prompt is truncated: a process may have nothing but masked rows
            ids = [rng.randint(3, 80) for _ in range(size)]
            completions.append(ids if len(ids) == 10 else [*ids[:-1], 2])
        return completions, None

    return generate


def sparse_reward(prompts: list, completions: list, **_: Any) -> list[float]:
    """Only prompts that end in 3 earn anything: in most steps a process has no advantage at all."""
    return [
        float(prompt[-1]["content"].endswith("3?")) * sum(ch.isdigit() for ch in completion[0]["content"])
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def run(folder: Any, scheme: str, scope: str, processes: int = 1, **options: Any) -> dict[str, Any]:
    """Train three optimizer steps of ``rows`` rows; return losses, first gradient and final weights."""
    local = options.pop("rows", STEP_ROWS) // processes
    size = options.pop("size", local)
    if options.pop("sparse", False):
        options["reward_funcs"] = sparse_reward
    settings = {
        "weighting": scheme,
        "weighting_scope": scope,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": local // size,
        "num_generations": G,
        "max_steps": 3,
        "loss_type": "grpo",
        "weight_decay": 0.01,
        **SCHEMES.get(scheme, {}),
        **options,
    }
    if scheme == STOCK:
        settings = {name: value for name, value in settings.items() if not name.startswith("weighting")}
    trainer = (stock if scheme == STOCK else ours)(folder, **settings)
    trainer._generate_single_turn = rollouts_by_prompt(trainer)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {
        "gradients": trainer.gradients,
        "weights": weights(trainer),
        "losses": torch.tensor(losses),
        "metrics": [
            {name: value for name, value in log.items() if name.startswith(TOKEN_METRICS)}
            for log in trainer.state.log_history
            if "loss" in log
        ],
        # Reason not to share, by model; empty where the fast path was never asked for.
        "first_use": dict(trainer.scorer.first_use if hasattr(trainer, "scorer") else {}),
    }


# What two processes run, each compared with one process in tests/test_exactness.py.
DISTRIBUTED = [
    *((scheme, scope, {"size": size}) for scheme in SCHEMES for scope in ("group", "batch") for size in (2, 8)),
    ("gaussian", "group", {"size": 1}),
    *(("neutral", scope, {"size": 2}) for scope in ("group", "batch")),
    ("hold_entropy", "batch", {"size": 4, "max_steps": 13}),  # three steps with a kappa of its own
    *(("gaussian", scope, {"size": size, "sparse": True}) for scope in ("group", "batch") for size in (2, 8)),
    *(("gaussian", scope, {"size": 2, "mask_truncated_completions": True}) for scope in ("group", "batch")),
    ("gaussian", "group", {"size": 4, "loss_type": "dapo"}),
    # Six rows a process: the second of three groups lies on both, as with 144 completions in groups of 12 on 8 devices.
    *(("gaussian", "group", {"size": size, "rows": 12}) for size in (3, 6)),
    ("clip_cov", "batch", {"size": 3, "rows": 12}),
    ("clip_cov", "batch", {"size": 4, "steps_per_generation": 1}),
    *(("none", "group", {"size": size, "sparse": sparse}) for size in (1, 2, 8) for sparse in (False, True)),
]

# Sharded weights change how gradients are summed, not which tokens a process has: a case of each kind is enough.
SHARDED = [
    *(case for case in DISTRIBUTED if case[1] == "group" and case[2] == {"size": 2}),
    *(case for case in DISTRIBUTED if "max_steps" in case[2] or "mask_truncated_completions" in case[2]),
    *(("gaussian", scope, {"size": 2, "sparse": True}) for scope in ("group", "batch")),
    ("clip_cov", "batch", {"size": 3, "rows": 12}),
    *(("none", "group", {"size": 8, "sparse": sparse}) for sparse in (False, True)),
]
CASES = {"ddp": DISTRIBUTED, "fsdp2": SHARDED}


def main(output: str, engine: str = "ddp") -> None:
    """Run the distributed cases on every process; the first writes the results."""
    from accelerate import PartialState

    if engine == "fsdp2":
        import fsdp2_on_cpu

        fsdp2_on_cpu.enable()

    state = PartialState(cpu=True)
    results = []
    for scheme, scope, options in CASES[engine]:
        with tempfile.TemporaryDirectory() as folder:
            results.append(run(folder, scheme, scope, processes=state.num_processes, **options))
    if state.is_main_process:
        torch.save(results, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
