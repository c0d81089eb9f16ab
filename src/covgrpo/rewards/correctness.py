"""Correctness by a task's verifier, and keeping to the answer format."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from covgrpo.tasks.prompt import AnswerFormat, get_answer_format
from covgrpo.verify import VerifierPool

Completion = str | Sequence[dict[str, Any]]


def completion_text(completion: Completion) -> str:
    """The text of a completion: itself, or the content of its last assistant message ("" if there is none)."""
    if isinstance(completion, str):
        return completion
    for message in reversed(completion):
        if message.get("role") == "assistant":
            content = message.get("content") or ""
            if isinstance(content, str):
                return content
            return "".join(part.get("text", "") for part in content)  # multi-part content
    return ""


class CorrectnessReward:
    """The verifier's score in [0, 1] of each completion's extracted answer; 0 where nothing can be extracted.

    Reads the column ``payload``: for each completion its problem's payload as a JSON string.

    Attributes:
        last_failures: Completions of the last call on which the verifier failed (they score 0). Also reported as
            ``verifier/failures`` where the trainer passes ``log_metric``.

    Raises:
        UserError: unknown answer format.
    """

    __name__ = "correctness"

    def __init__(self, pool: VerifierPool, answer_format: AnswerFormat | str = "plain"):
        self.pool = pool
        self.answer_format = get_answer_format(answer_format) if isinstance(answer_format, str) else answer_format
        self.last_failures = 0

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        *,
        payload: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        **_columns: Any,
    ) -> list[float]:
        """Rewards in the order of ``completions``; equal (payload, answer) pairs are verified once.

        Raises:
            UserError: the verifier cannot be started.
            ValueError: ``payload`` and ``completions`` differ in length.
        """
        answers = [self.answer_format.extract(completion_text(completion)) for completion in completions]
        pairs = list(zip(payload, answers, strict=True))
        unique = list(dict.fromkeys(pair for pair in pairs if pair[1]))
        verdicts = self.pool.score([(json.loads(text), answer) for text, answer in unique])
        by_pair = dict(zip(unique, verdicts, strict=True))
        found = [by_pair.get(pair) for pair in pairs]
        self.last_failures = sum(verdict is not None and verdict.failure is not None for verdict in found)
        if log_metric is not None:
            log_metric("verifier/failures", float(self.last_failures))
        return [verdict.score if verdict is not None else 0.0 for verdict in found]


class FormatReward:
    """1.0 for each completion that keeps to the answer format, right or wrong, else 0.0.

    Raises:
        UserError: unknown answer format.
    """

    __name__ = "format"

    def __init__(self, answer_format: AnswerFormat | str = "plain"):
        self.answer_format = get_answer_format(answer_format) if isinstance(answer_format, str) else answer_format

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Completion], **_columns: Any) -> list[float]:
        """Rewards in the order of ``completions``."""
        return [float(self.answer_format.is_well_formed(completion_text(c))) for c in completions]
