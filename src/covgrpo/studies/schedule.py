"""Runs what a study lacks, side by side, each run in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from covgrpo.errors import UserError
from covgrpo.studies.records import record_path
from covgrpo.studies.run_process import BUSY, STOPPED, Job
from covgrpo.studies.spec import RunSpec, Study


@dataclass
class Listener:
    """What the command line shows; every hook is optional and called under one lock."""

    started: Callable[[RunSpec], None] = lambda spec: None
    step: Callable[[RunSpec, int], None] = lambda spec, step: None
    finished: Callable[[RunSpec, float], None] = lambda spec, seconds: None
    failed: Callable[[RunSpec, str], None] = lambda spec, text: None


@dataclass
class Outcome:
    """How it went: runs finished now, those that failed with why, and the signal that stopped it if any."""

    finished: list[RunSpec] = field(default_factory=list)
    failed: list[tuple[RunSpec, str]] = field(default_factory=list)
    stopped_by: int | None = None


def missing(folder: Path, runs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs without a record, in order."""
    return [spec for spec in runs if not record_path(folder, spec).exists()]


def default_workers(runs: Sequence[RunSpec]) -> int:
    """As many runs at once as the cores allow, by the threads that a run is given (all cores where it is not said)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max((spec.options.threads or cores for spec in runs), default=cores)
    return max(1, cores // threads)


def work_folder(folder: Path, spec: RunSpec) -> Path:
    """Where a run lies while it goes on."""
    return folder / "work" / spec.id


def run_missing(
    study: Study, folder: Path, runs: Sequence[RunSpec], workers: int, listener: Listener | None = None
) -> Outcome:
    """Run what has no record yet.

    A run that is stopped, however, goes on from its last checkpoint when this is called again. A run that fails is
    named and leaves its work and its log; the others go on.

    Args:
        study: the study.
        folder: its folder: ``records/`` and, while runs go on, ``work/``.
        runs: those of this machine's part.
        workers: runs at once.
        listener: told what happens.

    Raises:
        UserError: the folder cannot be used.
    """
    try:
        (folder / "records").mkdir(parents=True, exist_ok=True)
        (folder / "work").mkdir(exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot use the study's folder {folder} ({reason}).") from error
    pool = _Pool(study, folder, listener or Listener(), list(missing(folder, runs)))
    with pool.listening():
        threads = [threading.Thread(target=pool.serve, daemon=True) for _ in range(min(workers, len(pool.queue)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # so that signals are handled
    return pool.outcome


@dataclass
class _Pool:
    study: Study
    folder: Path
    listener: Listener
    queue: list[RunSpec]
    outcome: Outcome = field(default_factory=Outcome)
    processes: set["subprocess.Popen[str]"] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets the running steps finish, with checkpoints; the second ends at once."""
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        again, self.outcome.stopped_by = self.outcome.stopped_by is not None, number
        for process in list(self.processes):
            if again:
                process.kill()
            else:
                process.terminate()

    def serve(self) -> None:
        """Take runs from the queue until there are none, or a signal came."""
        while True:
            with self.lock:
                if not self.queue or self.outcome.stopped_by is not None:
                    return
                spec = self.queue.pop(0)
                self.listener.started(spec)
            since = time.monotonic()
            try:
                code, error = self._run(spec)
            except OSError as problem:
                code, error = 1, str(problem)
            with self.lock:
                self._note(spec, code, error, time.monotonic() - since)

    def _note(self, spec: RunSpec, code: int, error: str, seconds: float) -> None:
        if code == 0:
            self.outcome.finished.append(spec)
            self.listener.finished(spec, seconds)
        elif code == BUSY:
            self._fail(spec, "another process is at it")
        elif self.outcome.stopped_by is None or code not in (STOPPED, -signal.SIGTERM, -signal.SIGKILL):
            log = work_folder(self.folder, spec) / "log.txt"
            self._fail(spec, f"{error or f'exit code {code}'} (see {log})")

    def _fail(self, spec: RunSpec, text: str) -> None:
        self.outcome.failed.append((spec, text))
        self.listener.failed(spec, text)

    def _run(self, spec: RunSpec) -> tuple[int, str]:
        """One run from its start or last checkpoint to its end: exit code, and the worker's own word on an error."""
        work = work_folder(self.folder, spec)
        work.mkdir(parents=True, exist_ok=True)
        job = Job.of(self.study.name, spec, work, record_path(self.folder, spec))
        error = ""
        with (work / "log.txt").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "covgrpo.studies.run_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the study alone, which tells its runs
            )
            assert process.stdin is not None and process.stdout is not None  # noqa: S101 (for the type checker)
            self.processes.add(process)
            if self.outcome.stopped_by is not None:  # a signal that came before the handler could see this process
                process.terminate()
            try:
                process.stdin.write(job.to_json() + "\n")
                process.stdin.flush()
                for line in process.stdout:
                    message = json.loads(line)
                    error = message.get("error", error)
                    if "step" in message:
                        with self.lock:
                            self.listener.step(spec, message["step"])
            except BrokenPipeError:
                pass  # it died before it read its job; the log says why
            finally:
                code = process.wait()
                self.processes.discard(process)
                process.stdout.close()
        return code, error
