"""Record what the core, the metrics, the trainer and the engines compute, to see whether a rewrite changes a number.

    PYTHONPATH=src python scripts/identity_record.py write before.safetensors     # 1.5 minutes of one core
    PYTHONPATH=src python scripts/identity_record.py write after.safetensors      # at the commit after the change
    PYTHONPATH=src python scripts/identity_record.py compare before.safetensors after.safetensors

Numbers depend on the CPU and on the versions of the libraries, so no record is kept in the repository: write one at the
commit before a change and one after it, on one machine. Only public interfaces are used, so that the script runs
unchanged on both commits. Training runs are those of tests/trl_runs.py on the tiny model; times are left out.

``compare`` prints a line a section: entries, how many are equal to the last bit, and the largest difference, absolute
and relative to the largest value of its tensor. What terms of both signs have cancelled to (loss, covariances) is
related to the size of the terms, 1, not to itself. Exit code 1 where an entry is missing on either side or a limit is
passed:

    stock            weighting none without the fast path: bit for bit (our metrics of it are in ``stock tokens``)
    core, metrics    1e-12 for float64, one rounding (2^-23) for float32
    others           1e-6; integers and sentences of errors must be equal

``--limit SECTION=VALUE`` sets another. Updates are SGD's outside of ``stock``: Adam would enlarge a last bit to a step.
"""

import argparse
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from identity_tensors import Record, core, engines, metrics
from safetensors.torch import load_file, save_file
from torch import Tensor

import covgrpo

BIT_FOR_BIT = ("stock",)
ROUNDING = {torch.float64: 1e-12, torch.float32: 2.0**-23}
BY_DTYPE = ("core", "metrics")
ELSEWHERE = 1e-6

TRAINED: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "neutral": {},
    "gaussian_through": {},
    "hold_entropy": {},
    "clip_cov": {"weighting_kwargs": {"ratio": 0.1, "low": 0.1, "high": 50.0}, "epsilon": 1e6},
    "kl_cov": {"weighting_kwargs": {"ratio": 0.1, "coef": 0.5}, "epsilon": 1e6},
}
FOUR_MICRO_BATCHES = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
# A scheme's four settings of scope and fast path share these, two each, another two than the scheme before; ``none``
# takes all. The third scheme, gaussian_through, gets the long rollout batch with scope group, which it needs.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two iterations": {"num_iterations": 2, "loss_type": "dr_grpo"},
    "four micro-batches": FOUR_MICRO_BATCHES,
    "KL": {"loss_type": "grpo", "beta": 0.04},
    "two steps a batch, bonus": {**FOUR_MICRO_BATCHES, "steps_per_generation": 8, "entropy_coef": 0.01},
    "four iterations, cooler": {"num_iterations": 4, "temperature": 0.7, "max_steps": 5},
    "four batches a step": {**FOUR_MICRO_BATCHES, "steps_per_generation": 1},
    "grpo loss, two iterations": {"loss_type": "grpo", "num_iterations": 2},
}
SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.05}


def training() -> Record:
    """Short runs: scheme x scope x fast path x variants, each with losses, metrics, gradients, weights and tokens."""
    from transformers.utils import logging

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        found: Record = {}
        for number, (section, case, options) in enumerate(planned_runs()):
            found |= run(Path(folder, str(number)), section, case, options)
        return found | resumed(Path(folder))


