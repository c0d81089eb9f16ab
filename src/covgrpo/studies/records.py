"""What is kept of a finished run: one small JSON file with its options, its curves and its evaluations, no weights."""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import load_json, replacing, writing
from covgrpo.runs.options import TrainOptions
from covgrpo.runs.record.folder import RunFolder
from covgrpo.runs.record.json_values import differences
from covgrpo.studies.record_check import what_is_wrong
from covgrpo.studies.spec import RunSpec

VERSION = 1
# Metrics of each step that are kept, to four digits.
CURVES = ("reward", "entropy", "grad_norm")
PASS_K = (2, 4, 8, 16)
# What an evaluation says of each problem.
_BY_PROBLEM = ("correct", "majority", "majority_correct")
_FIELDS = ("version", "study", "regime", "method", "seed", "options", "environment", "curves", "evaluations")
# Options that change where and how a run goes, not what it computes.
_NEUTRAL = {
    *("output", "resume", "report_to", "save_steps", "samples_per_step", "tokens_per_step", "verifier_workers"),
    *("verifier_timeout", "verifier_memory", "evaluate"),
}


@dataclass(frozen=True)
class Record:
    """A finished run.

    Args:
        regime: see :class:`~covgrpo.studies.spec.RunSpec`.
        method: likewise.
        seed: likewise.
        options: those of ``covgrpo train`` that are not at their default.
        environment: versions, processor and threads.
        curves: metric -> value at each step; ``None`` where it was no finite number.
        evaluations: records of ``evaluations.jsonl``; between the first and the last with ``pass``, k -> pass@k for
            2, 4, 8, 16 as far as there are samples, in place of what is said of each problem.

    """

    regime: str
    method: str
    seed: int
    options: dict[str, Any]
    environment: dict[str, Any]
    curves: dict[str, list[float | None]]
    evaluations: list[dict[str, Any]]


