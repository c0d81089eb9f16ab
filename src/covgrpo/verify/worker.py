"""One verifier process: ``python -m covgrpo.verify.worker MODULE:FUNCTION``.

Reads JSON lines ``{"id", "payload", "answer"}`` on stdin and writes one line for each on stdout, ``{"id", "score"}`` or
``{"id", "error", "kind"}`` with kind "error" or "memory"; before them ``{"ready": true}``, or ``{"ready": false,
"error"}`` where the verifier cannot be imported. The verifier itself sees neither pipe: its stdin is empty and what it
prints is dropped. Needs POSIX.
"""

import argparse
import json
import numbers
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, TextIO

from covgrpo.verify.machine import DEFAULT_MEMORY_GIB, GIB

_PARENT_POLL_S = 1.0
_MAX_DETAIL_CHARS = 300

Verifier = Callable[[dict[str, Any], str], float]


def _take_pipes() -> tuple[TextIO, TextIO]:
    """The protocol's ends under private descriptors; 0 and 1 then lead nowhere."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return requests, replies


def _limit_memory(memory_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        memory_bytes = min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no core file


def _renew_cpu_limit(cpu_s: int) -> None:
    """Let this process use ``cpu_s`` more seconds of CPU; past them the kernel ends it.

    The pool kills a late worker long before. This is for the worker whose pool was killed while the verifier holds
    the interpreter lock, as a huge integer power does, so that :func:`_watch_parent` cannot run.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime) + cpu_s + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _watch_parent(parent_pid: int) -> None:
    """End this process once its parent is gone, also while a verifier sleeps."""
    while os.getppid() == parent_pid:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)


def _import_verifier(path: str) -> Verifier:
    module_name, _, function_name = path.partition(":")
    module = import_module(module_name)
    verifier = getattr(module, function_name)
    if not callable(verifier):
        raise TypeError(f"{path} is not callable")
    warm_up = getattr(module, "warm_up", None)
    if callable(warm_up):
        warm_up()
    return verifier


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_DETAIL_CHARS]


def _score(verifier: Verifier, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request; whatever the verifier raises, SystemExit included, becomes an error reply."""
    try:
        score = verifier(request["payload"], request["answer"])
        if not isinstance(score, numbers.Real):
            raise TypeError(f"the verifier returned a {type(score).__name__}, not a number")
        return {"id": request["id"], "score": float(score)}
    except MemoryError:
        return {"id": request["id"], "kind": "memory", "error": "MemoryError"}
    except BaseException as error:
        return {"id": request["id"], "kind": "error", "error": _describe(error)}


def _send(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def main(argv: list[str] | None = None) -> int:
    """Serve until stdin closes."""
    parser = argparse.ArgumentParser(prog="covgrpo.verify.worker", description=__doc__)
    parser.add_argument("verifier", metavar="MODULE:FUNCTION")
    parser.add_argument("--memory-bytes", type=int, default=int(DEFAULT_MEMORY_GIB * GIB))
    parser.add_argument("--cpu-s", type=int, default=30, help="CPU seconds an item may take")
    parser.add_argument("--parent-pid", type=int, default=os.getppid())
    args = parser.parse_args(argv)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
    requests, replies = _take_pipes()
    threading.Thread(target=_watch_parent, args=(args.parent_pid,), daemon=True).start()
    try:
        _limit_memory(args.memory_bytes)
        verifier = _import_verifier(args.verifier)
    except BaseException as error:
        _send(replies, {"ready": False, "error": _describe(error)})
        return 1
    _send(replies, {"ready": True})
    for line in requests:
        _renew_cpu_limit(args.cpu_s)
        _send(replies, _score(verifier, json.loads(line)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
