"""Drawing a token from logits.

Shapes: n rows, V vocabulary, L+t tokens so far.
"""

from collections.abc import Iterable
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

from covgrpo.hardware import widest_float
from covgrpo.rollouts.settings import SamplingSettings

_BLOCK = 256  # vocabulary entries summed before the cumulative sum
# Of a float32 tile of rows: on CPUs so small that it stays in the cache between passes.
_TILE_BYTES = {"cpu": 4 * 2**20}
_TILE_BYTES_ELSEWHERE = 256 * 2**20


class Drawing:
    """Draws the next token of every row, a few rows at a time: no float32 copy of the whole (n, V) logits is made."""

    def __init__(self, settings: SamplingSettings):
        self.temperature = settings.temperature
        self.warp = _warpers(settings)

    def __call__(
        self, logits: Tensor, ids: Tensor, generator: torch.Generator | None, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw from logits (n, V) that follow the tokens ids (n, L+t): next tokens, log-probs and entropies, (n,) each.

        With z = logits / temperature:  log p = log_softmax(z);  H = -sum_a p_a log p_a.
        u (n, 1): uniform numbers to draw by, in the generator's place.
        """
        if u is None:
            # A generator draws where it lives.
            device = logits.device if generator is None else generator.device
            u = torch.rand(len(logits), 1, dtype=widest_float(device), device=device, generator=generator)
            u = u.to(logits.device, widest_float(logits.device))
        size = max(1, _TILE_BYTES.get(logits.device.type, _TILE_BYTES_ELSEWHERE) // (4 * logits.shape[1]))
        tiles = zip(logits.split(size), ids.split(size), u.split(size), strict=True)
        tokens, logps, entropies = zip(*(self._draw(*tile) for tile in tiles), strict=True)
        return torch.cat(tokens), torch.cat(logps), torch.cat(entropies)

    def _draw(self, logits: Tensor, ids: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = logits.float()
        z = logits / self.temperature if self.temperature not in (0, 1) else logits
        log_p = z.log_softmax(dim=1)
        p = log_p.exp()
        entropies = -(p * log_p).sum(dim=1)
        if self.temperature == 0:
            tokens = (_apply(self.warp, ids, logits) if self.warp else logits).argmax(dim=1)
        else:
            if self.warp:
                p = _warped_probabilities(ids, logits, self.temperature, self.warp)
            tokens = _inverse_cdf(p, u)
        return tokens, log_p.gather(1, tokens[:, None])[:, 0], entropies


def _warpers(settings: SamplingSettings) -> LogitsProcessorList:
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


def _warped_probabilities(ids: Tensor, logits: Tensor, temperature: float, warp: LogitsProcessorList) -> Tensor:
    # transformers applies the repetition penalty to the raw logits and the rest after the temperature.
    penalties = [step for step in warp if isinstance(step, RepetitionPenaltyLogitsProcessor)]
    z = _apply(penalties, ids, logits) / temperature
    return _apply([step for step in warp if step not in penalties], ids, z).softmax(dim=1)


def _apply(steps: Iterable[Any], ids: Tensor, logits: Tensor) -> Tensor:
    for step in steps:
        logits = step(ids, logits)
    return logits


def _inverse_cdf(p: Tensor, u: Tensor) -> Tensor:
    """Draw from each row of p (n, V): the first token whose cumulative probability exceeds u ~ U[0, 1), (n, 1).

    One random number a row instead of one a vocabulary entry. First a block of entries by the blocks' masses, then an
    entry of that block, so that only the sums of the blocks read the whole vocabulary; cumulative sums in float64, so
    that rare tokens keep their share.
    """
    dtype = u.dtype
    blocks = nn.functional.pad(p, (0, -p.shape[1] % _BLOCK)).view(len(p), -1, _BLOCK)
    cumulative = _cumulative(blocks.sum(dim=2).to(dtype))
    u = u * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, u, right=True).clamp(max=blocks.shape[1] - 1)
    upper = cumulative.gather(1, block)
    lower = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    within = _cumulative(blocks[torch.arange(len(p), device=p.device), block[:, 0]].to(dtype))
    # How far u lies into its block, as a fraction: the two sums of the block may differ by rounding.
    token = torch.searchsorted(within, (u - lower) / (upper - lower) * within[:, -1:], right=True)
    return (block * _BLOCK + token.clamp(max=_BLOCK - 1))[:, 0].clamp(max=p.shape[1] - 1)


def _cumulative(x: Tensor) -> Tensor:
    """Cumulative sums of rows; torch's own refuse to run on CUDA where deterministic algorithms are asked for."""
    return _scan(x) if x.is_cuda and torch.are_deterministic_algorithms_enabled() else x.cumsum(dim=1)


def _scan(x: Tensor) -> Tensor:
    """Cumulative sums of rows (n, m) in ceil(log2 m) additions of the row to itself, shifted by 1, 2, 4, ..."""
    shift = 1
    while shift < x.shape[1]:
        x = torch.cat([x[:, :shift], x[:, shift:] + x[:, :-shift]], dim=1)
        shift *= 2
    return x
