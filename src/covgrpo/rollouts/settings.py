"""How to sample."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample; the meaning of each option is that of transformers' ``GenerationConfig``.

    Args:
        max_new_tokens: tokens at most, at least 1.
        eos_token_ids: ids that end a completion (kept as its last token).
        pad_token_id: id used for left padding.
        temperature: the logits are divided by it; 0 means greedy.
        top_k: 0 turns it off.
        top_p: fraction of probability mass; 1.0 turns it off.
        min_p: fraction of the largest probability; ``None`` turns it off.
        repetition_penalty: 1.0 turns it off.

    """

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
