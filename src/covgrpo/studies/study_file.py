"""A study file: which runs make up a comparison. Every method sees the same problems with the same seeds."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.runs.options import TrainOptions, options_from_dict
from covgrpo.studies.spec import RunSpec, Study
from covgrpo.suggest import check_choice
from covgrpo.trl.methods import METHODS
from covgrpo.yaml_text import read_yaml

# How a study file says what `covgrpo train` calls by its own names.
_EVALUATION = {
    "problems": "eval_problems",
    "every": "eval_steps",
    "samples": "eval_samples",
    "samples_between": "eval_steps_samples",
    "temperatures": "eval_temperatures",
}
# Likewise under its key `harder`: the second set of held-out problems.
_HARDER = {"task": "eval_task", "max_completion_length": "eval_task_length"}
_KEYS = (
    *("about", "options", "evaluation", "tasks", "models", "regimes", "sweep", "methods", "baseline", "seeds"),
    *("outcome", "margin", "secondary", "hard_regimes"),
)
_MOST_RUNS = 10_000
_SET_BY_STUDY = ("seed", "output", "resume", "evaluate", "report_to")


def read_study(path: str | Path) -> Study:
    """Read a study file and work out its runs.

    Raises:
        UserError: the file cannot be read, or a key, name or value is wrong; names the file and the key.
    """
    values = read_yaml(str(path))
    source = f"study {path}"
    for key in values:
        if key not in _KEYS:
            check_choice(f"{source}: key", str(key), _KEYS)
    methods = _methods(values.get("methods"), source)
    seeds = _seeds(values.get("seeds", 1), f"{source}: seeds")
    baseline = values.get("baseline", next(iter(methods)))
    check_choice(f"{source}: baseline", str(baseline), methods)
    shared = {**_mapping(values.get("options"), f"{source}: options"), **_evaluation(values.get("evaluation"), source)}
    regimes = list(_regimes(values, source))
    _check_count(len(seeds) * len(regimes) * len(methods), source)
    runs = []
    for place, seed in enumerate(seeds):
        for regime, of_regime in regimes:
            for method, entry in methods.items():
                if entry.takes(place, regime):
                    named = {} if "weighting" in entry.options else {"method": method}
                    options = {**named, **shared, **of_regime, **entry.options}
                    runs.append(_run(regime, method, seed, options, source))
    _check_unique(runs, source)
    _check_parts(methods, regimes, source)
    hard = values.get("hard_regimes") or []
    if not isinstance(hard, list):
        raise UserError(f"{source}: hard_regimes must be a list of regimes, not {hard!r}.")
    for name in hard:
        check_choice(f"{source}: hard_regimes", str(name), [regime for regime, _ in regimes])
    outcome, margin, secondary = _outcomes(values, source)
    return Study(Path(path).stem, str(values.get("about", "")), runs, str(baseline), outcome, hard, margin, secondary)


def _outcomes(values: Mapping[str, Any], source: str) -> tuple[str, float | None, list[str]]:
    """The primary outcome, its margin and the secondary outcomes."""
    from covgrpo.studies.outcomes import OUTCOMES

    outcome = str(values.get("outcome", "accuracy@1"))
    check_choice(f"{source}: outcome", outcome, OUTCOMES)
    margin, secondary = values.get("margin"), values.get("secondary") or []
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float) or not margin > 0):
        raise UserError(f"{source}: margin must be a positive number, in the outcome's unit, not {margin!r}.")
    if not isinstance(secondary, list):
        raise UserError(f"{source}: secondary must be a list of outcomes, not {secondary!r}.")
    for name in secondary:
        check_choice(f"{source}: secondary", str(name), OUTCOMES)
    return outcome, margin, [str(name) for name in secondary]


def _run(regime: str, method: str, seed: int, values: dict[str, Any], source: str) -> RunSpec:
    for name in _SET_BY_STUDY:
        if name in values:
            raise UserError(f"{source}: option {name!r} is set by the study itself.")
    options = options_from_dict({**values, "seed": seed}, source)
    options.check()
    check_choice(f"{source}: methods: {method}: method", options.method, METHODS)
    if not options.eval_steps:
        raise UserError(f"{source}: evaluation: 'every' is missing; without it a run has no accuracy.")
    return RunSpec(regime, method, seed, options)


def _regimes(values: Mapping[str, Any], source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination of tasks, models, regimes and swept values: its name and its options.

    An axis of one unnamed entry has no part in the name.
    """
    axes = [
        [(name, entry) for name, entry in _named(values.get(key), key[:-1], f"{source}: {key}")]
        for key in ("models", "tasks", "regimes")
    ]
    known = {field.name for field in dataclasses.fields(TrainOptions)}
    for option, choices in _mapping(values.get("sweep"), f"{source}: sweep").items():
        check_choice(f"{source}: sweep", option, known)
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{source}: sweep: {option!r} must be a list of values, not {choices!r}.")
        axes.append([(f"{option}={_shown(value)}", {option: value}) for value in choices])
    _check_count(math.prod(map(len, axes)), source)
    for combination in itertools.product(*axes):
        name = ", ".join(name for name, _ in combination if name)
        yield name, {key: value for _, entry in combination for key, value in entry.items()}


