"""Any dataset of reasoning-gym (github.com/open-thought/reasoning-gym) with its parameters and its own scorer.

Several of its scorers hand the answer to ``eval`` or ``sympy.parse_expr``, which run Python: :data:`GUARDS` lets only
plain values and arithmetic through to them. Arithmetic may still take for ever: score untrusted text in a worker
process (:class:`covgrpo.verify.VerifierPool`).
"""

import dataclasses
import datetime
import enum
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from covgrpo.errors import UserError
from covgrpo.packages import MissingPackageError, require
from covgrpo.suggest import did_you_mean_or_known
from covgrpo.tasks.base import (
    DEFAULT_EVAL_FRACTION,
    Problem,
    Split,
    TaskInfo,
    check_parameter_names,
    collect_problems,
    derived_seed,
    merge_parameters,
)
from covgrpo.tasks.entry_json import decode_entry, encode_entry
from covgrpo.tasks.safe_answers import is_arithmetic, is_elementary, is_literal, is_polynomial, is_queens_board
from covgrpo.tasks.spec import format_spec

_OURS = {"strict": True, "eval_fraction": DEFAULT_EVAL_FRACTION}
_RESERVED = ("seed", "size")  # decided by problems(split, n, seed)
_CHUNK = 500  # entries of one dataset seed; reasoning-gym's own default size
_MAX_STREAK = 1000
# where datasets that accept many answers keep one of them
_EXAMPLE_KEYS = ("possible_answer", "example_answer", "example_correct_answer")


def warm_up() -> None:
    """Import reasoning-gym (over a second) before the first answer's time limit runs."""
    _datasets()


@functools.cache
def _datasets() -> dict[str, tuple[Any, Any]]:
    import reasoning_gym  # noqa: F401 (fills the registry)
    from reasoning_gym.factory import DATASETS

    # "composite" mixes other datasets from Python objects that no spec can write
    return {name: classes for name, classes in sorted(DATASETS.items()) if name != "composite"}


@functools.lru_cache(maxsize=64)
def _config_defaults(name: str) -> dict[str, Any]:
    """The parameters of one dataset: its config's fields without seed and size."""
    _, config_cls = _datasets()[name]
    config = config_cls()
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in _RESERVED}


def _is_settable(default: Any) -> bool:
    return not dataclasses.is_dataclass(default)


def _json_default(default: Any) -> Any:
    """A default as a spec would write it."""
    if isinstance(default, datetime.date | datetime.time):
        return default.isoformat()
    return json.loads(json.dumps(default, default=str))


def _config_value(value: Any, default: Any) -> Any:
    """A spec's value as the config wants it: ISO text for dates and times, the value of an enum's member."""
    if isinstance(default, datetime.date | datetime.time):
        return type(default).fromisoformat(value)
    if isinstance(default, enum.Enum):
        return type(default)(value)
    return value


def _create(name: str, params: dict[str, Any], seed: int, size: int) -> Any:
    """The dataset itself.

    Raises:
        UserError: reasoning-gym refuses a parameter's value; its own message is included.
    """
    dataset_cls, config_cls = _datasets()[name]
    defaults = _config_defaults(name)
    try:
        values = {key: _config_value(value, defaults[key]) for key, value in params.items()}
        config = config_cls(seed=seed, size=size, **values)
        if hasattr(config, "validate"):  # power_function's has none
            config.validate()
        return dataset_cls(config)
    except Exception as error:  # asserts mostly, but a wrong type fails in any way it likes
        raise UserError(f"Task 'reasoning_gym:{name}' refuses {params}: {error or repr(error)}.") from error


def _gold_answer(entry: dict[str, Any]) -> str:
    """The entry's answer as text; "" for the two datasets (boxnet, rush_hour) that store none."""
    if entry["answer"] is not None:
        return str(entry["answer"])
    for key in _EXAMPLE_KEYS:
        if key in entry["metadata"]:
            example = entry["metadata"][key]
            return example if isinstance(example, str) else json.dumps(example)
    return ""


