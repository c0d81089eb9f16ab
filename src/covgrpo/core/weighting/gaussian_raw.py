"""Ablation: the Gaussian kernel without the mean-1 normalisation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.covariance import Covariance
from covgrpo.core.groups import GroupedTokens
from covgrpo.core.weighting.kernel import gaussian_exponent, precision, variance


@dataclass(frozen=True)
class GaussianRaw:
    """``gaussian_raw``: w = exp(-c^2 / (2 sigma^2)), which also shrinks the update (its mean is below 1)."""

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return w (B, T)."""
        tokens = GroupedTokens(logps, advantages, mask, group_ids)
        c = Covariance(tokens)
        exponent = gaussian_exponent(c, precision(c, variance(tokens, c)))
        return tokens.map(lambda block: torch.exp(exponent(block)))
