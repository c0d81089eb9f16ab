"""Weightings that are here to be compared with the method and for nothing else; see docs/results.md."""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.covariance import Covariance
from covgrpo.core.groups import GroupedTokens
from covgrpo.core.weighting.gaussian import gaussian_weights
from covgrpo.core.weighting.kernel import gaussian_exponent, mean_one, precision, variance


@dataclass(frozen=True)
class Bandwidth:
    """The Gaussian kernel with a bandwidth of ``scale`` sigma: w = exp(-c^2 / (2 (scale sigma)^2)), mean 1."""

    scale: float = 1.0

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return w~ (B, T)."""
        tokens = GroupedTokens(logps, advantages, mask, group_ids)
        c = Covariance(tokens)
        return tokens.map(mean_one(tokens, gaussian_exponent(c, precision(c, self.scale**2 * variance(tokens, c)))))


@dataclass(frozen=True)
class NegativeSide:
    """The mirror of ``gaussian_one_sided``: only tokens with c < 0 are damped, w = exp(-min(c, 0)^2 / (2 sigma^2)).

    Those are likely tokens of completions below the group's mean, and unlikely tokens of completions above it.
    """

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return w~ (B, T)."""
        tokens = GroupedTokens(logps, advantages, mask, group_ids)
        c = Covariance(tokens)
        exponent = gaussian_exponent(lambda block: c(block).clamp(max=0), precision(c, variance(tokens, c)))
        return tokens.map(mean_one(tokens, exponent))


@dataclass(frozen=True)
class MicroBatch:
    """The Gaussian kernel with statistics over whichever ``rows`` completions land in one micro-batch.

    This is the defect that covgrpo exists to avoid: which completions share statistics depends on the batch size that
    fits the memory. The rows of a step are dealt to micro-batches in a fixed random order, as a trainer that shuffles
    its rollouts does.
    """

    rows: int = 8

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return w~ (B, T)."""
        B = logps.shape[0]
        order = torch.randperm(B, generator=torch.Generator().manual_seed(B)).to(logps.device)
        micro_B = torch.empty(B, dtype=torch.long, device=logps.device)
        micro_B[order] = torch.arange(B, device=logps.device) // self.rows
        return gaussian_weights(logps, advantages, mask, micro_B)
