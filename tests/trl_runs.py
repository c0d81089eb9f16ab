"""Trainers on a tiny model with rollouts that a test can fix."""

import random
from pathlib import Path
from typing import Any

import reference
import reference_through
import torch
from datasets import Dataset
from tiny import tiny_model, tiny_tokenizer
from transformers import LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from covgrpo.trl import CovGRPOConfig, CovGRPOTrainer

EOS = 2


def dataset(prompts: int = 16) -> Dataset:
    """Prompts of different lengths."""
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"q{'x' * (i % 5)}{i}?"}]} for i in range(prompts)]
    )


def digit_reward(completions: list, **_: Any) -> list[float]:
    return [sum(ch.isdigit() for ch in c[0]["content"]) / 8 for c in completions]


def scripted_rollouts(seed: int, length: int = 10, constant_prompts: tuple[int, ...] = ()):
    """A stand-in for sampling: ragged completions that depend on nothing but the call's number and the row.

    Prompts whose position among the call's groups is in ``constant_prompts`` get the same completion in every row,
    hence equal rewards and zero advantage.
    """
    calls = iter(range(10**6))

    def generate(prompt_ids: list[list[int]], images: Any, fields: Any, num_generations: int, *args: Any, **kw: Any):
        rng = random.Random(f"{seed}-{next(calls)}")
        completions = []
        for row in range(len(prompt_ids)):
            size = rng.randint(1, length)
            ids = [rng.randint(3, 80) for _ in range(size)]
            if size < length:
                ids[-1] = EOS
            if row // num_generations in constant_prompts and row % num_generations:
                ids = list(completions[row - row % num_generations])
            completions.append(ids)
        return completions, None

    return generate


BASE = {
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "max_completion_length": 10,
    "learning_rate": 1e-3,
    "max_steps": 5,
    "logging_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 3,
}


def build(trainer: type, config: type, folder: Any, rollouts: Any = None, model: Any = None, **options: Any):
    """A trainer of ``trainer`` on the tiny model; ``rollouts`` replaces sampling."""
    extra = {name: options.pop(name) for name in ("peft_config", "eval_dataset") if name in options}
    data = options.pop("train_dataset", None) or dataset()
    if options.get("beta") and model is None:
        # TRL loads the reference model from where the policy came from.
        tiny_model().save_pretrained(f"{folder}-base")
        model = LlamaForCausalLM.from_pretrained(f"{folder}-base", dtype=torch.float32)
    made = trainer(
        model=model or tiny_model(),
        reward_funcs=options.pop("reward_funcs", digit_reward),
        args=config(output_dir=str(folder), **{**BASE, **options}),
        train_dataset=data,
        processing_class=tiny_tokenizer(),
        **extra,
    )
    if rollouts is not None:
        made._generate_single_turn = rollouts
    record_gradients(made)
    return made


def record_gradients(trainer: GRPOTrainer) -> None:
    """Keep each optimizer step's gradient (before clipping) in ``trainer.gradients``, one flat vector a step."""
    trainer.gradients = []
    clip = trainer.accelerator.clip_grad_norm_

    def recording(parameters: Any, *args: Any, **kwargs: Any):
        trainer.gradients.append(flat(p.grad for p in trainer.model.parameters() if p.requires_grad))
        return clip(parameters, *args, **kwargs)

    trainer.accelerator.clip_grad_norm_ = recording


def flat(tensors: Any) -> torch.Tensor:
    whole = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in tensors]  # FSDP2 shards
    return torch.cat([t.detach().flatten().double() for t in whole])


def weights(trainer: GRPOTrainer) -> torch.Tensor:
    return flat(trainer.model.parameters())


def logs(trainer: GRPOTrainer, *names: str) -> list[tuple]:
    """The named metrics of each step; 0 where TRL logs none (steps that reuse a rollout batch)."""
    return [tuple(log.get(name, 0.0) for name in names) for log in trainer.state.log_history if "loss" in log]


