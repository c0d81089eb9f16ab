"""covgrpo's verifiers as verl's reward function; ``scripts/verl_data.py`` writes the data that it reads.

reward.custom_reward_function.path=pkg://covgrpo.verl.rewards reward.custom_reward_function.name=compute_score
"""

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from covgrpo.errors import UserError
from covgrpo.rewards import CorrectnessReward, FormatReward
from covgrpo.verify import DEFAULT_MEMORY_GIB, VerifierPool, default_workers


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    verifier_workers: int | None = None,
    verifier_memory: float = DEFAULT_MEMORY_GIB,
    **_: Any,
) -> dict[str, float]:
    """Score one completion in a worker process with limits, so hostile text costs one score and never the run.

    verl scores in threads: as many completions at a time as there are workers. The last two arguments come from
    ``reward.custom_reward_function.reward_kwargs``; those of a process's first call hold.

    Args:
        data_source: import path of the verifier, ``module:function``.
        solution_str: the completion's text.
        ground_truth: the problem's payload as JSON.
        extra_info: ``answer_format`` (default ``plain``) and ``format_weight`` (default 0).
        verifier_workers: verifier processes of this process at most; default: one a core, at most 8.
        verifier_memory: GiB of address space of each.

    Returns:
        ``score``: correctness in [0, 1] plus format_weight x format; ``acc`` and ``format`` by themselves.

    Raises:
        UserError: an unknown answer format, a verifier that cannot be started, or a limit that is not positive.

    """
    extra = extra_info or {}
    answer_format = extra.get("answer_format") or "plain"
    with _workers(data_source, verifier_workers, verifier_memory).one() as pool:
        correctness = CorrectnessReward(pool, answer_format)
        (accuracy,) = correctness([None], [solution_str], payload=[ground_truth])
    (well_formed,) = FormatReward(answer_format)([None], [solution_str])
    score = accuracy + float(extra.get("format_weight") or 0) * well_formed
    return {"score": score, "acc": accuracy, "format": well_formed}


def verl_row(verifier: str, problem: Any, system: str, extra: dict[str, Any]) -> dict[str, Any]:
    """Return the row of verl's data set for a problem (:class:`covgrpo.tasks.Problem`)."""
    messages = [{"role": "system", "content": system}] if system else []
    return {
        "data_source": verifier,
        "prompt": [*messages, {"role": "user", "content": problem.question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": json.dumps(problem.payload)},
        "extra_info": {"id": problem.id, **extra},
    }


class _Workers:
    """Pools of one worker each, one for each thread that scores; those that have started are taken first."""

    def __init__(self, verifier: str, count: int, memory_gib: float):
        if count < 1:
            raise UserError(f"verifier_workers is {count}; it must be at least 1.")
        self._free: queue.LifoQueue[VerifierPool] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(VerifierPool(verifier, memory_gib=memory_gib))

    @contextmanager
    def one(self) -> Iterator[VerifierPool]:
        """A pool for this thread alone; waits while all are busy."""
        pool = self._free.get()
        try:
            yield pool
        finally:
            self._free.put(pool)


_LOCK = threading.Lock()
_BY_VERIFIER: dict[str, _Workers] = {}


def _workers(verifier: str, count: int | None, memory_gib: float) -> _Workers:
    with _LOCK:
        if verifier not in _BY_VERIFIER:
            _BY_VERIFIER[verifier] = _Workers(verifier, default_workers() if count is None else count, memory_gib)
        return _BY_VERIFIER[verifier]
