"""Ablation: a bandwidth that the extreme tokens themselves cannot widen."""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.covariance import covariance, rounding_error_K
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting
from covgrpo.core.weighting.kernel import log_kernel, mean_one

_NORMAL = 1.4826  # MAD of a normal distribution times this is its standard deviation


@dataclass(frozen=True)
class GaussianMad(ColumnWeighting):
    """``gaussian_mad``: sigma = 1.4826 * median|c - median(c)|; the standard deviation where that median is 0."""

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w~ (N,)."""
        c = covariance(tokens)
        mad_K = tokens.median_K((c - tokens.each(tokens.median_K(c))).abs())
        # More than half of the tokens can share one c (identical completions): then MAD says nothing.
        no_mad_K = mad_K <= rounding_error_K(tokens)
        sigma2_K = torch.where(no_mad_K, tokens.variance_K(c), (_NORMAL * mad_K).square())
        return mean_one(tokens, log_kernel(tokens, c, sigma2_K))