def planned_runs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield section, name and trainer options of each run."""
    for name, variant in VARIANTS.items():
        yield "stock", name, {"weighting": "none", "fast_path": False, **variant}
        yield "none", name, {"weighting": "none", **SGD, **variant}
    variants = list(VARIANTS.items())
    for turn, (scheme, options) in enumerate(TRAINED.items()):
        for setting in range(4):
            scope, fast = ("group", "batch")[setting % 2], setting < 2
            for name, variant in variants[(setting + turn) % 4 :: 4]:
                label = f"{scope}, {'fast' if fast else 'plain'} path, {name}"
                choice = {"weighting": scheme, "weighting_scope": scope, "fast_path": fast}
                yield scheme, label, {**SGD, **choice, **options, **variant}
    extra = {"weighting": "gaussian", **SGD}
    yield "gaussian", "checkpointing", {**extra, "gradient_checkpointing": True}
    yield "gaussian", "truncated masked", {**extra, "mask_truncated_completions": True, "constant": (1,)}
    yield "gaussian", "groups of equal rewards", {**extra, **FOUR_MICRO_BATCHES, "constant": (1, 2)}
    yield "gaussian", "entropy probe", {**extra, "entropy_probe_steps": 1}
    yield "gaussian", "rewards not scaled", {**extra, "scale_rewards": "none"}
    held = {"weighting": "hold_entropy", "weighting_scope": "batch", "max_steps": 14, **SGD}
    yield "hold_entropy", "past the first steps", held
    yield "hold_entropy", "past the first steps, by group", {**held, "weighting_scope": "group", "num_iterations": 2}


def run(
    folder: Path, section: str, case: str, options: dict[str, Any], checkpoint: str | None = None, stop: int = 0
) -> Record:
    """Train as ``options`` say and return the run's record; ``stop``: end after so many steps, with a checkpoint."""
    from transformers import PrinterCallback
    from trl_runs import ours, scripted_rollouts

    settings = {"max_steps": 3, **options}
    constant = settings.pop("constant", None)
    rollouts = scripted_rollouts(5, constant_prompts=constant) if constant else None
    trainer = ours(folder, rollouts=rollouts, **settings)
    trainer.remove_callback(PrinterCallback)
    steps = _recorder(trainer, stop)
    trainer.train(resume_from_checkpoint=checkpoint)
    parameters = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    found = {"weights of the model": parameters, **steps, **_logs(trainer.state.log_history)}
    return {f"{_section(section, name)}/{case}/{name}": values for name, values in found.items()}


def _section(section: str, name: str) -> str:
    """Keep apart from stock TRL's numbers what we measure of its tokens."""
    ours = "tokens" in name or name.startswith(("log cov/", "log weight/", "log update/", "log entropy"))
    return f"{section} tokens" if section == "stock" and ours else section


