"""Runs of the tiny model in processes that are forked from a warm one, and what can be done to them.

A fresh process spends most of a tiny run on imports. Here one process imports, and each run is a fork of it: its own
folder, its own output, killed for real.
"""

import contextlib
import ctypes
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from covgrpo.cpu_defaults import set_cpu_defaults  # noqa: E402

set_cpu_defaults()  # before torch

from warm_start import MODULES  # noqa: E402

COUNT, KILL_AFTER, KILL_TORN, FULL = range(4)  # as in fault_shim.c

OWN_TASK = '''
import os, signal, sys
from pathlib import Path
from covgrpo.tasks import Problem


class Letters:
    spec = "own.tasks:letters"

    def __init__(self, verifier):
        self.verifier = verifier

    def problems(self, split, n, seed):
        return [Problem(f"{split}/{i}", f"Letters? {split} {i}", "e", {}) for i in range(min(n, 20))]


def letters(verifier="own.tasks:share"):
    return Letters(verifier)


def share(payload, answer):
    return sum(character.isalpha() for character in answer) / max(1, len(answer))


def greedy(payload, answer):
    """The same, after asking for more memory than there is, once a folder."""
    if _first("greedy"):
        bytearray(10**12)
    return share(payload, answer)


def shot(payload, answer):
    """The same; once a folder the worker is killed while it works."""
    if _first("shot"):
        os.kill(os.getpid(), signal.SIGKILL)
    return share(payload, answer)


def _first(name):
    try:
        Path(os.environ["FAULT_FOLDER"], name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
'''


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit code (-9 where it was killed), its output and how long it took."""

    code: int
    out: str
    err: str
    seconds: float


def with_shim() -> None:
    """Start this program again with the shim loaded, unless it is; builds it in a temporary folder of the user's."""
    if "FAULT_SHIM" in os.environ:
        return
    target = Path("build").resolve() / "fault_shim.so"
    target.parent.mkdir(exist_ok=True)
    new = target.with_suffix(f".{os.getpid()}")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", new, HERE / "fault_shim.c", "-ldl"], check=True)
    new.replace(target)
    environment = {**os.environ, "LD_PRELOAD": str(target), "FAULT_SHIM": str(target)}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)  # noqa: S606 (itself)


def warm_up() -> None:
    """Import what a run imports, so that a fork need not."""
    for name in (*MODULES, "tiny"):
        importlib.import_module(name)
    importlib.import_module("covgrpo.cli").command_line()


def provide(folder: Path) -> Path:
    """A folder to run in: the tiny model and a task of its own."""
    from tiny import tiny_model, tiny_tokenizer

    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    (folder / "own").mkdir()
    (folder / "own" / "__init__.py").touch()
    (folder / "own" / "tasks.py").write_text(OWN_TASK)
    return folder


def place(template: Path, folder: Path) -> Path:
    """Another folder to run in, with the same model and task."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("tiny", "own"):
        (folder / name).symlink_to(template / name)
    return folder


def shim() -> ctypes.CDLL:
    """The loaded shim."""
    library = ctypes.CDLL(os.environ["FAULT_SHIM"])
    library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long]
    library.fault_count.restype = ctypes.c_long
    library.fault_clock.argtypes = [ctypes.c_long]
    return library


def start(
    folder: Path,
    argv: Sequence[str],
    first: Callable[[], None] = lambda: None,
    last: Callable[[], None] = lambda: None,
    label: str = "",
) -> int:
    """Fork a process that runs ``covgrpo`` with these words in a folder; ``first`` and ``last`` are called in it.

    ``label`` is the start of the names of the files that its output goes to.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(folder)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / (label + name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.path.append(str(folder))
            os.environ["FAULT_FOLDER"] = str(folder)
            first()
            code = _main(argv)
            last()
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.flush()
            os._exit(code)
    return pid


def _main(argv: Sequence[str]) -> int:
    from covgrpo.cli import main

    try:
        return main(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def finish(pid: int, folder: Path, since: float, limit_s: float = 120.0, label: str = "") -> Ended:
    """Wait for a process; one that takes too long is killed and counts as having hung (code -1)."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() - since > limit_s:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            code = -1
            break
        time.sleep(0.01)
    files = [folder / (label + name) for name in ("out", "err")]
    texts = [file.read_text(errors="replace") if file.exists() else "" for file in files]
    return Ended(code, *texts, time.monotonic() - since)


def run(
    folder: Path,
    argv: Sequence[str],
    first: Callable[[], None] = lambda: None,
    signals: Sequence[tuple[float, int]] = (),
) -> Ended:
    """Run to the end, or until it is killed; ``signals`` are (seconds to wait, number), one after the other."""
    since = time.monotonic()
    pid = start(folder, argv, first)
    for wait_s, number in signals:
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and not _has_ended(pid):
            time.sleep(0.005)
        if not _has_ended(pid):
            os.kill(pid, number)
    return finish(pid, folder, since)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
