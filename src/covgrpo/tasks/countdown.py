"""Countdown: make a target from given numbers, each used once. Many answers are right, so the verifier computes."""

import ast
import operator
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from covgrpo.errors import UserError
from covgrpo.tasks.base import (
    DEFAULT_EVAL_FRACTION,
    Problem,
    TaskInfo,
    derived_seed,
    merge_parameters,
)
from covgrpo.tasks.countdown_steps import Step, random_solution
from covgrpo.tasks.countdown_tries import last_try
from covgrpo.tasks.generated import GeneratedTask

_DEFAULTS = {
    "numbers": 3,
    "largest": 20,
    "max_target": 99,
    "style": "words",
    "eval_fraction": DEFAULT_EVAL_FRACTION,
}
_BOUNDS = {"numbers": (2, 6), "largest": (1, 1000), "max_target": (1, 1000)}
_STYLES = ("words", "compact", "tries")
_MAX_LENGTH = 200
_MAX_STREAK = 10_000  # of draws without a new question: the space is as good as used up
_EXPRESSION = re.compile(rf"[0-9+\-*/() ]{{1,{_MAX_LENGTH}}}")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class CountdownTask(GeneratedTask):
    """Make a target from ``numbers`` integers with ``+ - * /``; with the defaults about 16,000 distinct questions.

    Every problem has a solution whose intermediate results are positive integers. The given numbers stand in order,
    so the same numbers with the same target are one question.

    Attributes:
        numbers: How many are given, 2 to 6.
        largest: The given numbers lie in [1, largest].
        max_target: The target lies in [1, max_target].
        style: ``words``: a sentence; ``compact``: ``3 5 7 = 22``, for models with a small alphabet; ``tries``:
            ``3 4 5=8``, to be answered by a trace of tries, see :mod:`covgrpo.tasks.countdown_tries`. Its solutions
            have no intermediate result above twice the larger of ``largest`` and ``max_target``.
        eval_fraction: See :func:`covgrpo.tasks.base.is_eval_question`.

    Raises:
        UserError: a parameter is of the wrong type or out of its range.
    """

    kind = "countdown"
    defaults = _DEFAULTS
    max_streak = _MAX_STREAK

    numbers: int = 3
    largest: int = 20
    max_target: int = 99
    style: str = "words"
    eval_fraction: float = DEFAULT_EVAL_FRACTION

    def __post_init__(self) -> None:
        merge_parameters("countdown:", dict(vars(self)), _DEFAULTS)
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise UserError(f"Task 'countdown:': {name} must lie between {least} and {most}, not {value}.")
        if self.style not in _STYLES:
            raise UserError(f"Task 'countdown:': style must be {' or '.join(_STYLES)}, not {self.style!r}.")

    @property
    def verifier(self) -> str:
        """Import path of the style's ``score``."""
        return f"{__name__}_tries:score" if self.style == "tries" else f"{__name__}:score"

    def vote(self, answer: str) -> str:
        """What counts in a majority vote: the expression; of a trace the try that it ends with."""
        return last_try(answer) if self.style == "tries" else answer

    @staticmethod
    def info() -> list[TaskInfo]:
        """The entry of the task list."""
        return [TaskInfo("countdown:", "Make a target from given numbers, each used once.", dict(_DEFAULTS))]

    def draws(self, n: int, seed: int) -> Iterator[Problem]:
        """Up to a bounded number of problems, with replacement; draws whose target is too large are left out."""
        rng = random.Random(derived_seed("countdown", seed))  # noqa: S311 (not cryptography)
        for _ in range(50 * n + 20_000):
            given = sorted(rng.randint(1, self.largest) for _ in range(self.numbers))
            target, answer, steps = random_solution(given, rng)
            if self.style == "tries":
                answer = f"{' '.join(map(str, steps))}!"
            if target <= self.max_target and (self.style != "tries" or self.is_easy(steps)):
                yield self._problem(given, target, answer)

    def _problem(self, given: list[int], target: int, answer: str) -> Problem:
        texts = [str(number) for number in given]
        compact = f"{' '.join(texts)} = {target}"
        listed = f"{', '.join(texts[:-1])} and {texts[-1]}"
        questions = {
            "words": f"Use each of {listed} once, with + - * / and parentheses, to make {target}.",
            "compact": compact,
            "tries": f"{' '.join(texts)}={target}",
        }
        return Problem(compact, questions[self.style], answer, {"numbers": given, "target": target})

    def is_easy(self, steps: list[Step]) -> bool:
        """Whether no result is above twice the larger of ``largest`` and ``max_target``."""
        return all(step.value <= 2 * max(self.largest, self.max_target) for step in steps)


def score(payload: dict[str, Any], answer: str) -> float:
    """1 if the stripped answer uses each given number exactly once and equals the target exactly, else 0.

    An answer is one expression of decimal integers, ``+ - * /``, parentheses and spaces, of at most 200 characters.
    Its intermediate results may be negative or fractions.
    """
    text = answer.strip()
    if not _EXPRESSION.fullmatch(text):
        return 0.0
    # as many numbers as are given: this also bounds the depth of what is evaluated
    if sorted(map(int, re.findall("[0-9]+", text))) != sorted(payload["numbers"]):
        return 0.0
    try:
        return float(_value(ast.parse(text, mode="eval").body) == payload["target"])
    except (SyntaxError, MemoryError, RecursionError, ValueError, ZeroDivisionError):
        return 0.0


def _value(node: ast.expr) -> Fraction:
    """The exact value of a tree of binary operations on integers.

    Raises:
        ValueError: it holds anything else.
        ZeroDivisionError: it divides by zero.
    """
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(f"{type(node).__name__} is not arithmetic")
