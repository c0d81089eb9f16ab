"""Mutated input to the command line: each must end in success or in one sentence with exit code 2.

    python scripts/fuzz.py [COUNT] [--seed N] [--start I] [--keep FOLDER] [--json FILE]

Runs inputs START to START + COUNT of a seed (scripts/fuzz_inputs.py) in processes forked from a warm one, in a folder
of their own. It counts as a failure: a traceback, more or less than one line of error, another exit code, more than
10 s of CPU time or 60 s of waiting, a MemoryError under 2 GB of address space above the start's, and what a command
must not do at all: open a socket, start a process, or write outside the folder where the words name no other place.
Up to where a model would be loaded or a process started, commands do what they do; there they end, as accepted.
Inputs that fail are kept in FOLDER; ``fuzz.py 1 --seed N --start I`` repeats one. Linux only.
"""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

import argparse
import contextlib
import functools
import io
import json
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fuzz_inputs
from fuzz_guard import OUTSIDE, Guard
from fuzz_inputs import Input

LIMIT_S, WALL_LIMIT_S = 10.0, 60.0
LIMIT_BYTES = 2 * 2**30
_BATCH = 1_000


class TooLong(BaseException):
    """Not an Exception, so that no handler of the program takes it for one of its own."""


class Accepted(BaseException):
    """The command has read its input and would now load a model or start processes."""


def _accept(*arguments: object, **named: object) -> NoReturn:
    raise Accepted


class _Pool:
    """In place of the verifiers' processes: text that equals the gold answer is right."""

    def __init__(self, verifier: str, *limits: float):
        self.failures: Counter[str] = Counter()

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def score(self, items: Any) -> list[Any]:
        from covgrpo.verify import Verdict

        return [Verdict(float(payload["gold"] == answer)) for payload, answer in items]


# Where a command has read all that it was given.
_ENDS: dict[str, Any] = {
    "covgrpo.models.load_model": _accept,
    "covgrpo.models.resolve.materialise": _accept,  # asks pip for the built-in model
    "covgrpo.bench.measure.measure": _accept,
    "covgrpo.studies.schedule.run_missing": _accept,
    "covgrpo.verify.VerifierPool": _Pool,
    "covgrpo.runs.record.environment.describe_environment": dict,  # asks git
}


@functools.cache
def _quicker() -> dict[str, Any]:
    """Work that is as long as the input asks for, cut short: what is read and refused is the same.

    The parser is made once, intervals are from 20 resamples, and a task makes 20 problems at most.
    """
    from covgrpo.cli import command_line
    from covgrpo.studies.statistics import bootstrap_mean
    from covgrpo.tasks.generated import GeneratedTask
    from covgrpo.tasks.reasoning_gym import ReasoningGymTask

    def few(problems: Any) -> Any:
        return lambda task, split, n, seed: problems(task, split, min(n, 20), seed)

    return {
        "covgrpo.cli.command_line": functools.cache(command_line),
        "covgrpo.studies.statistics.bootstrap_mean": functools.partial(bootstrap_mean, resamples=20),
        "covgrpo.tasks.generated.GeneratedTask.problems": few(GeneratedTask.problems),
        "covgrpo.tasks.reasoning_gym.ReasoningGymTask.problems": few(ReasoningGymTask.problems),
    }


GUARD: Guard | None = None


def fault(given: Input, covgrpo: Callable[[list[str]], int]) -> str:
    """Run one input in the current folder; "" if it ended well, else what was wrong."""
    guard = GUARD
    # Strict, as a terminal's is: what cannot be encoded would be a traceback there.
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err_bytes = io.BytesIO()
    err = io.TextIOWrapper(err_bytes, encoding="utf-8", errors="backslashreplace", write_through=True)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if guard:
                guard.tried.clear()
                guard.on = True
            code = covgrpo(given.words)
    except Accepted:
        code = 0
    except TooLong:
        return f"more than {LIMIT_S:g} s"
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{_where(error)}{type(error).__name__}: {error}"[:400]
    finally:
        if guard:
            guard.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    said = err_bytes.getvalue().decode()
    return _forbidden(given, guard) or _wrong_word(code, said)


