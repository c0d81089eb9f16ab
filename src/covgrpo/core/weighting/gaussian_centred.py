"""Ablation: the Gaussian kernel centred at the mean covariance instead of 0."""

from dataclasses import dataclass

from torch import Tensor

from covgrpo.core.covariance import covariance
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting
from covgrpo.core.weighting.kernel import log_kernel, mean_one


@dataclass(frozen=True)
class GaussianCentred(ColumnWeighting):
    """``gaussian_centred``: w = exp(-(c - mean(c))^2 / (2 sigma^2)), then mean 1."""

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w~ (N,)."""
        c = covariance(tokens)
        return mean_one(tokens, log_kernel(tokens, c - tokens.mean(c), tokens.variance_K(c)))
