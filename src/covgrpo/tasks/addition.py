"""The demo task: "What is a + b?" with a and b uniform in [min, max]; strict equality of the stripped text."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from covgrpo.errors import UserError
from covgrpo.tasks.base import DEFAULT_EVAL_FRACTION, Problem, TaskInfo, derived_seed, merge_parameters
from covgrpo.tasks.generated import GeneratedTask

_MOST = 10**9  # the number of pairs is then a length that Python has
_DEFAULTS = {"min": 1, "max": 9, "eval_fraction": DEFAULT_EVAL_FRACTION}


@dataclass(frozen=True)
class AdditionTask(GeneratedTask):
    """Sums of two integers; ``min=1, max=9`` has 81 distinct questions.

    Raises:
        UserError: ``max`` is below ``min``, one of them is beyond a billion, or ``eval_fraction`` is outside (0, 1).
    """

    kind = "addition"
    defaults = _DEFAULTS

    min: int = 1
    max: int = 9
    eval_fraction: float = DEFAULT_EVAL_FRACTION

    def __post_init__(self) -> None:
        merge_parameters("addition:", dict(vars(self)), _DEFAULTS)
        for name in ("min", "max"):
            value = getattr(self, name)
            if abs(value) > _MOST:
                raise UserError(f"Task 'addition:': {name} must lie between -{_MOST} and {_MOST}, not {value}.")
        if self.max < self.min:
            raise UserError(f"Task 'addition:': max must be at least min, but {self.max} < {self.min}.")

    @staticmethod
    def info() -> list[TaskInfo]:
        """The entry of the task list."""
        return [TaskInfo("addition:", 'Sums of two integers: "What is a + b?"', dict(_DEFAULTS))]

    def draws(self, n: int, seed: int) -> Iterator[Problem]:
        """All pairs in a random order, or a bounded sample of them, without replacement: exact and cheap."""
        width = self.max - self.min + 1
        rng = random.Random(derived_seed("addition", seed))  # noqa: S311 (not cryptography)
        for pair in rng.sample(range(width * width), min(width * width, 50 * n + 2000)):
            a, b = self.min + pair // width, self.min + pair % width
            yield Problem(f"{a}+{b}", f"What is {a} + {b}?", str(a + b), {"sum": a + b})


def score(payload: dict[str, Any], answer: str) -> float:
    """1 if the stripped answer is exactly the sum's decimal text, else 0."""
    return float(answer.strip() == str(payload["sum"]))
