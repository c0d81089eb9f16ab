"""One run of a study in a process of its own: ``python -m covgrpo.studies.run_process``.

The job is one JSON line on standard input. Standard output has one JSON line for each step and one at the end. Standard
input stays open as long as the study lives: at its end the process ends too, whatever it is doing, and the run goes on
from its last checkpoint the next time.
"""

import dataclasses
import fcntl
import json
import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from covgrpo.errors import UserError
from covgrpo.runs.options import TrainOptions, options_from_dict
from covgrpo.studies.spec import RunSpec

BUSY, REFUSED, STOPPED = 75, 2, 130  # exit codes: another process has the run, bad input, a signal
_ENDING_S = 5.0  # in which the processes of a study that was killed are gone


@dataclass(frozen=True)
class Job:
    """What the process is told: the run, the study's name, the folder of its work and the place of its record."""

    study: str
    regime: str
    method: str
    seed: int
    options: dict[str, Any]
    work: str
    record: str

    @classmethod
    def of(cls, study: str, spec: RunSpec, work: Path, record: Path) -> "Job":
        """The job of a run."""
        options = dataclasses.asdict(spec.options)
        return cls(study, spec.regime, spec.method, spec.seed, options, str(work), str(record))

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))


def run_job(job: Job, say: Any = lambda message: None) -> int:
    """Train the run, or go on with it, keep its record and remove its work; returns an exit code.

    A run whose record is there is finished, and only what is left of its work is removed.
    """
    work, record = Path(job.work), Path(job.record)
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        if not _taken(lock):
            return BUSY
        if not record.exists():
            code = _train(job, work / "run", record, say)
            if code:
                return code
        shutil.rmtree(work, ignore_errors=True)
    return 0


def _taken(lock: IO[str]) -> bool:
    """Take the lock, which is gone with its process, however that ends; one that is just ending is waited for."""
    deadline = time.monotonic() + _ENDING_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        else:
            return True


def _train(job: Job, folder: Path, record: Path, say: Any) -> int:
    from covgrpo.runs.record.folder import RunFolder
    from covgrpo.runs.train import Watcher, run_training
    from covgrpo.studies.records import check_in_work, keep

    started = (folder / "config.json").exists()
    if started:
        check_in_work(RunFolder(folder), _spec(job))
    else:
        shutil.rmtree(folder, ignore_errors=True)  # what a process left that was killed before it began
    values = {**job.options, "output": str(folder), "resume": started}
    options = options_from_dict(values, f"run {job.regime} {job.method} seed {job.seed}")
    watcher = Watcher(
        message=lambda text: print(text, file=sys.stderr, flush=True),
        started=lambda step, steps: say({"step": step}),
        step=lambda metrics: say({"step": metrics["step"]}),
    )
    result = run_training(options, watcher)
    if result.stopped_by:
        return STOPPED
    plain = _spec(job)
    keep(job.study, plain, RunFolder(folder), record)
    return 0


def _spec(job: Job) -> RunSpec:
    options: TrainOptions = options_from_dict(job.options, "job")
    return RunSpec(job.regime, job.method, job.seed, options)


def _end_with(parent: IO[str]) -> None:
    """End this process when the study's end of the pipe is closed, as by its death."""
    parent.read()
    os._exit(STOPPED)


def main() -> int:
    """Run the job on standard input."""
    from covgrpo.cpu_defaults import set_cpu_defaults

    set_cpu_defaults()
    job = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print goes to the log

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        code = run_job(job, say)
    except UserError as error:
        say({"error": str(error)})
        return REFUSED
    except BaseException as error:
        say({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})
        raise
    return code


if __name__ == "__main__":
    sys.exit(main())
