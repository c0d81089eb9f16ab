"""Fresh processes that need not import torch and TRL first, which takes longer than most runs of the tests.

One process imports them and no more. A run is a fork of it. The test sees the process that it has started itself
(``warm_python``): it hands on its arguments, folder, variables, files and signals, and ends as the run ends. If it is
killed, so is the run.

A fork has the hash seed of the process that it comes from. Where that could hide something, start Python itself.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

WARM = ("covgrpo", "covgrpo.studies.run_process")  # modules whose runs are forks; all else is left to Python
MODULES = (
    *("covgrpo.cli", "covgrpo.runs.train", "covgrpo.trl.trainer", "covgrpo.runs.record.recorder", "covgrpo.verify"),
    *("covgrpo.models", "covgrpo.report.idle", "covgrpo.cli.display", "covgrpo.evaluation.generation"),
    *("covgrpo.evaluation.benchmarks", "covgrpo.evaluation.grading", "covgrpo.evaluation.at_k", "covgrpo.studies"),
    *("datasets", "accelerate", "transformers.models.llama.modeling_llama", "torch.optim.adamw", "rich.live"),
    *("trl.trainer.grpo_trainer", "math_verify", "scipy.stats"),
)


@functools.cache
def warm_python() -> str:
    """Start the process that imports, once; returns a program to be used in place of ``sys.executable``."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    program, address = folder / "warm_python", folder / "socket"
    program.write_text(f"#!{sys.executable} -IS\n{_CLIENT}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    server = subprocess.Popen(
        [sys.executable, __file__, str(address), str(program)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(server.kill)
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    return str(program)


_CLIENT = f"""
import array, json, os, signal, socket, sys
arguments = sys.argv[1:]
if arguments[:1] != ["-m"] or arguments[1] not in {WARM!r}:
    os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])
link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
link.connect(os.path.join(os.path.dirname(__file__), "socket"))
text = json.dumps([arguments[1:], os.getcwd(), dict(os.environ)]).encode()
link.sendmsg([len(text).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
link.sendall(text)
null = os.open(os.devnull, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(null, number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: link.sendall(bytes([number])))
answer = b""
while len(answer) < 4 and (part := link.recv(4 - len(answer))):
    answer += part
code = int.from_bytes(answer, "big", signed=True) if len(answer) == 4 else -signal.SIGKILL
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def serve(address: str, program: str) -> None:
    """Import, then fork a process for each connection until standard input ends."""
    from covgrpo.cpu_defaults import set_cpu_defaults

    set_cpu_defaults()
    for name in MODULES:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    while 0 not in select.select([listener, 0], [], [])[0]:
        link, _ = listener.accept()
        size, files, _, _ = socket.recv_fds(link, 8, 3)
        text = b""
        while len(text) < int.from_bytes(size, "big"):
            text += link.recv(1 << 16)
        if os.fork() == 0:
            listener.close()
            _watch(link, files, program, *json.loads(text))
        link.close()
        for file in files:
            os.close(file)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _watch(link: socket.socket, files: list[int], program: str, words: list[str], folder: str, variables: dict) -> None:
    """Fork the run, hand signals to it and its end to the client, and kill it when the client is gone."""
    pid = os.fork()
    if pid == 0:
        link.close()
        _run(files, program, words, folder, variables)
    for file in files:
        os.close(file)

    def hand_on() -> None:
        with contextlib.suppress(OSError):
            while number := link.recv(1):
                os.kill(pid, number[0])
            os.kill(pid, signal.SIGKILL)

    threading.Thread(target=hand_on, daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        link.sendall(code.to_bytes(4, "big", signed=True))
    os._exit(0)


def _run(files: list[int], program: str, words: list[str], folder: str, variables: dict[str, str]) -> None:
    code = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in ((0, "r"), (1, "w"), (2, "w")))
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        sys.executable, sys.argv = program, ["-m", *words[1:]]
        sys.path[0] = folder  # as with -m
        try:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException:
            traceback.print_exc()
        threading._shutdown()  # what Python does at its end
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(*sys.argv[1:])
