"""Reads what a run has left behind, however it ended; what cannot be used is skipped and named."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import MOST, load_json, read_json_lines, user_path

_MOST_STEPS = 2**53  # whole numbers up to here are whole in the page as well
_NAMED = 3  # damaged lines that are named one by one, for each file


@dataclass
class RunRecords:
    """A run's records.

    Args:
        path: the run's folder.
        label: what the report calls it.
        labelled: by the user, so that runs of one label belong together.
        config: ``config.json``, or empty.
        evaluation: ``eval.json``, or empty.
        metrics: one record a step, by step; NaN, infinities and numbers beyond 1e100 are ``None``.
        skipped: what was left out and why, a sentence each.

    """

    path: Path
    label: str
    config: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    labelled: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The options of ``covgrpo train``; empty for another trainer's run."""
        options = self.config.get("options")
        return options if isinstance(options, dict) else {}

    @property
    def seed(self) -> int | None:
        """The run's seed, where it is known."""
        seed = self.options.get("seed")
        return seed if isinstance(seed, int) else None

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        """The records of another JSON-lines file of the folder that have a step, in the order of the file."""
        return _records(self.path / name, self.skipped.append)


def read_run(path: str | Path, label: str | None = None) -> RunRecords:
    """Read a run folder.

    Raises:
        UserError: there is no such folder, or it holds no metrics.
    """
    folder = user_path(path)
    if not folder.is_dir():
        raise UserError(f"{folder} is no run folder.")
    if not (folder / "metrics.jsonl").is_file():
        if _by_a_trainer(folder):
            raise UserError(
                f"{folder} is a trainer's output without metrics.jsonl; for one of a TRL script, let it train with "
                "trainer.add_callback(RunWriter(trainer)), from covgrpo.callbacks."
            )
        raise UserError(f"{folder} holds no metrics.jsonl; a report needs the folder of a run.")
    run = RunRecords(folder, label or folder.resolve().name, labelled=bool(label))
    run.config = _json_object(folder / "config.json", run.skipped.append)
    run.evaluation = _json_object(folder / "eval.json", run.skipped.append)
    # A resumed run may have written a step twice: the later record counts.
    by_step = {record["step"]: record for record in run.records("metrics.jsonl")}
    run.metrics = [by_step[step] for step in sorted(by_step)]
    _note_missing_steps(run)
    return run


def _note_missing_steps(run: RunRecords) -> None:
    steps = [record["step"] for record in run.metrics]
    if not steps:
        run.skipped.append("metrics.jsonl: no step yet")
        return
    every = min((b - a for a, b in pairwise(steps)), default=1)
    expected = (steps[-1] - steps[0]) // every + 1
    if expected > len(steps):
        run.skipped.append(f"metrics.jsonl: {expected - len(steps)} of {expected} steps are missing")
    for name in ("reward", "entropy", "grad_norm", "loss"):
        gaps = sum(1 for record in run.metrics if name in record and record[name] is None)
        if gaps:
            run.skipped.append(f"metrics.jsonl: {name} is no finite number in {gaps} of {len(steps)} steps")


def _json_object(path: Path, skip: Callable[[str], None]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = load_json(path)
        value = _drawable(value)
    except (OSError, ValueError, RecursionError) as error:
        skip(f"{path.name}: cannot be read ({error})")
        return {}
    return value if isinstance(value, dict) else {}


def _drawable(value: Any) -> Any:
    """JSON's value with ``None`` for each number in it that cannot be drawn."""
    if isinstance(value, dict):
        return {name: _drawable(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_drawable(entry) for entry in value]
    return value if _is_drawable(value) else None


def _by_a_trainer(folder: Path) -> bool:
    """Whether transformers' trainer left its marks there."""
    return (folder / "training_args.bin").is_file() or any(folder.glob("checkpoint-*/trainer_state.json"))


def _records(path: Path, skip: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    damaged = 0
    try:
        for line in read_json_lines(path):
            if _is_record(line.value):
                yield _finite(line.value)
                continue
            damaged += 1
            if not line.ended:
                skip(f"{path.name} line {line.number}: torn, as by a process that was stopped while writing")
            elif damaged <= _NAMED:
                skip(f"{path.name} line {line.number}: no JSON object with a step")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot read {path} ({(error.strerror or str(error)).lower()}).") from error
    if damaged > _NAMED:
        skip(f"{path.name}: {damaged} lines in all are damaged")


def _is_record(value: Any) -> bool:
    """Whether it is an object with a step."""
    step = value.get("step") if isinstance(value, dict) else None
    return isinstance(step, int) and not isinstance(step, bool) and 0 <= step <= _MOST_STEPS


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """The record, with ``None`` in place of its own numbers that cannot be drawn; lists are for who draws them."""
    for name, value in record.items():
        if not _is_drawable(value):
            record[name] = None
    return record


def _is_drawable(value: Any) -> bool:
    return not isinstance(value, int | float) or abs(value) <= MOST
