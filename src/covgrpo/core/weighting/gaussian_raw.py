"""Ablation: the Gaussian kernel without the mean-1 normalisation."""

from dataclasses import dataclass

from torch import Tensor

from covgrpo.core.covariance import covariance
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting
from covgrpo.core.weighting.kernel import log_kernel


@dataclass(frozen=True)
class GaussianRaw(ColumnWeighting):
    """``gaussian_raw``: w = exp(-c^2 / (2 sigma^2)), which also shrinks the update (its mean is below 1)."""

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w (N,)."""
        c = covariance(tokens)
        return log_kernel(tokens, c, tokens.variance_K(c)).exp_()