def _forbidden(given: Input, guard: Guard | None) -> str:
    """What was tried that the words do not ask for; a place named by them may lie anywhere."""
    tried = guard.tried if guard else []
    named = not given.file
    found = [what for what in tried if not named or what.split()[0] in OUTSIDE - {"socket.getaddrinfo"}]
    return f"tried {found[0]}" if found else ""


def _wrong_word(code: int, said: str) -> str:
    if code == 0:
        return "Traceback" if "Traceback" in said else ""
    if code != 2:
        return f"exit code {code}: {said[-300:]}"
    one = said.startswith("covgrpo: ") and said.endswith("\n") and said.count("\n") == 1 and said.strip().isprintable()
    return "" if one else f"not one sentence: {said[-300:]!r}"


def _where(error: BaseException) -> str:
    """The last place in covgrpo that the error came through."""
    at, found = error.__traceback__, ""
    while at is not None:
        path = at.tb_frame.f_code.co_filename
        if "/covgrpo/" in path:
            found = f"{path.rpartition('/covgrpo/')[2]}:{at.tb_lineno} "
        at = at.tb_next
    return found


@contextlib.contextmanager
def folder_of_inputs() -> Iterator[Path]:
    """A current folder of its own with the files that work."""
    from tiny import tiny_model, tiny_tokenizer

    before, path = Path.cwd(), sys.path[:]
    folder = Path(tempfile.mkdtemp(prefix="covgrpo-fuzz-")).resolve()
    try:
        os.chdir(folder)
        os.environ["HOME"] = str(folder)
        fuzz_inputs.write_good_files(folder)
        tiny_model().save_pretrained("tiny")
        tiny_tokenizer().save_pretrained("tiny")
        yield folder
    finally:
        os.chdir(before)
        sys.path[:] = path
        shutil.rmtree(folder, ignore_errors=True)


