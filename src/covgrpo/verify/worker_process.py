"""One worker process seen from the pool: non-blocking pipes, a deadline, and a kill that leaves nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any


class WorkerDiedError(Exception):
    """The worker closed its pipe or broke the protocol."""


def _environment() -> dict[str, str]:
    """This process's environment and import path, one thread for the numeric libraries.

    A library's thread pool would reserve address space by the number of cores, against the memory limit.
    """
    paths = [path or os.getcwd() for path in sys.path]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "agg"}


class WorkerProcess:
    """A running worker. ``item`` is what it works on, if anything; ``deadline`` is in ``time.monotonic`` seconds."""

    def __init__(self, verifier: str, memory_bytes: int, cpu_s: int, start_timeout_s: float):
        options = [f"--memory-bytes={memory_bytes}", f"--cpu-s={cpu_s}", f"--parent-pid={os.getpid()}"]
        self._popen = subprocess.Popen(
            # -P: the import path is exactly ours, without the current folder in front
            [sys.executable, "-P", "-m", "covgrpo.verify.worker", verifier, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # a process group of its own, to be killed with all its children
            env=_environment(),
        )
        stdin, stdout = self._popen.stdin, self._popen.stdout
        if stdin is None or stdout is None:  # for the type checker: both are PIPE
            raise WorkerDiedError
        self.stdin_fd, self.stdout_fd = stdin.fileno(), stdout.fileno()
        os.set_blocking(self.stdin_fd, False)
        os.set_blocking(self.stdout_fd, False)
        self._unsent = b""
        self._received: list[bytes] = []
        self.ready = False
        self.item: int | None = None
        self.deadline: float | None = time.monotonic() + start_timeout_s

    @property
    def pid(self) -> int:
        """Process id, which is also its process group's."""
        return self._popen.pid

    @property
    def wants_write(self) -> bool:
        """Whether part of a request still waits for room in the pipe."""
        return bool(self._unsent)

    def has_ended(self) -> bool:
        """Whether the process is gone; leaves it unreaped, so that its process group can still be named."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self.pid, options) is not None
        except ChildProcessError:
            return True

    def send(self, item: int, request: bytes, timeout_s: float) -> None:
        """Give the worker one request line; its time starts now.

        Raises:
            WorkerDiedError: the pipe is closed.
        """
        self.item = item
        self.deadline = time.monotonic() + timeout_s
        self._unsent = request
        self.flush()

    def flush(self) -> None:
        """Write as much of the request as the pipe takes.

        Raises:
            WorkerDiedError: the pipe is closed.
        """
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self.stdin_fd, self._unsent) :]
        except BlockingIOError:
            pass
        except OSError as error:
            raise WorkerDiedError from error

    def receive(self) -> dict[str, Any] | None:
        """The reply, if it has arrived whole.

        Raises:
            WorkerDiedError: the pipe ended, or held something that is no reply.
        """
        try:
            data = os.read(self.stdout_fd, 1 << 16)
        except BlockingIOError:
            return None
        if not data:
            raise WorkerDiedError
        self._received.append(data)
        if not data.endswith(b"\n"):
            return None
        line = b"".join(self._received)
        self._received.clear()
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise WorkerDiedError from error
        if not isinstance(reply, dict):
            raise WorkerDiedError
        return reply

    def kill(self) -> int:
        """SIGKILL the process and its children, reap it, close the pipes; the exit code of an ended one stays."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                stream.close()
        return self._popen.wait()
