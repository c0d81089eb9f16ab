"""The Gaussian kernel: the method of arXiv 2605.11538."""

from dataclasses import dataclass

from torch import Tensor

from covgrpo.core.covariance import covariance
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting
from covgrpo.core.weighting.kernel import log_kernel, mean_one


def gaussian_weights(logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
    """Gaussian-kernel weights of the token advantages (arXiv 2605.11538, section 3).

    c      = (l - mean(l)) * (A - mean(A))          token covariance
    sigma  = std of c about its own mean            bandwidth: no hyperparameter
    w      = exp(-c^2 / (2 sigma^2))                kernel centred at 0: both tails are suppressed
    w~     = w * N / sum(w)                         mean 1: the update is reallocated, not shrunk

    All means and sums run over the N valid tokens of the token's group. Where sigma is 0 (all advantages equal, one
    token, one response) every w~ is 1.

    Args:
        logps: (B, T) any float dtype; log-probability of each sampled token under the policy that sampled it.
        advantages: (B,) or (B, T) any float dtype.
        mask: (B, T) bool or 0/1; valid completion tokens. What is stored at masked positions (NaN, inf) is ignored.
        group_ids: (B,) integers in any order and with gaps; rows with the same id form a group. ``None``: one group.

    Returns:
        (B, T) float32 (float64 for float64 ``logps``), mean 1 over each group's valid tokens, 0 at masked positions,
        without gradient.

    Raises:
        ValueError: a wrong shape or dtype; the sentence names the argument and its shape.

    """
    return Gaussian()(logps, advantages, mask, group_ids)


@dataclass(frozen=True)
class Gaussian(ColumnWeighting):
    """``gaussian``: see :func:`gaussian_weights`. No hyperparameter."""

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w~ (N,)."""
        c = covariance(tokens)
        sigma2_K = tokens.variance_K(c)
        return mean_one(tokens, log_kernel(tokens, c, sigma2_K))