def _put_back(known: dict[Path, float]) -> None:
    """Remove what an input has left in the current folder."""
    for path in [path for path in Path().iterdir() if path not in known]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _alarm(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise TooLong


def run_batch(seed: int, numbers: range, tell: Callable[[int, str], None]) -> None:
    """Run inputs in the current folder, in this process; call ``tell`` with each number and what was wrong."""
    from covgrpo.cli import main as covgrpo

    known = dict.fromkeys(Path().iterdir(), 0.0)
    with contextlib.ExitStack() as stack:
        for name, end in (_ENDS | _quicker()).items():
            stack.enter_context(mock.patch(name, end))
        for i in numbers:
            given = fuzz_inputs.one_input(seed, i)
            path = Path(given.file)
            good = path.read_bytes() if given.file and path.exists() else None
            if given.file:
                path.write_bytes(given.content)
            tell(i, fault(given, covgrpo))
            if good is not None:
                path.write_bytes(good)
            _put_back(known)


def _child(seed: int, numbers: range, pipe: int, folder: Path) -> None:
    """A batch with its limits, in a process forked for it; a line of JSON for each input."""
    global GUARD  # noqa: PLW0603 (one audit hook a process)
    signal.signal(signal.SIGPROF, _alarm)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    GUARD = Guard()
    GUARD.folder = str(folder)

    def tell(i: int, wrong: str) -> None:
        os.write(pipe, json.dumps([i, wrong]).encode() + b"\n")

    run_batch(seed, numbers, tell)
    os.write(pipe, json.dumps([-1, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]).encode() + b"\n")


def forked_batch(seed: int, numbers: range, folder: Path) -> tuple[int, list[tuple[int, str]], int]:
    """(inputs done, failures, peak memory in bytes) of a batch; one that ends its process is the last of them."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        code = 1
        try:
            _child(seed, numbers, write, folder)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    at, failures, peak, rest, used = numbers.start, [], 0, b"", 0.0
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while True:
            if not select.select([pipe], [], [], WALL_LIMIT_S)[0]:
                waits, now = _state(pid)
                if not waits and now - used < 2 * LIMIT_S:
                    continue  # other processes have the processor
                os.kill(pid, signal.SIGKILL)
                failures.append((at, f"more than {WALL_LIMIT_S:g} s by the clock"))
                at += 1
                break
            data, used = pipe.read(1 << 16), _state(pid)[1]
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for i, found in map(json.loads, lines):
                if i < 0:
                    peak = found * 1024
                    continue
                at = i + 1
                if found:
                    failures.append((i, found))
    _, status = os.waitpid(pid, 0)
    if status and not (failures and failures[-1][0] == at - 1):
        failures.append((at, f"the process ended with status {status}"))
        at += 1
    return at - numbers.start, failures, peak


def _state(pid: int) -> tuple[bool, float]:
    """Whether a process waits for something that is neither the processor nor a disk; its CPU time in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return fields[0] not in "RD", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _warm_up(folder: Path) -> None:
    """Import what the commands import, so that a forked process does not."""
    import covgrpo.bench.measure
    import covgrpo.runs.train
    import covgrpo.studies.schedule
    from covgrpo.cli import main as covgrpo

    _quicker()["covgrpo.cli.command_line"]()
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        for words in (
            [*fuzz_inputs.DRY, "--task", "reasoning_gym:chain_sum"],
            ["report", "run", "--output", "r.html", "--markdown", "r.md"],
            ["compare", "kept.yaml", "--no-run", "--report"],
            ["table", "r.json"],
            ["tasks", "chain_sum"],
        ):
            code = covgrpo(words)
            assert code == 0, f"{words}: {sink.getvalue()[-500:]}"  # noqa: S101 (a good command line)
    for name in ("r.html", "r.md"):
        (folder / name).unlink()


def campaign(
    count: int, seed: int, start: int = 0, progress: Callable[[int, int], None] = lambda done, failed: None
) -> tuple[Counter[str], list[tuple[int, Input, str]], int]:
    """How many inputs of each kind, (number, input, what was wrong) of each failure, and peak memory in bytes."""
    failures: list[tuple[int, Input, str]] = []
    at, end, peak = start, start + count, 0
    with folder_of_inputs() as folder:
        _warm_up(folder)
        while at < end:
            done, found, memory = forked_batch(seed, range(at, min(at + _BATCH, end)), folder)
            at += done
            peak = max(peak, memory)
            failures += [(i, fuzz_inputs.one_input(seed, i), wrong) for i, wrong in found]
            progress(at - start, len(failures))
    kinds = Counter(fuzz_inputs.kind_of(seed, i) for i in range(start, end))
    return kinds, failures, peak


def _keep(folder: Path, seed: int, i: int, given: Input, wrong: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"seed": seed, "input": i, "kind": given.kind, "wrong": wrong, "words": given.words, "file": given.file}
    record["content"] = given.content.decode("utf-8", "surrogateescape")
    (folder / f"{seed}-{i}.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def main() -> int:
    """Run a campaign; 1 where an input failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder of the inputs that failed")
    parser.add_argument("--json", type=Path, help="write what came of it to a file")
    args = parser.parse_args()
    keep, since = args.keep.absolute(), time.monotonic()

    def progress(done: int, failed: int) -> None:
        if done % 5_000 < _BATCH or done == args.count:  # so that a campaign that was stopped can be gone on with
            print(f"{args.start + done} done, {failed} failures, {time.monotonic() - since:.0f} s", flush=True)

    kinds, failures, peak = campaign(args.count, args.seed, args.start, progress)
    for i, given, wrong in failures:
        _keep(keep, args.seed, i, given, wrong)
        print(f"{i} {given.kind}: {wrong}".encode("ascii", "backslashreplace").decode())
    found = {
        "inputs": kinds.total(), "seed": args.seed, "start": args.start, "failures": len(failures),
        "kinds": dict(kinds), "peak_memory_bytes": peak, "seconds": round(time.monotonic() - since),
    }  # fmt: skip
    print(json.dumps(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
