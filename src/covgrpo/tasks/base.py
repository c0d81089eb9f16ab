"""What a task is: prompts with known answers, split for good into train and eval, and the verifier's import path."""

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from covgrpo.errors import UserError
from covgrpo.suggest import did_you_mean_or_known

Split = Literal["train", "eval"]

DEFAULT_EVAL_FRACTION = 0.2


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer.

    Attributes:
        id: Unique within its task.
        question: The text shown to the model. It alone decides the split.
        answer: The gold answer as text, for solved examples and display; "" where the task knows none.
        payload: JSON-able; what the task's verifier needs to score an answer.
    """

    id: str
    question: str
    answer: str
    payload: dict[str, Any] = field(compare=False)


@runtime_checkable
class Task(Protocol):
    """The interface of every task. A user's own class needs no base class, only these three names.

    It may have a fourth, ``vote(answer: str) -> str``: what of an answer a majority vote compares, "" for no vote.
    Without it that is the whole answer.
    """

    @property
    def spec(self) -> str:
        """Canonical ``kind:name?parameters``; :func:`covgrpo.tasks.load_task` accepts it."""

    @property
    def verifier(self) -> str:
        """Import path ``module:function`` of ``(payload: dict, answer: str) -> float in [0, 1]``.

        The function runs in a worker process (:class:`covgrpo.verify.VerifierPool`). Where its module has a
        function ``warm_up()``, the worker calls it once before the first answer, outside every time limit.
        """

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """Up to ``n`` distinct questions of one split, in an order that ``seed`` decides.

        Fewer than ``n`` come back where the task has no more. Train and eval never share a question.

        Raises:
            UserError: ``n`` is below 1, or the split is empty.
        """


def vote_of(task: Task) -> Callable[[str], str]:
    """The task's own ``vote``, or the whole answer."""
    own: Callable[[str], str] | None = getattr(task, "vote", None)
    return own or str


@dataclass(frozen=True)
class TaskInfo:
    """One line of the task list: the spec without parameters, what it asks, and its parameters' defaults."""

    name: str
    description: str
    parameters: dict[str, Any]


def is_eval_question(question: str, eval_fraction: float = DEFAULT_EVAL_FRACTION) -> bool:
    """Whether a question belongs to the eval split: sha256(question) / 2^256 < eval_fraction.

    Membership depends on nothing but the question's text, so no seed, size or order can leak eval into train.
    """
    digest = hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest, "big") < eval_fraction * 2.0**256


def derived_seed(*parts: object) -> int:
    """A 31-bit seed from any parts, so that neighbouring seeds give unrelated streams."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def collect_problems(
    draws: Iterable[Problem],
    split: Split,
    n: int,
    *,
    spec: str,
    eval_fraction: float = DEFAULT_EVAL_FRACTION,
    max_streak: int | None = None,
) -> list[Problem]:
    """The first ``n`` distinct questions of ``split`` among ``draws``.

    Stops early when ``draws`` ends, or after ``max_streak`` draws in a row without any new question.

    Raises:
        UserError: unknown split, ``n`` below 1, or no question of that split was drawn.
    """
    if split not in ("train", "eval"):
        raise UserError(f"Task {spec!r}: split must be 'train' or 'eval', not {split!r}.")
    if n < 1:
        raise UserError(f"Task {spec!r}: the number of {split} problems must be at least 1, not {n}.")
    seen: set[str] = set()
    chosen: list[Problem] = []
    streak = 0
    for problem in draws:
        streak += 1
        if problem.question not in seen:
            streak = 0
            seen.add(problem.question)
            if is_eval_question(problem.question, eval_fraction) == (split == "eval"):
                chosen.append(problem)
        if len(chosen) == n or (max_streak is not None and streak >= max_streak):
            break
    if not chosen:
        raise UserError(
            f"Task {spec!r}: none of its {len(seen)} distinct questions falls in the {split} split "
            f"(eval_fraction is {eval_fraction})."
        )
    return chosen


def draw_problems(
    problems: Iterable[Problem],
    split: Split,
    n: int,
    seed: int,
    *,
    spec: str,
    kind: str,
    how: str,
    eval_fraction: float,
) -> list[Problem]:
    """Up to ``n`` of given problems in an order that ``kind`` and ``seed`` decide; with ``how="all"`` of all of them.

    Raises:
        UserError: see :func:`collect_problems`.
    """
    order = list(problems)
    random.Random(derived_seed(kind, seed)).shuffle(order)  # noqa: S311 (not cryptography)
    if how == "all":
        eval_fraction = 0.0 if split == "train" else 1.0
    return collect_problems(order, split, n, spec=spec, eval_fraction=eval_fraction)


def check_parameter_names(spec: str, params: dict[str, Any], known: Iterable[str]) -> None:
    """Refuse parameters that the task does not have.

    Raises:
        UserError: names the parameter, the task and the nearest known parameter.
    """
    known = list(known)
    for name in params:
        if name not in known:
            raise UserError(f"Task {spec!r} has no parameter {name!r}.{did_you_mean_or_known(name, known)}")


def merge_parameters(spec: str, params: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """``defaults`` overridden by ``params``, each checked to have its default's type (an int may be a float).

    Raises:
        UserError: unknown parameter, wrong type, or an ``eval_fraction`` outside (0, 1).
    """
    check_parameter_names(spec, params, defaults)
    merged = dict(defaults)
    for name, value in params.items():
        wanted = type(defaults[name])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise UserError(f"Task {spec!r}: parameter {name!r} must be {wanted.__name__}, not {value!r}.")
        try:
            merged[name] = wanted(value)
        except OverflowError:
            raise UserError(f"Task {spec!r}: parameter {name!r} is a number beyond floats.") from None
    if not 0.0 < merged.get("eval_fraction", 0.5) < 1.0:
        raise UserError(f"Task {spec!r}: eval_fraction must lie between 0 and 1, not {merged['eval_fraction']}.")
    return merged
