"""The faults of ``faults.py``, each with what must hold after it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_processes import COUNT, FULL, KILL_AFTER, KILL_TORN, Ended, finish, place, provide, run, shim, start

from covgrpo.runs.record.folder import RunFolder

# A checkpoint after each step, of which the third is in the middle of a rollout batch.
TRAIN = [
    *("train", "--task", "own.tasks:letters", "--model", "tiny", "--steps", "4", "--schedule-steps", "4"),
    *("--prompts-per-step", "2", "--num-generations", "4", "--max-completion-length", "4", "--save-steps", "1"),
    *("--num-iterations", "2", "--learning-rate", "1e-3", "--threads", "1", "--verifier-timeout", "60"),
    *("--verifier-workers", "1", "--output", "run"),
]
EVAL = [
    *("eval", "tiny", "--benchmark", "problems.jsonl", "--records", "kept/records.jsonl", "--samples", "2"),
    *("--max-completion-length", "4", "--batch-size", "3", "--verifier-workers", "1", "--json"),
]
RECORDS = ("samples.jsonl", "tokens.jsonl", "histograms.jsonl")


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: a sentence that was said instead of going on, and what should not have happened."""

    said: str = ""
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Left:
    """What a run leaves but for its times."""

    weights: bytes
    metrics: list[dict[str, Any]]
    records: list[bytes]
    names: list[str]

    @classmethod
    def of(cls, folder: Path) -> "Left":
        """Read a run's folder."""
        names = [path.name for path in folder.iterdir() if not path.name.startswith("resume-")]
        records = [(folder / name).read_bytes() for name in RECORDS]
        return cls((folder / "model" / "model.safetensors").read_bytes(), untimed(folder), records, sorted(names))


