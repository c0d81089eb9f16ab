"""Scores answers in killable worker processes, with a time and a memory limit for each item."""

import contextlib
import json
import logging
import math
import os
import selectors
import signal
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from covgrpo.errors import UserError
from covgrpo.verify.machine import DEFAULT_MEMORY_GIB, GIB
from covgrpo.verify.worker_process import WorkerDiedError, WorkerProcess

logger = logging.getLogger(__name__)

Failure = Literal["timeout", "error", "memory", "crash"]

MAX_ANSWER_CHARS = 100_000
_START_TIMEOUT_S = 120.0
_MAX_START_FAILURES = 3


@dataclass(frozen=True)
class Verdict:
    """A score in [0, 1]; 0 with the kind of failure where the verifier gave none."""

    score: float
    failure: Failure | None = None
    detail: str = ""


def _kill_all(workers: list[WorkerProcess], owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # a forked copy of the trainer must not end the trainer's workers
        for worker in workers:
            worker.kill()
    workers.clear()


def _checked(score: object) -> Verdict:
    """A verdict from what the worker sent: a finite number in [0, 1], or a failure."""
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return Verdict(0.0, "error", f"the verifier returned {score!r}, not a finite number")
    if not 0.0 <= score <= 1.0:
        return Verdict(0.0, "error", f"the verifier returned {score!r}, outside [0, 1]")
    return Verdict(float(score))


class VerifierPool:
    """``num_workers`` processes that run ``verifier``, an import path ``module:function``.

    For each item: a worker that gives no verdict within ``timeout_s`` seconds (wall clock) is killed and replaced, and
    the item scores 0 with failure "timeout". An exception, or a score that is no number in [0, 1], is an "error", a
    MemoryError under ``memory_gib`` GiB of address space "memory", a dead process "crash". An answer longer than
    ``MAX_ANSWER_CHARS`` characters is an "error" without asking the verifier. Verdicts do not depend on
    ``num_workers``. Workers start at the first :meth:`score`, import what the parent could import (its ``sys.path``),
    and live until :meth:`close`, garbage collection or the end of the process, however that ends.

    The limits protect the run, not the machine: a worker has the user's rights, so the verifier must not execute
    answers that could do harm.

    Attributes:
        failures: Number of failures by kind, over the pool's life. Each kind is logged once.

    Raises:
        UserError: ``verifier`` is no ``module:function``, or a limit is not positive.
    """

    def __init__(
        self,
        verifier: str,
        num_workers: int = 1,
        timeout_s: float = 5.0,
        memory_gib: float = DEFAULT_MEMORY_GIB,
    ):
        module, colon, function = verifier.partition(":")
        if not (module and colon and function):
            raise UserError(f"Verifier {verifier!r} is not of the form module:function.")
        for name, value in (
            ("num_workers", num_workers),
            ("timeout_s", timeout_s),
            ("memory_gib", memory_gib),
        ):
            if not value > 0:
                raise UserError(f"{name} must be positive, not {value}.")
        self.verifier = verifier
        self.num_workers = num_workers
        self.timeout_s = timeout_s
        self.memory_gib = memory_gib
        self.failures: Counter[str] = Counter()
        self._workers: list[WorkerProcess] = []
        self._start_failures = 0
        self._has_started = False
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _kill_all, self._workers, os.getpid())

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers; a closed pool cannot score. Closing twice is fine."""
        self._finalizer()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [worker.pid for worker in self._workers]

    def score(self, items: Sequence[tuple[dict[str, Any], str]]) -> list[Verdict]:
        """The verdicts on ``(payload, answer)`` pairs, in their order.

        Raises:
            UserError: the verifier cannot be imported, or its workers do not start.
            RuntimeError: the pool is closed.
            TypeError: a payload is not JSON-able.
        """
        with self._lock:
            if not self._finalizer.alive:
                raise RuntimeError("the verifier pool is closed")
            verdicts: dict[int, Verdict] = {}
            requests: dict[int, bytes] = {}
            for i, (payload, answer) in enumerate(items):
                if len(answer) > MAX_ANSWER_CHARS:
                    verdicts[i] = Verdict(0.0, "error", f"the answer has {len(answer)} characters")
                else:
                    request = {"id": i, "payload": payload, "answer": answer}
                    requests[i] = json.dumps(request).encode() + b"\n"
            try:
                self._run(requests, verdicts)
            except BaseException:
                # busy workers would answer into the next call
                _kill_all(self._workers, os.getpid())
                raise
            ordered = [verdicts[i] for i in range(len(items))]
        self._count(ordered)
        return ordered

    def _count(self, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            if verdict.failure is not None:
                if not self.failures[verdict.failure]:
                    logger.warning(
                        "Verifier %s failed on an answer, which scores 0: %s (%s). "
                        "Further failures of this kind are counted, not shown.",
                        self.verifier,
                        verdict.failure,
                        verdict.detail,
                    )
                self.failures[verdict.failure] += 1

    def _run(self, requests: dict[int, bytes], verdicts: dict[int, Verdict]) -> None:
        """Event loop of one :meth:`score` call: one thread, all workers."""
        queue = deque(requests)
        num_wanted = len(verdicts) + len(requests)
        for worker in [w for w in self._workers if w.has_ended()]:  # died while idle: no item's fault
            self._retire(worker)
        while len(verdicts) < num_wanted:
            num_busy = sum(worker.item is not None for worker in self._workers)
            while len(self._workers) < min(self.num_workers, num_busy + len(queue)):
                cpu_s = int(4 * self.timeout_s) + 10  # a backstop, see worker._renew_cpu_limit
                memory_bytes = int(self.memory_gib * GIB)
                self._workers.append(WorkerProcess(self.verifier, memory_bytes, cpu_s, _START_TIMEOUT_S))
            for worker in [w for w in self._workers if w.ready and w.item is None]:
                if queue:
                    item = queue.popleft()
                    try:
                        worker.send(item, requests[item], self.timeout_s)
                    except WorkerDiedError:
                        self._bury(worker, verdicts)
            self._wait(verdicts)

    def _wait(self, verdicts: dict[int, Verdict]) -> None:
        """Until a worker replies, takes input or is late; then attend to those that do."""
        waiting = [worker for worker in self._workers if worker.deadline is not None]
        if not waiting:
            return
        next_deadline = min(worker.deadline for worker in waiting if worker.deadline is not None)
        with selectors.DefaultSelector() as selector:
            for worker in waiting:
                selector.register(worker.stdout_fd, selectors.EVENT_READ, worker)
                if worker.wants_write:
                    selector.register(worker.stdin_fd, selectors.EVENT_WRITE, worker)
            events = selector.select(max(0.0, next_deadline - time.monotonic()))
        for key, mask in events:
            worker = key.data
            if worker in self._workers:
                try:
                    self._attend(worker, mask, verdicts)
                except WorkerDiedError:
                    self._bury(worker, verdicts)
        now = time.monotonic()
        for worker in [w for w in self._workers if w.deadline is not None and w.deadline <= now]:
            self._expire(worker, verdicts)

    def _attend(self, worker: WorkerProcess, mask: int, verdicts: dict[int, Verdict]) -> None:
        if mask & selectors.EVENT_WRITE:
            worker.flush()
            return
        reply = worker.receive()
        if reply is None:
            return
        if not worker.ready:
            self._greet(worker, reply)
            return
        if worker.item is None or reply.get("id") != worker.item:
            raise WorkerDiedError  # someone else wrote into the pipe
        if "score" in reply:
            verdicts[worker.item] = _checked(reply["score"])
        else:
            failure: Failure = "memory" if reply.get("kind") == "memory" else "error"
            verdicts[worker.item] = Verdict(0.0, failure, str(reply.get("error")))
        worker.item = worker.deadline = None
        if reply.get("kind") == "memory":
            self._retire(worker)  # its caches and heap may be close to the limit still

    def _greet(self, worker: WorkerProcess, reply: dict[str, Any]) -> None:
        if not reply.get("ready"):
            raise UserError(
                f"Verifier {self.verifier!r} could not be imported under {self._limit()}: {reply.get('error')}."
            )
        worker.ready, worker.deadline = True, None
        self._has_started, self._start_failures = True, 0

    def _bury(self, worker: WorkerProcess, verdicts: dict[int, Verdict]) -> None:
        """A worker died: its item, if any, crashed it."""
        code = self._retire(worker)
        if not worker.ready:
            self._start_failed(f"ended with exit code {code} before it was ready")
        elif worker.item is not None and code == -signal.SIGXCPU:
            verdicts[worker.item] = Verdict(0.0, "timeout", "the worker used up its CPU time")
        elif worker.item is not None:
            verdicts[worker.item] = Verdict(0.0, "crash", f"the worker ended with exit code {code}")

    def _expire(self, worker: WorkerProcess, verdicts: dict[int, Verdict]) -> None:
        self._retire(worker)
        if not worker.ready:
            self._start_failed(f"was not ready after {_START_TIMEOUT_S:.0f} s")
        elif worker.item is not None:
            verdicts[worker.item] = Verdict(0.0, "timeout", f"no verdict after {self.timeout_s} s")

    def _start_failed(self, what: str) -> None:
        """Fatal for a verifier that never ran; later on a busy machine gets a few more tries."""
        self._start_failures += 1
        if not self._has_started or self._start_failures >= _MAX_START_FAILURES:
            raise UserError(
                f"A worker of verifier {self.verifier!r} {what} under {self._limit()}; to see why, run "
                f"`python -m covgrpo.verify.worker --memory-bytes {int(self.memory_gib * GIB)} {self.verifier}`."
            )

    def _limit(self) -> str:
        return f"{self.memory_gib:g} GiB of address space (verifier_memory)"

    def _retire(self, worker: WorkerProcess) -> int:
        with contextlib.suppress(ValueError):
            self._workers.remove(worker)
        return worker.kill()
