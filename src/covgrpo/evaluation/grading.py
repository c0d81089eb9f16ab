"""Scores of completions of mathematics problems: extraction, then math-verify in worker processes."""

from collections.abc import Callable, Mapping, Sequence

from covgrpo.evaluation.at_k import Scored
from covgrpo.tasks import Problem, get_answer_format
from covgrpo.verify import VerifierPool

VERIFIER = "covgrpo.tasks.jsonl:score"
_AT_ONCE = 256


def grade(
    problems: Sequence[Problem],
    completions: Mapping[str, Sequence[str]],
    answer_format: str,
    pool: VerifierPool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scored]:
    """Score the completions of each problem that has any, in the order of the problems.

    Args:
        problems: with ``payload["gold"]``.
        completions: problem id -> completions.
        answer_format: how an answer is found in a completion (``covgrpo.tasks.ANSWER_FORMATS``).
        pool: of :data:`VERIFIER`.
        progress: called with (completions done, completions in all).

    """
    extract = get_answer_format(answer_format).extract
    chosen = [problem for problem in problems if completions.get(problem.id)]
    items = [(problem, extract(text)) for problem in chosen for text in completions[problem.id]]
    verdicts = []
    for start in range(0, len(items), _AT_ONCE):
        part = items[start : start + _AT_ONCE]
        verdicts += pool.score([(problem.payload, answer) for problem, answer in part])
        progress(len(verdicts), len(items))
    scored, at = [], 0
    for problem in chosen:
        count = len(completions[problem.id])
        mine = verdicts[at : at + count]
        answers = [answer for _, answer in items[at : at + count]]
        failures = sum(verdict.failure is not None for verdict in mine)
        scored.append(Scored(problem.id, [verdict.score for verdict in mine], answers, failures))
        at += count
    return scored