def stock(folder: Any, **options: Any) -> GRPOTrainer:
    return build(GRPOTrainer, GRPOConfig, folder, **options)


def ours(folder: Any, **options: Any) -> CovGRPOTrainer:
    return build(CovGRPOTrainer, CovGRPOConfig, folder, **options)


class ReferenceWeighted(GRPOTrainer):
    """Stock TRL fed with advantages that the float64 reference weighted: the meaning of weighting='gaussian'.

    ``weigh`` takes another's place (nested lists: log-probs, advantages, mask, groups); with ``scope`` batch all rows
    of a rollout batch, which is then one optimizer step's, are one group. ``centred`` adds entropies to log-probs.
    """

    weigh = staticmethod(reference.gaussian_weights)
    scope = "group"
    centred = False

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        with torch.no_grad():
            logps, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, mask, batch["completion_ids"].size(1), compute_entropy=True
            )
        logps = batch.get("old_per_token_logps", logps)
        if self.centred:
            logps = logps + entropies
        valid = batch["completion_mask"] * batch.get("tool_mask", torch.ones_like(batch["completion_mask"]))
        groups = [row // self.num_generations if self.scope == "group" else 0 for row in range(len(logps))]
        weight = self.weigh(logps.double().tolist(), batch["advantages"].double().tolist(), valid.tolist(), groups)
        self.applied = torch.tensor(weight)[valid.bool().cpu()]  # (N,)
        batch["advantages"] = batch["advantages"][:, None] * torch.tensor(weight, device=logps.device)
        return batch


class LiveWeights(GRPOTrainer):
    """Stock TRL with the loss of the paper's first author: weights inside the loss, differentiated with it.

    One micro-batch a step, so that it holds whole groups; loss type grpo or dapo, no clipping.
    """

    padded_mean = False

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        batch["group"] = torch.arange(len(batch["advantages"])) // self.num_generations
        return batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        mask, A = inputs["completion_mask"].bool(), inputs["advantages"]
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        logps, _, _ = self._get_per_token_logps_and_entropies(model, ids, attention_mask, mask.shape[1])
        weights = torch.zeros(mask.shape, dtype=torch.float64)
        for group in inputs["group"].unique():
            row, column = (mask & (inputs["group"] == group)[:, None]).nonzero(as_tuple=True)
            live = logps[row, column].double()
            own = reference_through.live_weights(live, A[row].double().tolist(), row.tolist(), self.padded_mean)
            weights = weights.index_put((row, column), own)
        gain = weights.float() * A[:, None] * torch.exp(logps - logps.detach())
        if self.beta:
            log_ratio = inputs["ref_per_token_logps"] - logps
            gain = gain - self.beta * (torch.exp(log_ratio) - log_ratio - 1)
        if self.loss_type == "dapo":
            return -(gain * mask).sum() / mask.sum()
        return -((gain * mask).sum(dim=1) / mask.sum(dim=1)).mean()


def live_weights(folder: Any, **options: Any) -> GRPOTrainer:
    return build(LiveWeights, GRPOConfig, folder, **options)


def reference_weighted(folder: Any, **options: Any) -> GRPOTrainer:
    return build(ReferenceWeighted, GRPOConfig, folder, **options)


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of the expected, a fraction; the norm itself where 0 is expected."""
    size = expected.norm()
    return ((actual - expected).norm() / (size if size > 0 else 1.0)).item()


def beside_stock(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Our trainer without weights and stock TRL's, both trained on the same rollouts, some of zero advantage."""
    rollouts = {"constant_prompts": (0, 2)}
    theirs = stock(folder / "a", rollouts=scripted_rollouts(7, **rollouts), **options)
    theirs.train()
    mine = ours(folder / "b", rollouts=scripted_rollouts(7, **rollouts), weighting="none", **options)
    mine.train()
    assert set(mine.scorer.first_use.values()) == {None}, "the shared path was not used"
    return mine, theirs