def untimed(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without times; a torn last line is left out."""
    records = RunFolder(folder).read_metrics()
    return [{k: v for k, v in one.items() if k != "step_time" and not k.startswith("time/")} for one in records]


def one_sentence(ended: Ended) -> str | None:
    """What a process said that refused: one line of ``covgrpo: ...``."""
    lines = [line for line in ended.err.splitlines() if line.strip() and not line.startswith("completions: ")]
    return lines[0] if ended.code == 2 and len(lines) == 1 and lines[0].startswith("covgrpo: ") else None


def shown(ended: Ended) -> str:
    """The end of what it said, in one line."""
    return f"code {ended.code}: {' | '.join(ended.err.strip().splitlines()[-3:])[-400:]}"


class Bench:
    """A folder with runs that nothing happened to, and trials beside them."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.template = provide(self._made("template"))
        problems = [{"id": str(i), "problem": f"{i} + 1?", "answer": str(i + 1)} for i in range(5)]
        (self.template / "problems.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
        self.operations, self.whole, self.seconds = self._count(TRAIN, "run")
        self.reference = Left.of(self.whole / "run")
        self.eval_operations, self.eval_whole, _ = self._count(EVAL, "kept")
        # Stopped after its third checkpoint.
        self.stopped = self._place("stopped")
        words = [word if word != "4" or TRAIN[i - 1] != "--steps" else "3" for i, word in enumerate(TRAIN)]
        _must_end_well(run(self.stopped, words))
        shutil.rmtree(self.stopped / "run" / "model")

    def _made(self, name: str) -> Path:
        (self.folder / name).mkdir(parents=True)
        return self.folder / name

    def _place(self, name: str) -> Path:
        folder = place(self.template, self.folder / name)
        shutil.copy(self.template / "problems.jsonl", folder)
        return folder

    def _arm(self, watched: Path, mode: int, n: int) -> Callable[[], None]:
        return lambda: shim().fault_arm(bytes(watched), mode, n)

    def _count(self, argv: list[str], name: str) -> tuple[int, Path, float]:
        """Run without a fault; how many operations on files it does below ``name``."""
        folder = self._place(f"whole-{name}")
        since = time.monotonic()
        arm = self._arm(folder / name, COUNT, 0)
        pid = start(folder, argv, arm, lambda: print(shim().fault_count(), file=(folder / "count").open("w")) or None)
        ended = finish(pid, folder, since)
        _must_end_well(ended)
        return int((folder / "count").read_text()), folder, ended.seconds

    # --- after a fault ------------------------------------------------------------------------------------------

    def goes_on(self, folder: Path, allow_refusal: bool = False) -> Outcome:
        """Resume the run, or start it where there is none, and compare."""
        path, failures = folder / "run", []
        before = untimed(path) if path.exists() else []
        if before != self.reference.metrics[: len(before)]:
            failures.append("the records before resuming are not those of a whole run")
        kept = {checkpoint.name for checkpoint in RunFolder(path).checkpoints()} if path.exists() else set()
        if len(before) > 1 and not kept:
            failures.append(f"{len(before)} steps are recorded and no checkpoint is complete")
        resume = ["--resume"] if (path / "config.json").exists() else []
        ended = run(folder, [*TRAIN, *resume])
        if ended.code:
            said = one_sentence(ended) if allow_refusal else None
            return Outcome(said or "", failures if said else [*failures, f"going on ended with {shown(ended)}"])
        return Outcome(failures=failures + self.differences(path))

    def differences(self, path: Path) -> list[str]:
        """How a run that went on differs from one that nothing happened to."""
        left = Left.of(path)
        pairs = [(name, getattr(left, name), getattr(self.reference, name)) for name in vars(left)]
        return [
            f"{name} differ" + (f": {set(one) ^ set(other)}" if name == "names" else "")
            for name, one, other in pairs
            if one != other
        ]

    # --- kinds of faults ----------------------------------------------------------------------------------------

    def killed_at_moment(self, rng: random.Random) -> tuple[str, Outcome]:
        """SIGKILL, at any moment."""
        folder, wait_s = self._place("trial"), rng.uniform(0.0, self.seconds)
        run(folder, TRAIN, signals=[(wait_s, signal.SIGKILL)])
        return f"after {wait_s:.2f} s", self.goes_on(folder)

    def killed_at_operation(self, rng: random.Random, index: int, many: int) -> tuple[str, Outcome]:
        """SIGKILL right after an operation on a file; every other time a write is cut in half.

        The operation is drawn; with as many trials as there are operations or more (``many``), each has its turn.
        """
        folder, n = self._place("trial"), rng.randint(1, self.operations)
        if many >= self.operations:
            n = index % self.operations + 1
        mode = KILL_TORN if index % 2 else KILL_AFTER
        ended = run(folder, TRAIN, self._arm(folder / "run", mode, n))
        where = f"operation {n} of {self.operations}{', torn' if index % 2 else ''}"
        if ended.code != -signal.SIGKILL:
            return where, Outcome(failures=[f"was not killed: {shown(ended)}"])
        return where, self.goes_on(folder)

    def full(self, rng: random.Random) -> tuple[str, Outcome]:
        """No space from one operation on."""
        folder, n = self._place("trial"), rng.randint(1, self.operations)
        ended = run(folder, TRAIN, self._arm(folder / "run", FULL, n))
        said = one_sentence(ended)
        found = self.goes_on(folder)
        if ended.code and said is None:
            found.failures.append(f"full disk: {shown(ended)}")
        name = (said or "").replace(str(folder), "")
        return f"operation {n} of {self.operations}", Outcome(name.partition(" (")[0], found.failures)

    def terminated_twice(self, rng: random.Random) -> tuple[str, Outcome]:
        """SIGTERM, and again."""
        waits = (rng.uniform(0.3, 1.0) * self.seconds, rng.uniform(0.0, 0.2))
        folder = self._place("trial")
        ended = run(folder, TRAIN, signals=[(wait_s, signal.SIGTERM) for wait_s in waits])
        found = self.goes_on(folder)
        if ended.code not in (0, 143, -signal.SIGTERM) or "Traceback" in ended.err:
            found.failures.append(f"two SIGTERM: {shown(ended)}")
        return f"after {waits[0]:.2f} s and {waits[1]:.2f} s", found

    def eval_killed(self, rng: random.Random, index: int) -> tuple[str, Outcome]:
        """SIGKILL at a file operation of a first or a resumed evaluation."""
        return self._eval(KILL_TORN if index % 2 else KILL_AFTER, rng)

    def eval_full(self, rng: random.Random) -> tuple[str, Outcome]:
        """No space from one operation on."""
        return self._eval(FULL, rng)

    def _eval(self, mode: int, rng: random.Random) -> tuple[str, Outcome]:
        folder, n = self._place("trial"), rng.randint(1, self.eval_operations)
        records, failures = folder / "kept" / "records.jsonl", []
        whole = (self.eval_whole / "kept" / "records.jsonl").read_bytes()
        if started := rng.random() < 0.5:  # half of it is there, the last line torn
            records.parent.mkdir()
            records.write_bytes(whole[: rng.randrange(len(whole) // 2, len(whole))])
            n = rng.randint(1, 4)
        before = _batches(records)
        ended = run(folder, EVAL, self._arm(folder / "kept", mode, n))
        if mode == FULL and ended.code and one_sentence(ended) is None:
            failures.append(f"full disk: {shown(ended)}")
        if _batches(records) < before:
            failures.append(f"{before} completions were recorded, and {_batches(records)} are left")
        again = run(folder, EVAL)
        if again.code:
            failures.append(f"going on ended with {shown(again)}")
        elif again.out != (self.eval_whole / "out").read_text() or records.read_bytes() != whole:
            failures.append("the result differs")
        if litter := sorted(path.name for path in records.parent.glob("*") if path != records):
            failures.append(f"left behind: {litter}")
        return f"operation {n}{' of one that goes on' if started else ''}", Outcome(failures=failures)

    def damaged(self, rng: random.Random, index: int) -> tuple[str, Outcome]:
        """One file of the last checkpoint is not there, cut in half, or empty: each in turn, then again."""
        checkpoint = self.stopped / "run" / "checkpoint-3"
        names = sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())
        kinds = [(name, how) for how in ("missing", "half", "empty") for name in names]
        name, how = kinds[index % len(kinds)]
        folder = self._place("trial")
        shutil.copytree(self.stopped / "run", folder / "run")
        file = folder / "run" / "checkpoint-3" / name
        if how == "missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if how == "half" else 0])
        return f"{name} {how}", self.goes_on(folder)

    # --- faults that are tried once -----------------------------------------------------------------------------

    def single_cases(self) -> dict[str, Callable[[], Outcome | None]]:
        """By name; None comes of those that this user has no rights for."""
        return {
            "train: a real disk that is full (tmpfs)": self._small_disk,
            "train: a read-only disk": self._read_only,
            "train: the clock a day back, and files from the future": self._clock,
            "train: two processes on one run folder": self._two,
            "train: a verifier out of memory": lambda: self._worker("greedy"),
            "train: a verifier's worker killed while it works": lambda: self._worker("shot"),
            "train: standard output closed": lambda: self._output(_closed),
            "train: the reader of the output gone": lambda: self._output(_broken_pipe),
        }

    def _small_disk(self) -> Outcome | None:
        failures: list[str] = []
        for kib in (64, 1200, 1600, 2200, 3000):
            folder = self._place("trial")
            with _mounted(folder / "run", f"size={kib}k") as can_mount:
                if not can_mount:
                    return None
                ended = run(folder, TRAIN)
                if ended.code and one_sentence(ended) is None:
                    failures.append(f"{kib} KiB: {shown(ended)}")
                subprocess.run(["mount", "-o", "remount,size=64m", folder / "run"], check=True)
                if ended.code:
                    failures += [f"{kib} KiB: {text}" for text in self.goes_on(folder).failures]
        return Outcome(failures=failures)

    def _read_only(self) -> Outcome | None:
        folder = self._place("trial")
        with _mounted(folder / "run", "size=64m") as can_mount:
            if not can_mount:
                return None
            shutil.copytree(self.stopped / "run", folder / "run", dirs_exist_ok=True)
            subprocess.run(["mount", "-o", "remount,ro", folder / "run"], check=True)
            ended = run(folder, [*TRAIN, "--resume"])
            said = one_sentence(ended)
            subprocess.run(["mount", "-o", "remount,rw", folder / "run"], check=True)
            found = self.goes_on(folder)
        return Outcome(said or "", found.failures + ([] if said else [f"read-only: {shown(ended)}"]))

    def _clock(self) -> Outcome:
        folder = self._place("trial")
        shutil.copytree(self.stopped / "run", folder / "run")
        future = time.time() + 86_400
        for path in (folder / "run").rglob("*"):
            os.utime(path, (future, future))
        ended = run(folder, [*TRAIN, "--resume"], lambda: shim().fault_clock(86_400))
        failures = self.differences(folder / "run") if ended.code == 0 else [shown(ended)]
        times = [record["step_time"] for record in RunFolder(folder / "run").read_metrics()]
        return Outcome(failures=failures + [f"step_time {t}" for t in times if not 0 <= t < 60])

    def _two(self) -> Outcome:
        folder = self._place("trial")
        since = time.monotonic()
        first = start(folder, TRAIN)
        while not (folder / "run" / "metrics.jsonl").exists() and time.monotonic() - since < 60:
            time.sleep(0.01)
        os.kill(first, signal.SIGSTOP)  # at work still, however slow the second is
        pid = start(folder, [*TRAIN, "--resume"], label="second-")
        second = finish(pid, folder, time.monotonic(), label="second-")
        os.kill(first, signal.SIGCONT)
        ended, said = finish(first, folder, since), one_sentence(second)
        failures = [] if said and "another process" in said else [f"the second process: {shown(second)}"]
        failures += [f"the first process: {shown(ended)}"] if ended.code else self.differences(folder / "run")
        return Outcome(said or "", failures)

    def _worker(self, verifier: str) -> Outcome:
        folder = self._place("trial")
        ended = run(folder, [*TRAIN, "--task-params", f"verifier=own.tasks:{verifier}"])
        if ended.code or not (folder / verifier).exists():
            return Outcome(failures=[shown(ended)])
        counted = [record["verifier/failures"] for record in RunFolder(folder / "run").read_metrics()]
        return Outcome(failures=[] if sum(counted) in (0, 1, 2) and "Traceback" not in ended.err else [str(counted)])

    def _output(self, spoil: Callable[[], None]) -> Outcome:
        folder = self._place("trial")
        ended = run(folder, TRAIN, spoil)
        failures = [f"said {shown(ended)}"] if "Traceback" in ended.err else []
        if ended.code:
            return Outcome(failures=[*failures, f"ended with {shown(ended)}", *self.goes_on(folder).failures])
        return Outcome(ended.err.strip(), failures + self.differences(folder / "run"))


def _must_end_well(ended: Ended) -> None:
    if ended.code:
        raise RuntimeError(f"a run without a fault ended with {shown(ended)}")


def _batches(records: Path) -> int:
    """Whole lines after the first of a file of recorded completions, in whole batches of three."""
    lines = records.read_bytes().count(b"\n") - 1 if records.exists() else 0
    return max(0, lines) // 3 * 3


def _closed() -> None:
    """As ``>&-`` leaves a process: Python has no standard output then."""
    os.close(1)
    sys.stdout = None  # as the interpreter does


def _broken_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[bool]:
    """A small file system of its own at ``folder``; False where this user may not mount."""
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
