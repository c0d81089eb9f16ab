"""Ablation: a bandwidth that the extreme tokens themselves cannot widen."""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.covariance import Covariance
from covgrpo.core.groups import GroupedTokens
from covgrpo.core.weighting.kernel import gaussian_exponent, mean_one, precision, variance

_NORMAL = 1.4826  # MAD of a normal distribution times this is its standard deviation


@dataclass(frozen=True)
class GaussianMad:
    """``gaussian_mad``: sigma = 1.4826 * median|c - median(c)|; the standard deviation where that median is 0."""

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return w~ (B, T)."""
        tokens = GroupedTokens(logps, advantages, mask, group_ids)
        c = Covariance(tokens)
        median_K = tokens.median(c)
        mad_K = tokens.median(lambda block: (c(block) - median_K[block.group, None]).abs())
        robust_K = (_NORMAL * mad_K).square()
        # More than half of the tokens can share one c (identical completions): then MAD says nothing.
        sigma2_K = torch.where(mad_K <= c.rounding_error(), variance(tokens, c), robust_K)
        return tokens.map(mean_one(tokens, gaussian_exponent(c, precision(c, sigma2_K))))
