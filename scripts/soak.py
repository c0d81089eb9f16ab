"""Hours of one run under watch: does its memory, its open files or its step time grow?

    python scripts/soak.py OUTPUT [--hours 2] [--warm-up 20] [--every 10] [--json FILE] [--measured-only]
                           [-- options of covgrpo train]

Runs ``covgrpo train`` on a small model with evaluation, records and checkpoints, and looks at the trainer and its
worker processes every few seconds. After the hours it stops the run with SIGTERM; called again, it resumes the run and
counts on. Readings are in ``OUTPUT/soak.jsonl``, a part for each call. Needs Linux.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

MB, HOUR = 1e6, 3600.0
# Far more steps than the hours have; a tiny rate, so that the policy goes on sampling what it samples at the start.
_RUN = (
    *("--task", "countdown:?numbers=3&style=compact", "--max-completion-length", "14", "--threads", "1"),
    *("--prompts-per-step", "16", "--num-generations", "8", "--learning-rate", "1e-6", "--steps", "1000000"),
    *("--save-steps", "200", "--eval-steps", "200", "--eval-problems", "50", "--samples-per-step", "4"),
    *("--tokens-per-step", "16", "--verifier-workers", "2"),
)


@dataclass
class Reading:
    """One look at a run. Bytes, seconds, counts; memory is what a process has for itself (USS)."""

    part: int
    seconds: float  # of wall time in this part
    steps: int
    cpu_seconds: float  # of the trainer, in this part
    trainer_bytes: int
    workers_bytes: int
    workers: int
    files: int  # open, of the trainer
    threads: int
    record_bytes: int  # lines that the run has written
    folder_bytes: int


def look(process: psutil.Process, folder: Path, part: int, since: float) -> Reading | None:
    """Take one reading; ``None`` where the run has just ended."""
    try:
        with process.oneshot():
            cpu = sum(process.cpu_times()[:2])
            own, files, threads = process.memory_full_info().uss, process.num_fds(), process.num_threads()
        # A worker may be replaced at any moment.
        workers = [bytes_ for child in process.children(recursive=True) if (bytes_ := _own_bytes(child)) is not None]
    except psutil.NoSuchProcess:
        return None
    records = sum(path.stat().st_size for path in folder.glob("*.jsonl") if path.name != "soak.jsonl")
    return Reading(
        part, time.monotonic() - since, _steps(folder), cpu, own, sum(workers), len(workers), files, threads, records,
        _size(folder) - _size_of(folder / "soak.jsonl"),
    )  # fmt: skip


def _own_bytes(process: psutil.Process) -> int | None:
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return None


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _size(folder: Path) -> int:
    return sum(_size_of(path) for path in folder.rglob("*") if path.is_file())


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The median of the slopes of all pairs of points (Theil 1950; Sen 1968): single leaps do not move it."""
    most = 400
    thin = max(1, len(x) // most)
    x, y = x[::thin], y[::thin]
    return median((y[j] - y[i]) / (x[j] - x[i]) for i in range(len(x)) for j in range(i + 1, len(x)) if x[j] > x[i])


def summary(readings: Sequence[Reading], warm_up: float) -> dict[str, Any]:
    """What grew in each part after ``warm_up`` seconds, and the parts together."""
    parts = []
    for part in sorted({reading.part for reading in readings}):
        kept = [reading for reading in readings if reading.part == part and reading.seconds >= warm_up]
        if len(kept) < 3:
            continue
        hours = [reading.seconds / HOUR for reading in kept]
        steps = [float(reading.steps) for reading in kept]
        third = max(1, len(kept) // 3)
        parts.append({
            "part": part,
            "hours": kept[-1].seconds / HOUR,
            "steps": kept[-1].steps - next(r for r in readings if r.part == part).steps,
            "trainer_mb": kept[-1].trainer_bytes / MB,
            "trainer_mb_per_hour": slope(hours, [reading.trainer_bytes / MB for reading in kept]),
            "workers_mb": kept[-1].workers_bytes / MB,
            "workers_mb_per_hour": slope(hours, [reading.workers_bytes / MB for reading in kept]),
            "files": sorted({reading.files for reading in kept}),
            "threads": sorted({reading.threads for reading in kept}),
            "workers": sorted({reading.workers for reading in kept}),
            "cpu_seconds_per_step_first": _rate(kept[:third]),
            "cpu_seconds_per_step_last": _rate(kept[-third:]),
            "record_bytes_per_step_first": _growth(kept[:third]),
            "record_bytes_per_step_last": _growth(kept[-third:]),
            "folder_bytes_per_step": slope(steps, [float(reading.folder_bytes) for reading in kept]),
        })  # fmt: skip
    return {"hours": sum(part["hours"] for part in parts), "parts": parts}


def _rate(kept: Sequence[Reading]) -> float:
    return (kept[-1].cpu_seconds - kept[0].cpu_seconds) / max(1, kept[-1].steps - kept[0].steps)


def _growth(kept: Sequence[Reading]) -> float:
    return (kept[-1].record_bytes - kept[0].record_bytes) / max(1, kept[-1].steps - kept[0].steps)


def watched(output: Path, hours: float, every: float, options: Sequence[str], part: int) -> Iterator[Reading]:
    """Start or resume the run, and look at it from its first step until the hours are over.

    Raises:
        SystemExit: the run ended by itself.

    """
    resume = ["--resume"] if (output / "metrics.jsonl").exists() else []
    command = [sys.executable, "-m", "covgrpo", "train", *_RUN, *options, "--output", str(output), *resume]
    log = output.with_name(f"{output.name}-soak.log")
    done_before, since = _steps(output), None
    with log.open("ab") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as run:
        process = psutil.Process(run.pid)
        while since is None or time.monotonic() - since < hours * HOUR:
            time.sleep(every)
            if run.poll() is not None:
                raise SystemExit(f"the run ended by itself, with {run.returncode}: see {log}")
            if since is None and _steps(output) > done_before:
                since = time.monotonic()
            if since is not None and (reading := look(process, output, part, since)) is not None:
                yield reading
        run.send_signal(signal.SIGTERM)
        run.wait(600)


def _steps(folder: Path) -> int:
    """Steps that a run has recorded."""
    try:
        with (folder / "metrics.jsonl").open("rb") as lines:
            return sum(block.count(b"\n") for block in iter(lambda: lines.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def report_seconds(output: Path) -> float:
    """Seconds of ``covgrpo report`` on the run."""
    since = time.monotonic()
    subprocess.run([sys.executable, "-m", "covgrpo", "report", str(output)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - since


def main() -> int:
    """Soak, then print what grew; 1 where a promise does not hold."""
    arguments, options = sys.argv[1:], []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, options = arguments[:cut], arguments[cut + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--warm-up", type=float, default=20.0, metavar="MINUTES")
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--measured-only", action="store_true", help="no run: what the readings so far say")
    args = parser.parse_args(arguments)
    path = args.output / "soak.jsonl"
    readings = [Reading(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    if not args.measured_only:
        part = max((reading.part for reading in readings), default=-1) + 1
        for reading in watched(args.output, args.hours, args.every, options, part):
            readings.append(reading)
            with path.open("a") as file:
                file.write(json.dumps(asdict(reading)) + "\n")
    found = summary(readings, args.warm_up * 60)
    found["report_seconds"] = report_seconds(args.output)
    text = json.dumps(found, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return int(bool(broken(found)))


def broken(found: dict[str, Any]) -> list[str]:
    """The promises that a soak does not hold: sentences, printed to standard error."""
    said = []
    for part in found["parts"]:
        for who in ("trainer", "workers"):
            growth = part[f"{who}_mb_per_hour"]
            if growth >= 1.0:
                said.append(f"part {part['part']}: memory of the {who} grows by {growth:.2f} MB an hour")
        if part["files"][-1] - part["files"][0] > 4:
            said.append(f"part {part['part']}: open files from {part['files'][0]} to {part['files'][-1]}")
        first, last = part["cpu_seconds_per_step_first"], part["cpu_seconds_per_step_last"]
        if last > 1.1 * first:
            said.append(f"part {part['part']}: CPU seconds a step from {first:.3f} to {last:.3f}")
    if found["report_seconds"] > 30:
        said.append(f"the report took {found['report_seconds']:.0f} s")
    for sentence in said:
        print(sentence, file=sys.stderr)
    return said


if __name__ == "__main__":
    sys.exit(main())
