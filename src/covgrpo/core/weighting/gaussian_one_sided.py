"""Ablation: only tokens that drive entropy down (c > 0) are damped."""

from dataclasses import dataclass

from torch import Tensor

from covgrpo.core.covariance import covariance
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting
from covgrpo.core.weighting.kernel import log_kernel, mean_one


@dataclass(frozen=True)
class GaussianOneSided(ColumnWeighting):
    """``gaussian_one_sided``: w = exp(-max(c, 0)^2 / (2 sigma^2)), then mean 1."""

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w~ (N,)."""
        c = covariance(tokens)
        return mean_one(tokens, log_kernel(tokens, c.clamp(min=0), tokens.variance_K(c)))
