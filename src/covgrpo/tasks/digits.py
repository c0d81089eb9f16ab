"""Digits of a number put into another order: ``digits:sort`` and ``digits:reverse``; strict equality of the text."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from covgrpo.errors import UserError
from covgrpo.suggest import did_you_mean_or_known
from covgrpo.tasks.base import (
    DEFAULT_EVAL_FRACTION,
    Problem,
    TaskInfo,
    derived_seed,
    merge_parameters,
)
from covgrpo.tasks.generated import GeneratedTask

_DEFAULTS = {"length": 4, "eval_fraction": DEFAULT_EVAL_FRACTION}

# Name -> (question about {digits}, answer from the digits).
OPERATIONS: dict[str, tuple[str, Callable[[str], str]]] = {
    "sort": ("Sort the digits of {digits}.", lambda digits: "".join(sorted(digits))),
    "reverse": ("Reverse {digits}.", lambda digits: digits[::-1]),
}


@dataclass(frozen=True)
class DigitsTask(GeneratedTask):
    """Texts of ``length`` random digits, to be sorted or reversed; 10 ** length distinct questions.

    Raises:
        UserError: an unknown operation, a ``length`` outside 2 to 12, or ``eval_fraction`` outside (0, 1).
    """

    kind = "digits"
    defaults = _DEFAULTS

    operation: str
    length: int = 4
    eval_fraction: float = DEFAULT_EVAL_FRACTION

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            hint = did_you_mean_or_known(self.operation, OPERATIONS)
            raise UserError(f"Task 'digits:' has no operation {self.operation!r}.{hint}")
        values = {"length": self.length, "eval_fraction": self.eval_fraction}
        merge_parameters(f"digits:{self.operation}", values, _DEFAULTS)
        if not 2 <= self.length <= 12:
            raise UserError(f"Task 'digits:{self.operation}': length must be from 2 to 12, not {self.length}.")

    @classmethod
    def from_spec(cls, body: str, params: dict[str, Any]) -> "DigitsTask":
        """The task of ``digits:OPERATION?length=..``. Raises as the class does, or for an unknown parameter."""
        return cls(body, **merge_parameters(f"digits:{body}", params, _DEFAULTS))

    @staticmethod
    def info() -> list[TaskInfo]:
        """The entries of the task list."""
        return [
            TaskInfo(f"digits:{name}", f'Random digits: "{question.format(digits="4172")}"', dict(_DEFAULTS))
            for name, (question, _) in OPERATIONS.items()
        ]

    @property
    def body(self) -> str:
        """The operation."""
        return self.operation

    def draws(self, n: int, seed: int) -> Iterator[Problem]:
        """A bounded sample of all texts, without replacement."""
        question, answer = OPERATIONS[self.operation]
        count = 10**self.length
        rng = random.Random(derived_seed("digits", self.operation, seed))  # noqa: S311 (not cryptography)
        for number in rng.sample(range(count), min(count, 50 * n + 2000)):
            digits = f"{number:0{self.length}d}"
            gold = answer(digits)
            yield Problem(digits, question.format(digits=digits), gold, {"gold": gold})


def score(payload: dict[str, Any], answer: str) -> float:
    """1 if the stripped answer is exactly the gold digits, else 0."""
    return float(answer.strip() == payload["gold"])