def _named(value: Any, option: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Entries of an axis: a mapping of names to options, or a list of values of the option of that name."""
    if value is None:
        return [("", {})]
    if isinstance(value, list) and value:
        return [(str(item), {option: str(item)}) for item in value]
    entries = _mapping(value, where)
    if not entries:
        raise UserError(f"{where} is empty.")
    return [(name, _mapping(entry, f"{where}: {name}")) for name, entry in entries.items()]


@dataclass(frozen=True)
class _Method:
    """Options of a method, and in how much of the study it takes part."""

    options: dict[str, Any]
    seeds: int | None = None
    regimes: list[str] | None = None

    def takes(self, place: int, regime: str) -> bool:
        """Whether it has a run of the seed at ``place`` in this regime; each part of a regime's name counts."""
        in_regime = self.regimes is None or any(part in self.regimes for part in regime.split(", "))
        return in_regime and (self.seeds is None or place < self.seeds)


def _methods(value: Any, source: str) -> dict[str, _Method]:
    if isinstance(value, list):
        value = {str(name): {} for name in value}
    found = {}
    for name, entry in _mapping(value, f"{source}: methods").items():
        options = dict(_mapping(entry, f"{source}: methods: {name}"))
        seeds, regimes = options.pop("seeds", None), options.pop("regimes", None)
        if seeds is not None and (not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1):
            raise UserError(f"{source}: methods: {name}: seeds must be a number of seeds, not {seeds!r}.")
        if regimes is not None and (not isinstance(regimes, list) or not regimes):
            raise UserError(f"{source}: methods: {name}: regimes must be a list of names, not {regimes!r}.")
        found[name] = _Method(options, seeds, regimes)
    if not found:
        raise UserError(f"{source}: methods is missing: a list of methods, or a mapping of names to options.")
    return found


def _seeds(value: Any, where: str) -> list[int]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        _check_count(value, where)
        return list(range(value))
    whole = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not whole or not value or len(set(value)) < len(value):
        raise UserError(f"{where} must be a number of seeds or a list of different whole numbers, not {value!r}.")
    return list(value)


def _evaluation(value: Any, source: str) -> dict[str, Any]:
    where = f"{source}: evaluation"
    found: dict[str, Any] = {}
    for key, entry in _mapping(value, where).items():
        check_choice(where, key, (*_EVALUATION, "harder"))
        if key == "harder":
            for name, inner in _mapping(entry, f"{where}: harder").items():
                check_choice(f"{where}: harder", name, _HARDER)
                found[_HARDER[name]] = inner
        else:
            found[_EVALUATION[key]] = entry
    return found


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping, not {value!r}.")
    return {str(key): entry for key, entry in value.items()}


def _check_parts(methods: Mapping[str, _Method], regimes: list[tuple[str, dict[str, Any]]], source: str) -> None:
    parts = [part for regime, _ in regimes for part in regime.split(", ")]
    for name, entry in methods.items():
        for part in entry.regimes or ():
            check_choice(f"{source}: methods: {name}: regimes", str(part), parts)


def _check_unique(runs: list[RunSpec], source: str) -> None:
    seen: dict[str, RunSpec] = {}
    for run in runs:
        if run.id in seen:
            raise UserError(f"{source}: two runs would have the name {run.id!r}; name tasks, regimes or methods apart.")
        seen[run.id] = run


def _check_count(runs: int, source: str) -> None:
    if runs > _MOST_RUNS:
        raise UserError(f"{source}: it asks for {runs:,} runs; {_MOST_RUNS:,} are the most.")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
