"""covgrpo's verifiers as verl's reward function; ``scripts/verl_data.py`` writes the data that it reads.

reward.custom_reward_function.path=pkg://covgrpo.verl.rewards reward.custom_reward_function.name=compute_score
"""

import functools
import json
import threading
from typing import Any

from covgrpo.rewards import CorrectnessReward, FormatReward
from covgrpo.verify import VerifierPool

_LOCK = threading.Lock()  # verl scores in threads; a pool answers one at a time


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """Score one completion in a worker process with limits, so hostile text costs one score and never the run.

    Args:
        data_source: import path of the verifier, ``module:function``.
        solution_str: the completion's text.
        ground_truth: the problem's payload as JSON.
        extra_info: ``answer_format`` (default ``plain``) and ``format_weight`` (default 0).

    Returns:
        ``score``: correctness in [0, 1] plus format_weight x format; ``acc`` and ``format`` by themselves.

    Raises:
        UserError: an unknown answer format, or a verifier that cannot be started.

    """
    extra = extra_info or {}
    answer_format = extra.get("answer_format") or "plain"
    with _LOCK:
        correctness = CorrectnessReward(_pool(data_source), answer_format)
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


@functools.cache
def _pool(verifier: str) -> VerifierPool:
    return VerifierPool(verifier)
