"""Weightings that are here to be compared with the method and for nothing else; see docs/results.md."""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.covariance import Covariance, covariance
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting
from covgrpo.core.weighting.gaussian import Gaussian, gaussian_weights
from covgrpo.core.weighting.gaussian_through import effective_weights, padding_K
from covgrpo.core.weighting.kernel import log_kernel, mean_one


@dataclass(frozen=True)
class Bandwidth(ColumnWeighting):
    """The Gaussian kernel with a bandwidth of ``scale`` sigma: w = exp(-c^2 / (2 (scale sigma)^2)), mean 1."""

    scale: float = 1.0

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w~ (N,)."""
        c = covariance(tokens)
        return mean_one(tokens, log_kernel(tokens, c, self.scale**2 * tokens.variance_K(c)))


@dataclass(frozen=True)
class NegativeSide(ColumnWeighting):
    """The mirror of ``gaussian_one_sided``: only tokens with c < 0 are damped, w = exp(-min(c, 0)^2 / (2 sigma^2)).

    Those are likely tokens of completions below the group's mean, and unlikely tokens of completions above it.
    """

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w~ (N,)."""
        c = covariance(tokens)
        return mean_one(tokens, log_kernel(tokens, c.clamp(max=0), tokens.variance_K(c)))


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


# What the code of the paper's first author does differently from its text, each alone (docs/methods.md). All of it
# together is ``gaussian_through`` with ``padded_mean``.


@dataclass(frozen=True)
class CompletionMeans(ColumnWeighting):
    """The Gaussian kernel with l centred by completion and A over completions; no gradient through the weights."""

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w~ (N,)."""
        c = Covariance.over_completion(tokens).c
        return mean_one(tokens, log_kernel(tokens, c, tokens.variance_K(c)))


@dataclass(frozen=True)
class Through(ColumnWeighting):
    """The Gaussian kernel of the text, both means over the group's tokens, with the gradient through the weights."""

    normaliser: str | None = None

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return the effective weights (N,)."""
        return effective_weights(Covariance.over_group(tokens), self.normaliser or "completion")


@dataclass(frozen=True)
class PaddedMean(ColumnWeighting):
    """The Gaussian kernel of the text with mean weight G max_i(n_i) / N instead of 1."""

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return the weights (N,)."""
        return Gaussian().weigh(tokens) * tokens.each(padding_K(tokens))
