"""The Gaussian kernel with the gradient through its weights: the update in the code of the paper's first author."""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.covariance import Covariance
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting, WeightingError
from covgrpo.core.weighting.kernel import log_kernel, mean_one, precision_K

NORMALISERS = ("completion", "token")
# |A| up to this fraction of the group's largest is 0, and so is mean(A): rounding of float32 advantages.
ZERO = 1e-6


def gaussian_through_weights(
    logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    group_ids: Tensor | None = None,
    normaliser: str = "completion",
    padded_mean: bool = False,
) -> Tensor:
    """Effective weights of the Gaussian kernel when the loss is differentiated through the weights as well.

    arXiv 2605.11538 does not say whether a gradient flows through w~. In its first author's code it does: the log-probs
    in c, in sigma and in the normaliser are live. On-policy, over the N valid tokens of a group, its objective is

    J  = sum n A w~ exp(l - stopgrad(l))            n = 1 / tokens of the completion (``completion``) or 1 (``token``)
    w~ = N w / S,   w = exp(-c^2 / (2 sigma^2)),   S = sum(w),   sigma = std(c)
    c  = (l - mean(l)) * a,   a = A - mean(A)       mean(l): the completion's own tokens; mean(A): over completions

    Its gradient is sum_t g_t grad(l_t) with

    u = n A w~                                                          through exp(l - stopgrad(l))
    v = u - w sum(u) / S                                                dJ / d log w
    h = -v c / sigma^2 + (c - mean(c)) sum(v c^2) / (N sigma^4)         dJ / dc
    g = u + a h - mean(a h)                                             mean: the completion's own tokens

    and the effective weight g / (n A), held constant, gives the same update. Its sum over a completion is that of w~,
    so its mean over the group's tokens is 1: the second term only moves push within a completion. It may be negative.
    Where sigma is 0 (equal advantages, completions of one token) every weight is 1. Where A is 0 the weight is 1, too,
    and the update 0: in a group of mean advantage 0 so is the code's gradient. A completion without valid tokens is in
    no statistic.

    Args:
        logps: (B, T) any float dtype; log-probability of each sampled token under the policy that sampled it.
        advantages: (B,) or (B, T) any float dtype; of (B, T) the mean over a completion's tokens enters mean(A).
        mask: (B, T) bool or 0/1; valid completion tokens. What is stored at masked positions (NaN, inf) is ignored.
        group_ids: (B,) integers in any order and with gaps; rows with the same id form a group. ``None``: one group.
        normaliser: what the loss divides a token by: ``completion``, the mean over a completion's tokens and then over
            completions; ``token``, one number for all tokens.
        padded_mean: the code's own mean weight: there N is the number of positions of the padded group, G max_i(n_i)
            for G completions of n_i tokens.

    Returns:
        (B, T) float32 (float64 for float64 ``logps``), 0 at masked positions, without gradient; mean 1 over the valid
        tokens of each group without an advantage of 0 (with ``padded_mean`` G max_i(n_i) / N).

    Raises:
        ValueError: a wrong shape, dtype or normaliser; or an advantage of 0 in a group whose mean advantage is not 0:
            the code's gradient is not 0 there, and no factor on the advantage gives it. Names the row.

    """
    if normaliser not in NORMALISERS:
        raise ValueError(f"normaliser must be {' or '.join(NORMALISERS)}, not {normaliser!r}.")
    return GaussianThrough(normaliser, padded_mean)(logps, advantages, mask, group_ids)


def effective_weights(cov: Covariance, normaliser: str, mean_weight: Tensor | float = 1.0) -> Tensor:
    """Compute g / (n A), (N,), for either definition of c; see :func:`gaussian_through_weights`.

    ``mean_weight`` is the mean of w~, a number or a column.

    Raises:
        ValueError: an advantage is 0 and the mean advantage of its group is not.

    """
    tokens, c, mean = cov.tokens, cov.c, cov.tokens.mean
    sigma2_K = tokens.variance_K(c)
    precision = tokens.each(precision_K(tokens, sigma2_K))  # 1 / sigma^2
    w = mean_one(tokens, log_kernel(tokens, c, sigma2_K))  # w~
    nA = tokens.A
    if normaliser == "completion":
        nA /= tokens.each_row(tokens.num_tokens_B)
    v = w * (nA - mean(nA * w))  # u - w sum(u) / S, as w / S = w~ / N
    h = (c - mean(c)) * mean(v * c.square()) * precision.square() - v * c * precision
    return torch.where(_zero_advantages(cov), 1, mean_weight * (w + cov.gradient(h) / nA))


def padding_K(tokens: Tokens) -> Tensor:
    """Positions of the padded group by its valid tokens, G max_i(n_i) / N: (K,)."""
    n_B = tokens.num_tokens_B
    longest_K = torch.zeros_like(tokens.num_tokens_K).scatter_reduce_(0, tokens.group_B, n_B, "amax")
    return tokens.sum_rows((n_B > 0).to(tokens.dtype)) * longest_K / tokens.num_tokens_K


def _zero_advantages(cov: Covariance) -> Tensor:
    """Where A is 0, (N,) bool.

    Raises:
        ValueError: a = A - mean(A) is not 0 there as well.

    """
    tokens = cov.tokens
    size = tokens.A.abs_()
    largest = tokens.each(tokens.max_K(size))
    zero, rounding = size <= ZERO * largest, max(ZERO, 4 * tokens.eps_A)
    lost = zero & (cov.a.abs() > rounding * largest) & ~tokens.each(cov.flat_K)
    if lost.any():
        row = int(tokens.row[lost.nonzero()[0, 0]])
        raise WeightingError(
            f"gaussian_through: advantages[{tokens.row_in_batch(row)}] is 0 and the mean advantage of its group is "
            f"{cov.mean_A_K[tokens.group_B[row]]:.3g}; no weight gives the gradient through the kernel there: use "
            "advantages whose mean over the completions of a group is 0."
        )
    return zero


@dataclass(frozen=True)
class GaussianThrough(ColumnWeighting):
    """``gaussian_through``: see :func:`gaussian_through_weights`.

    Args:
        normaliser: ``completion`` or ``token``; ``None``: that of the engine's loss, or ``completion``.
        padded_mean: mean weight G max_i(n_i) / N, as in the code of the paper's first author, instead of 1.

    """

    normaliser: str | None = None
    padded_mean: bool = False

    def __post_init__(self) -> None:
        """Check the parameters."""
        if self.normaliser is not None and self.normaliser not in NORMALISERS:
            known = " or ".join(NORMALISERS)
            raise ValueError(f"gaussian_through: normaliser must be {known}, not {self.normaliser!r}.")
        if not isinstance(self.padded_mean, bool):
            raise ValueError(f"gaussian_through: padded_mean must be true or false, not {self.padded_mean!r}.")

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return the effective weights (N,)."""
        mean_weight = tokens.each(padding_K(tokens)) if self.padded_mean else 1.0
        return effective_weights(Covariance.over_completion(tokens), self.normaliser or NORMALISERS[0], mean_weight)
