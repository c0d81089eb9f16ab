"""Sampling that prefills each prompt once per group (their common prefix once for all), drops
finished rows, and returns log-probs and entropies.

Shapes: N rows, P distinct prompts, L prompt length (left-padded), V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import Cache

from covgrpo.forward import (
    GroupCache,
    NotShareableError,
    attending_by_group,
    is_plain,
    refuse_groups,
    serves_groups,
    with_room,
)

_BLOCK = 256  # vocabulary entries summed before the cumulative sum


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


@dataclass
class Samples:
    """One list per row. ``logps`` and ``entropies`` are those of softmax(logits / temperature), in nats, before top-k,
    top-p, min-p and the repetition penalty: the distribution that the loss scores.
    """

    token_ids: list[list[int]]
    logps: list[list[float]]
    entropies: list[list[float]]


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: list[list[int]],
    settings: SamplingSettings,
    generator: torch.Generator | None = None,
) -> Samples:
    """Sample one completion for every row of ``prompts`` (equal prompts are prefilled once).

    Args:
        model: a causal language model whose forward takes ``past_key_values`` and ``logits_to_keep``.
        prompts: N lists of token ids.
        settings: see :class:`SamplingSettings`.
        generator: random state; ``None`` is torch's global one.

    Raises:
        ValueError: an empty prompt.

    """
    if any(not prompt for prompt in prompts):
        raise ValueError("prompts must not be empty: a completion needs at least one token before it.")
    device = next(model.parameters()).device
    decoding = _prefill(model, prompts, settings.pad_token_id, device)
    warp = _warpers(settings, device)
    eos = torch.tensor(settings.eos_token_ids, device=device)
    samples = _Recorder(len(prompts))
    for position in range(settings.max_new_tokens):
        tokens, logps, entropies = _draw(decoding, settings.temperature, warp, generator)
        samples.record(decoding.rows, tokens, logps, entropies)
        running = ~torch.isin(tokens, eos)
        if position + 1 == settings.max_new_tokens or not running.any():
            break
        if not running.all():
            decoding, tokens = decoding.keep(running), tokens[running]
        decoding.advance(model, tokens)
    return samples.by_row()


@dataclass
class _Decoding:
    """State of the rows still running."""

    rows: Tensor  # (n,) index among all rows
    ids: Tensor  # (n, L+t) prompt and completion so far
    positions: Tensor  # (n, 1) of the next token
    cache: "_GroupedRows | _CopiedRows"
    logits: Tensor  # (n, V) of the next token

    def keep(self, running: Tensor) -> "_Decoding":
        index = running.nonzero()[:, 0]
        self.cache.keep(index)
        return _Decoding(self.rows[index], self.ids[index], self.positions[index], self.cache, self.logits)

    def advance(self, model: nn.Module, tokens: Tensor) -> None:
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        try:
            self.logits = self.cache.forward(model, tokens, self.positions)
        except NotShareableError:
            if not isinstance(self.cache, _GroupedRows):
                raise
            # Found at the first token, before any row has tokens of its own.
            refuse_groups(model)
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
        with attending_by_group(config.get_text_config(), self.cache):
            output = model(
                input_ids=tokens[:, None], position_ids=positions, past_key_values=self.cache, use_cache=True
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def copied(self) -> "_CopiedRows":
        return _CopiedRows(self.prompts, self.cache.prompt_mask, self.cache.prompt_of_row)


class _CopiedRows:
    """Rows with a copy each of their prompt's keys and values, or of whatever else the model keeps."""

    def __init__(self, prompts: Cache, prompt_mask: Tensor, prompt_of_row: Tensor):
        prompts.batch_select_indices(prompt_of_row)
        self.cache, self.mask = with_room(prompts), prompt_mask[prompt_of_row]

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
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits


def _prefill(model: nn.Module, prompts: list[list[int]], pad: int, device: torch.device) -> _Decoding:
    """Forward each distinct prompt once, and what all of them begin with (system prompt, examples) once for all.

    Layout of a row: [common prefix | padding | rest of the prompt]; positions count what is not padding.
    """
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    index = {prompt: i for i, prompt in enumerate(distinct)}
    prompt_of_row = torch.tensor([index[tuple(prompt)] for prompt in prompts], device=device)
    shared = _common_prefix_length(distinct)
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
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache = output.past_key_values
    kind = _GroupedRows if is_plain(cache) and serves_groups(model, device) else _CopiedRows
    return _Decoding(
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
    cache = output.past_key_values
    if not is_plain(cache):
        return None
    cache.batch_select_indices(torch.zeros(copies, dtype=torch.long, device=device))
    return cache


def _warpers(settings: SamplingSettings, device: torch.device) -> LogitsProcessorList:
    """Return what changes the distribution beside the temperature, in transformers' order."""
    warpers = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        warpers.append(RepetitionPenaltyLogitsProcessor(penalty=settings.repetition_penalty))
    if settings.top_k:
        warpers.append(TopKLogitsWarper(top_k=settings.top_k))
    if settings.top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p=settings.top_p))
    if settings.min_p:
        warpers.append(MinPLogitsWarper(min_p=settings.min_p))
    return warpers


def _draw(
    decoding: _Decoding, temperature: float, warp: LogitsProcessorList, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the next token of every row: ids, log-probs and entropies, each (n,).

    With z = logits / temperature:  log p = log_softmax(z);  H = -sum_a p_a log p_a.
    """
    logits = decoding.logits.float()
    z = logits / temperature if temperature not in (0, 1) else logits
    log_p = z.log_softmax(dim=1)
    p = log_p.exp()
    entropies = -(p * log_p).sum(dim=1)
    if temperature == 0:
        tokens = (_apply(warp, decoding.ids, logits) if warp else logits).argmax(dim=1)
    else:
        if warp:
            p = _warped_probabilities(decoding.ids, logits, temperature, warp)
        tokens = _inverse_cdf(p, generator)
    return tokens, log_p.gather(1, tokens[:, None])[:, 0], entropies


def _warped_probabilities(ids: Tensor, logits: Tensor, temperature: float, warp: LogitsProcessorList) -> Tensor:
    # transformers applies the repetition penalty to the raw logits and the rest after the temperature.
    penalties = [step for step in warp if isinstance(step, RepetitionPenaltyLogitsProcessor)]
    z = _apply(penalties, ids, logits) / temperature
    return _apply([step for step in warp if step not in penalties], ids, z).softmax(dim=1)


def _apply(steps: Iterable[Any], ids: Tensor, logits: Tensor) -> Tensor:
    for step in steps:
        logits = step(ids, logits)
    return logits


def _inverse_cdf(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from each row of p (n, V): the first token whose cumulative probability exceeds u ~ U[0, 1).

    One random number a row instead of one a vocabulary entry. First a block of entries by the blocks' masses, then an
    entry of that block, so that only the sums of the blocks read the whole vocabulary; cumulative sums in float64, so
    that rare tokens keep their share.
    """
    dtype = torch.float32 if p.device.type == "mps" else torch.float64
    blocks = nn.functional.pad(p, (0, -p.shape[1] % _BLOCK)).view(len(p), -1, _BLOCK)
    cumulative = blocks.sum(dim=2).to(dtype).cumsum(dim=1)
    u = torch.rand(len(p), 1, dtype=dtype, device=p.device, generator=generator) * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, u, right=True).clamp(max=blocks.shape[1] - 1)
    upper = cumulative.gather(1, block)
    lower = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    within = blocks[torch.arange(len(p), device=p.device), block[:, 0]].to(dtype).cumsum(dim=1)
    # How far u lies into its block, as a fraction: the two sums of the block may differ by rounding.
    token = torch.searchsorted(within, (u - lower) / (upper - lower) * within[:, -1:], right=True)
    return (block * _BLOCK + token.clamp(max=_BLOCK - 1))[:, 0].clamp(max=p.shape[1] - 1)


@dataclass
class _Recorder:
    """Collects the draws of each step and hands them out by row."""

    num_rows: int
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def record(self, rows: Tensor, tokens: Tensor, logps: Tensor, entropies: Tensor) -> None:
        self.steps.append((rows, tokens, logps, entropies))

    def by_row(self) -> Samples:
        samples = Samples([[] for _ in range(self.num_rows)], [[] for _ in range(self.num_rows)], [])
        samples.entropies = [[] for _ in range(self.num_rows)]
        for step in self.steps:
            for row, token, logp, entropy in zip(*(values.tolist() for values in step), strict=True):
                samples.token_ids[row].append(token)
                samples.logps[row].append(logp)
                samples.entropies[row].append(entropy)
        return samples
