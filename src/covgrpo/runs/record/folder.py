"""The folder of a run, readable without covgrpo: JSON objects, one JSON object a line, and model folders.

``config.json`` (what the run was asked to do), ``environment.json`` (what it ran on), ``metrics.jsonl``,
``samples.jsonl``, ``tokens.jsonl``, ``histograms.jsonl`` and ``evaluations.jsonl`` (one record a line, each with its
``step``), ``checkpoint-N/``, ``model/`` (the end result), and ``resume-N.json`` (configuration and environment of the
N-th resumption). Standard library only.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import load_json, read_json_lines, replacing, user_path
from covgrpo.runs.record.checkpoint import is_complete, is_complete_of_first, lacking_of_others
from covgrpo.runs.record.json_values import differences, plain, shown

_PROBE_BYTES = 1 << 20
# What a process may leave that was killed before it had written config.json, or while it wrote a file anew.
_TORN_START = re.compile(r"environment\.json|\.[a-z]+(-\d+)?\.jsonl?\.\d+\.tmp|\.probe-.*")
_TORN_FILES = ".*.json*.*.tmp"
# Keys that say where and how a run goes on, not what it computes.
RESUME_IGNORES = frozenset({"resume", "output"})


@dataclass(frozen=True)
class RunFolder:
    """A run's folder at ``path``. ``RunFolder(path)`` only reads and appends; ``RunFolder.create`` starts a run.

    In distributed training only the first process may create it or append to it.
    """

    path: Path
    _locks: list[int] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        resume: bool = False,
        ignore: Collection[str] = RESUME_IGNORES,
        lock: bool = False,
    ) -> "RunFolder":
        """Makes the folder and writes config.json and environment.json; on ``resume`` checks the one that is there.

        A resumed run keeps both files as they were and gets a ``resume-N.json``. ``ignore`` holds the (dotted) keys
        that may differ then. With ``lock`` the folder is this object's until ``release`` or the end of the process.

        Raises:
            UserError: the path holds another run, other files or is a file; another process is at work there; no
                permission; no space; on ``resume``, no run there, a configuration that differs, or a link to a file.
        """
        from covgrpo.runs.record.environment import describe_environment

        run = cls(user_path(path))
        run._check_target(resume)
        values = plain(config)
        if resume:
            run._check_same(values, ignore)
        with _named_errors(run.path):
            made = not run.path.exists()
            run.path.mkdir(parents=True, exist_ok=True)
            if lock:
                run._take(resume)
            try:
                _probe(run.path)
                run._write_start(values, describe_environment(), resume)
            except BaseException:
                if made:
                    run.discard()
                run.release()
                raise
        return run

    def release(self) -> None:
        """Let another process have the folder; done by itself when the process ends, however it ends."""
        while self._locks:
            os.close(self._locks.pop())

    @property
    def config(self) -> Path:
        """Path of ``config.json``."""
        return self.path / "config.json"

    @property
    def environment(self) -> Path:
        """Path of ``environment.json``."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """Path of ``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Path of ``samples.jsonl``."""
        return self.path / "samples.jsonl"

    @property
    def tokens(self) -> Path:
        """Path of ``tokens.jsonl``."""
        return self.path / "tokens.jsonl"

    @property
    def histograms(self) -> Path:
        """Path of ``histograms.jsonl``."""
        return self.path / "histograms.jsonl"

    @property
    def evaluations(self) -> Path:
        """Path of ``evaluations.jsonl``."""
        return self.path / "evaluations.jsonl"

    @property
    def model(self) -> Path:
        """Path of the final model's folder."""
        return self.path / "model"

    def write_json(self, name: str, value: Any) -> Path:
        """Writes ``value`` to the file ``name`` of the folder, whole or not at all; NaN and infinities become null.

        Raises:
            UserError: no space or no permission.
            TypeError: a value that JSON has no form for.
        """
        target = self.path / name
        with _named_errors(self.path), replacing(target) as file:
            file.write(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return target

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one record to metrics.jsonl, flushed; NaN and infinities become null. Raises as ``write_json``."""
        self._append(self.metrics, [record])

    def append_samples(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends records to samples.jsonl, flushed. Raises as ``write_json``."""
        self._append(self.samples, records)

    def append_tokens(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends records to tokens.jsonl, flushed. Raises as ``write_json``."""
        self._append(self.tokens, records)

    def append_histograms(self, record: Mapping[str, Any]) -> None:
        """Appends one record to histograms.jsonl, flushed. Raises as ``write_json``."""
        self._append(self.histograms, [record])

    def append_evaluation(self, record: Mapping[str, Any]) -> None:
        """Appends one record to evaluations.jsonl, flushed. Raises as ``write_json``."""
        self._append(self.evaluations, [record])

    def read_evaluations(self) -> list[dict[str, Any]]:
        """The records of evaluations.jsonl, as ``read_metrics`` gives those of metrics.jsonl."""
        return [record for record, _ in _records(self.evaluations)]

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, in order; none if there is no such file.

        A torn last line, left by a process that was killed, is left out.

        Raises:
            UserError: any other line that is no JSON object, or a file that cannot be read.
        """
        return [record for record, _ in _records(self.metrics)]

    def truncate_after(self, step: int) -> None:
        """Drops records with a ``step`` above ``step`` from the JSON-lines files, each file atomically.

        For going on from checkpoint ``step``. Records without a step stay; a torn last line goes.

        Raises:
            UserError: a damaged line before the last, no space or no permission.
        """
        for path in self._record_files():
            if path.exists():
                self._rewrite(path, lambda record: (record.get("step") or 0) <= step)

    def put_records_aside(self) -> Path | None:
        """Moves the records of an earlier run into ``earlier-N``, a folder of their own; None where there are none.

        Raises:
            UserError: no permission.
        """
        records = [path for path in self._record_files() if path.exists()]
        if not records:
            return None
        with _named_errors(self.path):
            aside = self.path / f"earlier-{1 + sum(1 for _ in self.path.glob('earlier-*'))}"
            aside.mkdir()
            for path in records:
                path.rename(aside / path.name)
        return aside

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, by step: folders ``checkpoint-N`` with all parts, and these whole."""
        return [folder for folder in self._checkpoint_folders() if is_complete(folder)]

    def latest_checkpoint(self) -> Path | None:
        """The complete checkpoint of the highest step, or None."""
        return next(reversed(self.checkpoints()), None)

    def checkpoint_to_resume(self) -> Path | None:
        """As ``latest_checkpoint``; None where none was finished, so that nothing is lost by starting anew.

        Raises:
            UserError: there are checkpoints, and each lacks what other processes wrote, elsewhere as it seems.
        """
        latest = self.latest_checkpoint()
        parts = [folder for folder in self._checkpoint_folders() if latest is None and is_complete_of_first(folder)]
        if parts:
            raise UserError(
                f"{parts[-1]} lacks {', '.join(lacking_of_others(parts[-1]))} of other processes, and no checkpoint of "
                "the run is complete; copy there what they wrote on their machines, or remove it to start anew."
            )
        return latest

    def discard(self) -> None:
        """Takes back a run that ended before its first step, so that the next try finds the path free."""
        if self.metrics.exists():
            return
        with suppress(OSError):
            for path in (self.config, self.environment, self.path / "eval.json", *self._record_files()):
                path.unlink(missing_ok=True)
            self.path.rmdir()

    def _checkpoint_folders(self) -> list[Path]:
        matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in self.path.glob("checkpoint-*"))
        return [path for _, path in sorted((int(match[1]), path) for match, path in matches if match)]

    def _record_files(self) -> tuple[Path, ...]:
        return self.metrics, self.samples, self.tokens, self.histograms, self.evaluations

    def _rewrite(self, path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
        with _named_errors(self.path), replacing(path) as file:
            file.writelines(line + "\n" for record, line in _records(path) if keep(record))

    def _mend_ends(self) -> None:
        """Drops torn last lines: the next record would be appended to them."""
        for path in self._record_files():
            if path.exists() and not path.read_bytes().endswith(b"\n"):
                self._rewrite(path, lambda record: True)

    def _append(self, path: Path, records: Iterable[Mapping[str, Any]]) -> None:
        # All lines before any write: a record that has no JSON form leaves the file as it was.
        text = "".join(json.dumps(plain(r), ensure_ascii=False, allow_nan=False) + "\n" for r in records)
        with _named_errors(self.path), path.open("a", encoding="utf-8") as file:
            file.write(text)  # closing flushes

    def _check_target(self, resume: bool) -> None:
        with _named_errors(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"{self.path} is a file; choose another --output")
            holds_run = self.config.exists() or self.metrics.exists()
            if resume and not self.config.exists():
                raise UserError(f"{self.path} has no config.json to resume from; leave out --resume to start there")
            if resume:
                self._check_links()
                return
            if holds_run:
                raise UserError(f"{self.path} holds another run; choose another --output or pass --resume")
            if self.path.is_dir() and any(not _TORN_START.fullmatch(path.name) for path in self.path.iterdir()):
                raise UserError(f"{self.path} is a folder with other files and no run; choose another --output")

    def _check_links(self) -> None:
        """A run makes no links to files: through one that somebody put there it would write elsewhere."""
        for path in (*self.path.iterdir(), *self.model.glob("*")):
            if path.is_symlink() and not path.is_dir():
                raise UserError(f"{path} is a link to a file, which resuming would write to; put the file in its place")

    def _take(self, resume: bool) -> None:
        """Lock the folder against another process, and look again: one may have begun or ended in between.

        By the folder itself, which needs no file more. A file system without locks is used without one.
        """
        lock = os.open(self.path, os.O_RDONLY)
        self._locks.append(lock)
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise UserError(
                f"another process is at work in {self.path}; wait for its end or choose another --output"
            ) from error
        except (ImportError, OSError):
            self.release()
        try:
            self._check_target(resume)
        except UserError:
            self.release()
            raise

    def _check_same(self, config: Any, ignore: Collection[str]) -> None:
        try:
            old = load_json(self.config)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.config} ({error}); choose another --output") from error
        for key, before, now in differences(old, config, ignore):
            raise UserError(
                f"cannot resume {self.path}: its {key} is {shown(before)} and now {shown(now)}; "
                "choose another --output or the same settings"
            )

    def _write_start(self, config: Any, environment: Any, resume: bool) -> None:
        for path in self.path.glob(_TORN_FILES):
            path.unlink(missing_ok=True)
        if resume:
            self._mend_ends()
            count = sum(1 for _ in self.path.glob("resume-*.json"))
            self.write_json(f"resume-{count + 1}.json", {"config": config, "environment": environment})
            return
        # environment.json first: config.json marks the folder as a run.
        self.write_json("environment.json", environment)
        self.write_json("config.json", config)


def _records(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each record of a JSON-lines file with its line; a torn last line is left out."""
    if not path.exists():
        return
    with _named_errors(path.parent):
        for line in read_json_lines(path):
            error = line.error
            if error is None and not isinstance(line.value, dict):
                error = ValueError("not an object")
            if error is not None:
                if not line.ended:
                    return  # torn: lines are written with their end
                raise UserError(f"{path} line {line.number} is no JSON object ({error})") from error
            yield line.value, line.raw.decode("utf-8").rstrip("\r")


def _probe(folder: Path) -> None:
    """Writes and removes a megabyte: permissions and free space say less than trying."""
    with tempfile.TemporaryFile(prefix=".probe-", dir=folder) as file:
        file.write(b"\0" * _PROBE_BYTES)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else folder
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot use the run folder {folder} ({where}: {reason}); choose another --output") from error