def _recorder(trainer: Any, stop: int) -> Record:
    """Let the trainer write the gradient (clipped) and the tokens of each of its steps into the returned record."""
    from transformers import TrainerCallback

    found: Record = {}

    class Recorder(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
            found[f"step {state.global_step + 1} gradient"] = torch.cat(gradients)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tokens = trainer.step_tokens
            for column, values in vars(tokens).items() if tokens is not None else ():
                found[f"step {state.global_step} tokens {column}"] = values.detach().clone()
            control.should_training_stop |= state.global_step == stop

    trainer.add_callback(Recorder())
    return found


def _logs(history: list[dict[str, Any]]) -> Record:
    """Every logged metric but the times, (steps,) float64; NaN at a step that has not logged it."""
    steps = [log for log in history if "loss" in log]
    names = sorted({name for log in steps for name in log if "time" not in name})
    return {
        f"log {name}": torch.tensor([float(log.get(name, math.nan)) for log in steps], dtype=torch.float64)
        for name in names
    }


def resumed(folder: Path) -> Record:
    """Runs that were stopped in the middle of a rollout batch and went on from their checkpoint."""
    cases: dict[str, dict[str, Any]] = {
        "gaussian": {"weighting": "gaussian", "num_iterations": 2},
        "clip_cov": {**TRAINED["clip_cov"], "weighting": "clip_cov", "weighting_scope": "batch", "num_iterations": 2},
        "hold_entropy": {"weighting": "hold_entropy", "weighting_scope": "batch", **FOUR_MICRO_BATCHES},
    }
    found: Record = {}
    for case, options in cases.items():
        stop = 13 if case == "hold_entropy" else 3
        settings = {**SGD, **options, "max_steps": stop + 2, "save_strategy": "steps", "save_steps": stop}
        run(folder / case, "resume", case, settings, stop=stop)
        checkpoint = str(folder / case / f"checkpoint-{stop}")
        found |= run(folder / case, "resume", case, settings, checkpoint)
    return found


PARTS: dict[str, Callable[[], Record]] = {
    "core": core,
    "metrics": metrics,
    "engines": engines,
    "training": training,
}


def write(file: Path, parts: list[str]) -> None:
    """Record the named parts, on one thread: sums in another order differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: Record = {}
    try:
        for part in parts:
            found |= PARTS[part]()
    finally:
        torch.set_num_threads(threads)
    save_file({name: values.contiguous().clone() for name, values in found.items()}, file)
    print(f"{file}: {len(found)} entries of {', '.join(parts)}, with {covgrpo.__file__}")


def compare(first: Record, second: Record, limits: dict[str, float]) -> list[str]:
    """Print a line a section and return what is wrong, a sentence each."""
    wrong = [f"only in the first record: {name}" for name in sorted(first.keys() - second.keys())]
    wrong += [f"only in the second record: {name}" for name in sorted(second.keys() - first.keys())]
    common = sorted(first.keys() & second.keys())
    for section in dict.fromkeys(name.partition("/")[0] for name in common):
        names = [name for name in common if name.partition("/")[0] == section]
        found = {name: difference(name, first[name], second[name]) for name in names}
        equal = sum(absolute == 0 for absolute, _ in found.values())
        widest, worst = max(names, key=lambda n: found[n][0]), max(names, key=lambda n: found[n][1])
        line = f"{section}: {equal} of {len(names)} entries equal to the last bit"
        if equal < len(names):
            line += f"; largest difference {found[widest][0]:.1e} ({widest}), relative {found[worst][1]:.1e} ({worst})"
        print(line)
        for name, (_, relative) in found.items():
            limit = limit_of(section, first[name].dtype, limits)
            if not relative <= limit:
                wrong.append(f"{name}: relative difference {relative:.1e}, limit {limit:.1e}")
    return wrong


def difference(name: str, first: Tensor, second: Tensor) -> tuple[float, float]:
    """Largest difference, absolute and relative; infinite where shape, dtype or the place of a NaN differs."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return math.inf, math.inf
    a, b = first.double(), second.double()
    if torch.equal(a.nan_to_num(nan=0.0), b.nan_to_num(nan=0.0)) and torch.equal(a.isnan(), b.isnan()):
        return 0.0, 0.0
    absolute = (a - b).abs().masked_fill(a.isnan() & b.isnan() | (a == b), 0).max().item()
    size = a[a.isfinite()].abs().max().item() if a.isfinite().any() else 0.0
    size = max(size, size_of_terms(name))
    if math.isnan(absolute):
        return math.inf, math.inf
    return absolute, absolute / size if size > 0 else math.inf


def size_of_terms(name: str) -> float:
    """What a number that terms of both signs have cancelled to is measured against; 0: against itself."""
    quantity = name.rpartition("/log ")[2]
    if quantity in ("entropy/predicted", "entropy/predicted_step"):
        return float(SGD["learning_rate"])
    return 1.0 if quantity.startswith("cov/") or quantity in ("loss", "hold/reached", "entropy/change") else 0.0


def limit_of(section: str, dtype: torch.dtype, limits: dict[str, float]) -> float:
    """Return the largest relative difference that passes."""
    if not dtype.is_floating_point:
        return 0.0
    if section in BIT_FOR_BIT:
        return limits.get(section, 0.0)
    return limits.get(section, ROUNDING.get(dtype, ELSEWHERE) if section in BY_DTYPE else ELSEWHERE)


def section_limit(text: str) -> tuple[str, float]:
    """Read SECTION=VALUE."""
    section, _, value = text.partition("=")
    return section, float(value)


def main(arguments: list[str] | None = None) -> int:
    """Write a record, or compare two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("file", type=Path)
    writing.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    comparing = commands.add_parser("compare")
    comparing.add_argument("files", type=Path, nargs=2, metavar="FILE")
    comparing.add_argument("--limit", action="append", default=[], type=section_limit, metavar="SECTION=VALUE")
    options = parser.parse_args(arguments)
    if options.command == "write":
        write(options.file, options.parts)
        return 0
    limits = dict(options.limit)
    first, second = (load_file(file) for file in options.files)
    wrong = compare(first, second, limits)
    print("\n".join(wrong) or "the same")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
