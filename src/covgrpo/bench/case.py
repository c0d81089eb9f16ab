"""What is measured: one dataclass, whose fields are the flags of ``covgrpo bench``."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from covgrpo.errors import UserError
from covgrpo.runs.options import option
from covgrpo.suggest import check_choice

# The parts of a step. `update` is forward, backward and optimizer; `rest` is tokenising, decoding, padding, advantages.
PHASES = ("sampling", "scoring", "update", "reward", "rest")

LENGTHS = ("model", "equal", "ragged")

# Sweep -> the field it changes and its default points.
SWEEPS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "prompt-length": ("prompt_length", (32, 128, 512)),
    "completion-length": ("completion_length", (4, 16, 64, 256)),
    "generations": ("num_generations", (2, 4, 8, 16)),
    "zero-share": ("zero_share", (0.0, 0.25, 0.5, 0.75)),
    "model-size": ("layers", (3, 10, 30)),
}


@dataclass(frozen=True)
class BenchCase:
    """One configuration. Lengths are in tokens; ``zero_share`` is a fraction of the groups."""

    model: str = option("smollm2-135m", "Built-in name, local folder or hub id.", "workload")
    layers: int | None = option(None, "Keep only the first N layers; default: all.", "workload")
    task: str = option("addition?min=1&max=9", "Task whose prompts and verifier are used.", "workload")
    num_examples: int = option(2, "Solved examples before each question.", "workload")
    prompts_per_step: int = option(8, "Prompts a step.", "workload")
    num_generations: int = option(16, "Completions a prompt.", "workload")
    micro_batch_size: int | None = option(
        None, "Completions a forward, for both sides; default: the whole step at once.", "workload"
    )
    prompt_length: int | None = option(
        None, "Prompts of N random tokens with nothing in common; default: the task's prompts.", "workload"
    )
    completion_length: int = option(5, "Tokens a completion at most.", "workload")
    lengths: str = option(
        "model",
        "Where completions end: model (its own end token), equal (all of full length), ragged (also at any token "
        "whose id is a multiple of half the length).",
        "workload",
    )
    zero_share: float | None = option(
        None, "Fraction of groups without advantage, by fixed rewards; default: the verifier's rewards.", "workload"
    )
    learning_rate: float = option(1e-5, "Learning rate of the steps that are timed.", "workload")
    steps: int = option(20, "Steps that are timed.", "measurement")
    warmup: int = option(1, "Steps before them that are not.", "measurement")
    gradient_checkpointing: bool = option(False, "Recompute activations, on both sides.", "measurement")
    bf16: bool | None = option(None, "bfloat16 autocast, for both; default: where the hardware has it.", "measurement")
    threads: int | None = option(None, "CPU threads; default: torch's choice.", "measurement")
    seed: int = option(0, "Seed of prompts and sampling.", "measurement")

    @property
    def rows(self) -> int:
        """Completions a step."""
        return self.prompts_per_step * self.num_generations

    def check(self) -> None:
        """Check every field.

        Raises:
            UserError: a value out of range; one sentence that names it.
        """
        least = {"prompts_per_step": 1, "num_generations": 2, "completion_length": 1, "num_examples": 0, "steps": 1}
        least |= {"warmup": 0, "seed": 0, "prompt_length": 1, "layers": 1, "micro_batch_size": 1, "threads": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(f"{name} is {value}; it must be at least {minimum}.")
        if self.zero_share is not None and not 0 <= self.zero_share <= 1:
            raise UserError(f"zero_share is {self.zero_share}; it must be a fraction between 0 and 1.")
        if not 0 <= self.learning_rate < float("inf"):
            raise UserError(f"learning_rate is {self.learning_rate}; it must be finite and at least 0.")
        check_choice("lengths", self.lengths, LENGTHS)
        if self.rows % (self.micro_batch_size or self.rows):
            raise UserError(
                f"micro_batch_size is {self.micro_batch_size}; it must divide the {self.rows} completions of a step."
            )


def sweep(case: BenchCase, name: str, points: Sequence[Any] | None = None) -> list[BenchCase]:
    """Return the case at each point of a sweep (``SWEEPS``).

    A sweep of lengths makes all completions equally long, so that the axis is what it says; one that leaves the
    rewards to the verifier gets fixed ones without zero-advantage groups, so that steps are comparable.

    Raises:
        UserError: an unknown sweep, or a point that is no valid value.
    """
    check_choice("sweep", name, SWEEPS)
    field, defaults = SWEEPS[name]
    fixed: dict[str, Any] = {"zero_share": 0.0 if case.zero_share is None else case.zero_share}
    if case.lengths == "model":
        fixed["lengths"] = "equal"
    cases = [dataclasses.replace(case, **{**fixed, field: point}) for point in points or defaults]
    for one in cases:
        one.check()
    return cases