class ReasoningGymTask:
    """``reasoning_gym:NAME`` with the dataset's own parameters and two of ours.

    ``strict`` (default true): a score below 1 counts as 0, the 0/1 correctness of the paper. Without it
    reasoning-gym's partial credit stands (often for a right answer inside longer text).
    ``eval_fraction``: see :func:`covgrpo.tasks.base.is_eval_question`.

    Raises:
        UserError: unknown dataset or parameter (with the nearest name), or a value that reasoning-gym refuses.
        MissingPackageError: there is no reasoning-gym.
    """

    verifier = "covgrpo.tasks.reasoning_gym:score"

    def __init__(self, name: str, params: dict[str, Any] | None = None):
        require(f"Task 'reasoning_gym:{name}'", "reasoning_gym")
        if name not in _datasets():
            raise UserError(f"reasoning-gym has no dataset {name!r}.{did_you_mean_or_known(name, _datasets())}")
        label = f"reasoning_gym:{name}"
        params = dict(params or {})
        defaults = _config_defaults(name)
        for reserved in set(_RESERVED) & set(params):
            raise UserError(f"Task {label!r}: {reserved!r} is set by the run, not by the task.")
        settable = [key for key, default in defaults.items() if _is_settable(default)]
        check_parameter_names(label, params, [*settable, *_OURS])
        ours = {key: params.pop(key) for key in _OURS if key in params}
        merged = merge_parameters(label, ours, _OURS)
        self.name = name
        self.params = params
        self.strict: bool = merged["strict"]
        self.eval_fraction: float = merged["eval_fraction"]
        shown_defaults = {key: _json_default(defaults[key]) for key in settable} | _OURS
        self.spec = format_spec("reasoning_gym", name, params | merged, shown_defaults)
        _create(name, params, seed=0, size=1)

    @classmethod
    def from_spec(cls, body: str, params: dict[str, Any]) -> "ReasoningGymTask":
        """The task of ``reasoning_gym:NAME?...``. Raises as the class does."""
        return cls(body, params)

    @staticmethod
    def info() -> list[TaskInfo]:
        """One entry for each dataset, or one for all where there is no reasoning-gym, which this imports."""
        entries = []
        try:
            require("this task", "reasoning_gym")
        except MissingPackageError as error:
            return [TaskInfo("reasoning_gym:NAME", f"About 100 tasks; {error}", dict(_OURS))]
        for name, (dataset_cls, _) in _datasets().items():
            defaults = {k: _json_default(d) for k, d in _config_defaults(name).items() if _is_settable(d)}
            summary = (inspect.getdoc(dataset_cls) or name).splitlines()[0]
            entries.append(TaskInfo(f"reasoning_gym:{name}", summary, defaults | _OURS))
        return entries

    def _draws(self, n: int, seed: int) -> Iterator[Problem]:
        """At most 50 n + 2000 entries, a new dataset seed for every chunk (index i of seed s is i - 1 of s + 1)."""
        for draw in range(50 * n + 2000):
            chunk, index = divmod(draw, _CHUNK)
            if index == 0:
                dataset_seed = derived_seed("reasoning_gym", self.name, seed, chunk)
                dataset = _create(self.name, self.params, dataset_seed, _CHUNK)
            yield self._problem(dataset, dataset_seed, index)

    def _problem(self, dataset: Any, dataset_seed: int, index: int) -> Problem:
        try:
            entry = dataset[index]
        except Exception as error:  # parameters that pass its validation and cannot be met
            raise UserError(
                f"Task {self.spec!r}: reasoning-gym failed to make a problem: {error or repr(error)}."
            ) from error
        payload = {
            "task": self.name,
            "params": self.params,
            "seed": dataset_seed,
            "index": index,
            "strict": self.strict,
            "entry": encode_entry(entry),
        }
        return Problem(f"{self.name}/{dataset_seed}/{index}", entry["question"], _gold_answer(entry), payload)

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """See :meth:`covgrpo.tasks.Task.problems`.

        Gives up after 50 n + 2000 draws, or 1000 in a row without a new question. The four datasets named in
        ``entry_json`` give the same problems again in another process only under the same PYTHONHASHSEED.
        """
        return collect_problems(
            self._draws(n, seed),
            split,
            n,
            spec=self.spec,
            eval_fraction=self.eval_fraction,
            max_streak=_MAX_STREAK,
        )


@functools.lru_cache(maxsize=64)
def _scorer(name: str, params_json: str) -> Any:
    # no scorer reads the dataset's seed or size, only its config
    return _create(name, json.loads(params_json), seed=0, size=1)


def _same_text(answer: str, gold: str) -> float:
    return float(answer.strip() == gold)


def _same_number(answer: str, gold: str) -> float:
    try:
        return float(abs(Fraction(answer.strip()) - Fraction(gold)) <= 1e-4)
    except (ValueError, ZeroDivisionError):
        return 0.0


# scorers of reasoning-gym 0.1.25 that a policy would learn to cheat, replaced by ours
OWN_SCORERS: dict[str, Callable[[str, str], float]] = {
    "game_of_life_halting": _same_text,  # theirs compares bool(text), so that any text is right
    "coin_flip": _same_number,  # theirs gives "0" full credit for every probability that begins with 0
}

# for each dataset of reasoning-gym 0.1.25 whose scorer evaluates the answer, what it may be given
GUARDS: dict[str, Callable[[str], bool]] = {
    "binary_matrix": is_literal,
    "n_queens": is_queens_board,
    "spiral_matrix": is_literal,
    "string_insertion": is_literal,
    "countdown": is_arithmetic,
    "puzzle24": is_arithmetic,
    "polynomial_multiplication": is_polynomial,
    "intermediate_integration": is_elementary,
    "simple_integration": is_elementary,
}


def score(payload: dict[str, Any], answer: str) -> float:
    """reasoning-gym's score of ``answer``; with ``payload["strict"]``, 1 if that score is 1 and else 0.

    Two datasets are scored by :data:`OWN_SCORERS` instead, always 0 or 1. An answer that its dataset's guard
    (:data:`GUARDS`) refuses is never evaluated: 1 if it is the gold answer as text, else 0.

    Raises:
        Exception: whatever reasoning-gym's scorer raises on text that it cannot read.
    """
    entry = decode_entry(payload["entry"])
    if payload["task"] in OWN_SCORERS:
        return OWN_SCORERS[payload["task"]](answer, str(entry["answer"]))
    if payload["task"] in GUARDS and not GUARDS[payload["task"]](answer):
        return _same_text(answer, str(entry["answer"]))
    dataset = _scorer(payload["task"], json.dumps(payload["params"], sort_keys=True))
    value = float(dataset.score_answer(answer=answer, entry=entry))
    return float(value >= 1.0) if payload["strict"] else value