def keep(study: str, spec: RunSpec, folder: RunFolder, target: Path) -> None:
    """Write the record of a finished run, whole or not at all; it is built beside the run's folder.

    Raises:
        UserError: the run's folder is damaged, or the record cannot be written.
    """
    metrics = folder.read_metrics()
    if [record["step"] for record in metrics] != list(range(1, spec.options.steps + 1)):
        raise UserError(f"{folder.path} does not hold each of its {spec.options.steps} steps once.")
    environment = load_json(folder.environment)
    value = {
        "version": VERSION,
        "study": study,
        "regime": spec.regime,
        "method": spec.method,
        "seed": spec.seed,
        "options": _changed(spec.options),
        "environment": {key: environment.get(key) for key in ("versions", "git", "cpu", "torch_threads")},
        "curves": {
            name: [_short(record.get(name)) for record in metrics]
            for name in CURVES
            if any(name in record for record in metrics)
        },
        "evaluations": _thinned(folder.read_evaluations()),
    }
    _write_json(folder.path.with_name("record.json"), target, value)


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        UserError: the file is none, lacks a field, or holds in one what no run writes there.
    """
    try:
        value = load_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the record {path} ({error}).") from error
    missing = [name for name in _FIELDS if not isinstance(value, dict) or name not in value]
    if missing:
        raise UserError(f"{path} is no record of a run: {missing[0]!r} is missing.")
    if value["version"] != VERSION:
        raise UserError(f"{path}: version is {value['version']!r}; this covgrpo reads {VERSION}.")
    if (wrong := what_is_wrong(value)) is not None:
        raise UserError(f"{path} is no record of a run: {wrong}.")
    return Record(**{field.name: value[field.name] for field in dataclasses.fields(Record)})


def read_records(folder: Path, runs: Sequence[RunSpec]) -> dict[str, Record]:
    """Read the records of those runs that are finished: run's id -> record.

    Raises:
        UserError: a damaged record, or one of a run with other options; names the file, the option and both values.
    """
    found = {}
    for spec in runs:
        path = record_path(folder, spec)
        if path.exists():
            found[spec.id] = read_record(path)
            _check_same(path, found[spec.id], spec)
    return found


def adopt(study: str, folder: Path, runs: Sequence[RunSpec], other: Path) -> list[RunSpec]:
    """Take over another study's records of runs with the same options, for runs that have no record yet.

    Options hold the seed, the first model and the evaluation, so such a run would give the same numbers. A record that
    was taken over says from which study.

    Returns:
        The runs whose record was taken over.

    Raises:
        UserError: no records lie there, one is damaged, or one cannot be written.
    """
    paths = sorted((other / "records").glob("*.json"))
    if not paths:
        raise UserError(f"{other} holds no records of a study (no file records/*.json).")
    known = [(path, read_record(path)) for path in paths]
    taken = []
    for spec in runs:
        target = record_path(folder, spec)
        options = _changed(spec.options)
        same = next((path for path, record in known if not differences(record.options, options)), None)
        if same is None or target.exists():
            continue
        value = load_json(same)
        source = {"study": value["study"], "run": same.stem}
        value |= {"study": study, "regime": spec.regime, "method": spec.method, "seed": spec.seed, "taken_from": source}
        _write_json(folder / f"{spec.id}.part", target, value)
        taken.append(spec)
    return taken


def record_path(folder: Path, spec: RunSpec) -> Path:
    """Where the record of a run lies."""
    return folder / "records" / f"{spec.id}.json"


def _check_same(path: Path, record: Record, spec: RunSpec) -> None:
    for name in ("regime", "method", "seed"):
        if (theirs := getattr(record, name)) != (ours := getattr(spec, name)):
            raise UserError(f"{path} is the record of another run: its {name} is {theirs!r} and the study's {ours!r}.")
    _check_options(path, record.options, spec, "remove the record")


def check_in_work(run: RunFolder, spec: RunSpec) -> None:
    """Check that a run which has been started is the one that the study asks for now.

    Raises:
        UserError: it was started with other options; names the folder, the option and both values.
    """
    try:
        options = _without_defaults(load_json(run.config)["options"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # resuming says what is wrong with the file
    _check_options(run.path, options, spec, "remove the folder to begin the run anew")


def _check_options(path: Path, made_with: dict[str, Any], spec: RunSpec, way_out: str) -> None:
    for key, before, now in differences(made_with, _changed(spec.options)):
        raise UserError(
            f"{path} was made with {key} = {json.dumps(before)} and the study now says {json.dumps(now)}; "
            f"{way_out}, or give the study another name."
        )


def _changed(options: TrainOptions) -> dict[str, Any]:
    return _without_defaults(dataclasses.asdict(options))


def _without_defaults(options: dict[str, Any]) -> dict[str, Any]:
    default = dataclasses.asdict(TrainOptions())
    return {
        name: value
        for name, value in options.items()
        if name not in default or (value != default[name] and name not in _NEUTRAL)
    }


def _thinned(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is said of each problem is kept of the first and the last evaluation only; of the others pass@k."""
    ends = (0, len(evaluations) - 1)
    return [entry if place in ends else _summed_up(entry) for place, entry in enumerate(evaluations)]


def _summed_up(entry: dict[str, Any]) -> dict[str, Any]:
    """The evaluation of one step, and that on the other task in it, without what is said of each problem."""
    found = {**entry, "results": [_without_problems(result) for result in entry["results"]]}
    return {**found, "other": _summed_up(entry["other"])} if "other" in entry else found


def _without_problems(result: dict[str, Any]) -> dict[str, Any]:
    from covgrpo.evaluation.intervals import pass_at_k  # its package loads torch

    n = result["samples"]
    rates = {str(k): statistics.fmean(pass_at_k(n, c, k) for c in result["correct"]) for k in PASS_K if k <= n}
    kept = {key: value for key, value in result.items() if key not in _BY_PROBLEM}
    return {**kept, "pass": rates} if rates else kept


def _short(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")


def _write_json(beside: Path, target: Path, value: dict[str, Any]) -> None:
    """Write ``target`` whole or not at all: first under another name on the same file system."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n"
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, beside) as file:
            file.write(text)
