"""State of rows that are being sampled: prompts prefilled once each, caches, next logits.

Shapes: n rows still running, P distinct prompts, L prompt length, t tokens of a completion so far, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from covgrpo.forward import (
    GroupCache,
    NotShareableError,
    attending_by,
    cache_argument,
    cache_of,
    is_plain,
    make_growing,
    refuse_our_attention,
    takes_our_attention,
)
from covgrpo.rollouts.gate import causal_lm, positions_are_relative


@dataclass
class Decoding:
    """State of the rows still running."""

    rows: Tensor  # (n,) index among all rows
    ids: Tensor  # (n, L+t) prompt and completion so far
    positions: Tensor  # (n, 1) of the next token
    cache: "_GroupedRows | _CopiedRows"
    logits: Tensor  # (n, V) of the next token

    def keep(self, running: Tensor) -> None:
        """Drop the rows that are not running, (n,) bool."""
        index = running.nonzero()[:, 0]
        self.cache.keep(index)
        self.rows, self.ids, self.positions = self.rows[index], self.ids[index], self.positions[index]

    def advance(self, model: nn.Module, tokens: Tensor) -> None:
        """Append a token (n,) to every row and forward it."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        try:
            self.logits = self.cache.forward(model, tokens, self.positions)
        except NotShareableError:
            if not isinstance(self.cache, _GroupedRows):
                raise
            # Found at the first token, before any row has tokens of its own.
            refuse_our_attention(model)
            self.cache = self.cache.copied()
            self.logits = self.cache.forward(model, tokens, self.positions)
        self.positions = self.positions + 1


class _GroupedRows:
    """Rows that attend to the prompt of their group; its keys and values are held once."""

    def __init__(self, prompts: Cache, prompt_mask: Tensor, prompt_of_row: Tensor):
        self.prompts = prompts
        self.cache = GroupCache(prompts, prompt_mask, prompt_of_row)

    def keep(self, index: Tensor) -> None:
        self.cache.keep(index)

    def forward(self, model: nn.Module, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits (n, V) after the rows' next tokens (n,)."""
        config: Any = model.config
        with attending_by(self.cache, config.get_text_config()):
            output = model(
                input_ids=tokens[:, None],
                position_ids=positions,
                use_cache=True,
                **cache_argument(causal_lm(model), self.cache),
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def copied(self) -> "_CopiedRows":
        return _CopiedRows(self.prompts, self.cache.prompt_mask, self.cache.prompt_of_row)


class _CopiedRows:
    """Rows with a copy each of their prompt's keys and values, or of whatever else the model keeps."""

    def __init__(self, prompts: Cache, prompt_mask: Tensor, prompt_of_row: Tensor):
        prompts.batch_select_indices(prompt_of_row)
        self.cache, self.mask = make_growing(prompts), prompt_mask[prompt_of_row]

    def keep(self, index: Tensor) -> None:
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]

    def forward(self, model: nn.Module, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits (n, V) after the rows' next tokens (n,)."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        output = model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=positions,
            use_cache=True,
            **cache_argument(causal_lm(model), self.cache),
        )
        self.cache = cache_of(output)
        logits: Tensor = output.logits[:, -1]
        return logits


def prefill(model: nn.Module, prompts: list[list[int]], pad: int, device: torch.device) -> Decoding:
    """Forward each distinct prompt once, and what all of them begin with (system prompt, examples) once for all.

    Layout of a row: [common prefix | padding | rest of the prompt]; positions count what is not padding. Where they are
    not relative no prefix is taken out, as padding behind it would push the rest away from it.
    """
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    index = {prompt: i for i, prompt in enumerate(distinct)}
    prompt_of_row = torch.tensor([index[tuple(prompt)] for prompt in prompts], device=device)
    shared = _common_prefix_length(distinct) if positions_are_relative(model) else 0
    cache = _prefix_cache(model, distinct[0][:shared], len(distinct), device) if shared else None
    start = shared if cache is not None else 0
    length = max(map(len, distinct))
    gaps = [length - len(prompt) for prompt in distinct]
    ids = torch.tensor(
        [[*p[:start], *[pad] * gap, *p[start:]] for p, gap in zip(distinct, gaps, strict=True)], device=device
    )
    mask = torch.ones_like(ids)
    for row, gap in enumerate(gaps):
        mask[row, start : start + gap] = 0
    output = model(
        input_ids=ids[:, start:],
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, start:],
        use_cache=True,
        logits_to_keep=1,
        **cache_argument(causal_lm(model), cache),
    )
    cache = cache_of(output)
    # On CPUs stock attention spends more on copies than on products.
    grouped = device.type == "cpu" and is_plain(cache) and takes_our_attention(model)
    kind = _GroupedRows if grouped else _CopiedRows
    return Decoding(
        rows=torch.arange(len(prompts), device=device),
        ids=ids[prompt_of_row],
        positions=mask.sum(dim=1, keepdim=True)[prompt_of_row],
        cache=kind(cache, mask, prompt_of_row),
        logits=output.logits[:, -1][prompt_of_row],
    )


def _common_prefix_length(prompts: list[tuple[int, ...]]) -> int:
    """Tokens that all of several prompts begin with; each prompt keeps at least one token of its own."""
    if len(prompts) == 1:
        return 0
    # Of sorted sequences the first and the last differ earliest.
    first, last = min(prompts), max(prompts)
    differ = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return min(next(differ, len(first)), min(map(len, prompts)) - 1)


def _prefix_cache(model: nn.Module, prefix: tuple[int, ...], copies: int, device: torch.device) -> Cache | None:
    """Keys and values of the prefix, for each prompt; ``None`` where the model keeps more than keys and values.

    (A sliding window or a recurrent state would see the padding that follows the prefix.)
    """
    ids = torch.tensor([prefix], device=device)
    positions = torch.arange(len(prefix), device=device)[None]
    output = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=True, logits_to_keep=1
    )
    cache = cache_of(output)
    if not is_plain(cache):
        return None
    cache.batch_select_indices(torch.zeros(copies, dtype=torch.long, device=device))
    return cache
