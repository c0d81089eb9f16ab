"""avg@k, pass@k and maj@k of scored completions, with intervals over problems. Scores are fractions in [0, 1]."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from covgrpo.evaluation.intervals import bootstrap_mean, pass_at_k, wilson

_CORRECT = 0.5  # a score above it counts as correct for pass@k


@dataclass(frozen=True)
class Scored:
    """A problem's completions, in the order in which they were sampled.

    Args:
        id: the problem's.
        scores: of each completion.
        answers: what was extracted from each completion; "" where there was no answer.
        failures: how many of them the verifier could not score; they are 0 in ``scores``.

    """

    id: str
    scores: list[float]
    answers: list[str]
    failures: int = 0


def at_k(problems: Sequence[Scored], seed: int = 0) -> dict[str, Any]:
    """Sum up problems that have at least one completion each.

    accuracy: mean over problems of the mean score of all their completions; the same as avg@n where each has n.
    With K the smallest number of completions of a problem, and k = 1, 2, 4, ... and K:
    avg@k is the mean over problems of the mean score of all completions (it does not depend on k but in its name: K);
    pass@k the mean over problems of the unbiased estimate from all their completions (arXiv 2107.03374, equation 1);
    maj@k the score of the most frequent answer among a problem's first k completions, the earliest of equals; text
    without white space is compared, and no answer is no vote.

    Returns:
        ``n``, ``k``, ``accuracy`` with ``low`` and ``high`` (95 %), ``avg@K``, ``pass@k``, ``maj@k`` likewise,
        ``unscored``.

    Raises:
        ValueError: no problem, or one without completions.
    """
    if not problems or any(not problem.scores for problem in problems):
        raise ValueError("at_k needs problems with at least one completion each.")
    most = min(len(problem.scores) for problem in problems)
    result: dict[str, Any] = {"n": len(problems), "k": most}
    means = [fmean(problem.scores) for problem in problems]
    single = all(len(problem.scores) == 1 for problem in problems)
    result.update(_interval(means, seed, binary=single))
    result[f"avg@{most}"] = _interval(means, seed, binary=single)
    for k in _powers(most):
        chances = [pass_at_k(len(p.scores), sum(score > _CORRECT for score in p.scores), k) for p in problems]
        result[f"pass@{k}"] = _interval(chances, seed, binary=single)
    for k in _powers(most)[1:]:
        votes = [majority_score(problem, k) for problem in problems]
        result[f"maj@{k}"] = _interval(votes, seed, binary=True)
    result["unscored"] = sum(problem.failures for problem in problems)
    return result


def majority_score(problem: Scored, k: int) -> float:
    """Score of the answer that most of the first ``k`` completions give; 0 where none gives one."""
    place, _ = majority(problem.answers[:k])
    return 0.0 if place is None else problem.scores[place]


def majority(answers: Sequence[str]) -> tuple[int | None, int]:
    """The first place of the most frequent answer, the earliest of equals, and how often it is given.

    Text without white space is compared, and no answer is no vote; ``(None, 0)`` where there is none.
    """
    texts = ["".join(answer.split()) for answer in answers]
    counts = Counter(text for text in texts if text)
    if not counts:
        return None, 0
    most = max(counts.values())
    return next(place for place, text in enumerate(texts) if text and counts[text] == most), most


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``, and ``most`` itself."""
    powers = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*powers, most]


def _interval(values: list[float], seed: int, binary: bool) -> dict[str, float]:
    """Mean with its 95 % interval over problems: Wilson's where each value is a 0 or a 1, else a bootstrap."""
    mean = fmean(values)
    if (binary and all(value in (0.0, 1.0) for value in values)) or mean in (0.0, 1.0):
        low, high = wilson(round(sum(values)), len(values))
    else:
        low, high = bootstrap_mean(values, seed=seed)
    return {"accuracy": mean, "low": low, "high": high}
