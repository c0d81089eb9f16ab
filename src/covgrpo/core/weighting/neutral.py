"""Covariance-neutral weights: the least change of the weights that moves the mean token covariance to a set value.

To first order dH ~ -eta Cov(log pi, w A) (arXiv 2505.22617): the mean covariance says how fast the entropy falls. A
kernel damps whole tails for it. The least that does it, over the N valid tokens of the scope, with m = mean(c), is

    minimise  sum (w - 1)^2   subject to   mean(w) = 1,   mean(w c) = (1 - kappa) m,   w >= 0           (1)

kappa 0 is plain GRPO, kappa 1 takes the covariance to 0, kappa above 1 turns its sign, kappa below 0 enlarges it.

**Solution.** The Lagrangian is stationary at w_t = max(0, a - b c_t): clamped tokens are those with the largest c
(b > 0) or the smallest (b < 0). On the n tokens that are not clamped, with mean u and variance v of their c, the two
constraints give

    w_t = N/n (1 - s (c_t - u)),   s = (u - (1 - kappa) m) / v                                          (2)

and with all of them, u = m and v = var(c), w = 1 - kappa m (c - m) / var(c). What is left to find is which are clamped.
Let b > 0 (else flip c), q = (1 - kappa) m, and z = u + 1/s the c from which on w is 0. The constraints hold where

    h(z) = sum_t max(0, z - c_t) (c_t - q) = 0.

h is linear between neighbouring c; it is not above 0 up to z = q, convex from there on, and ends rising: one root. (2)
on the tokens below some z is Newton's step for h from that z. Begun on the right of the root, with all tokens, such
steps never pass it. So a clamped token stays clamped, and the first pass that clamps none stands at the root: exact,
without a tolerance. By convexity h h' falls at least fourfold a pass, so the passes grow with the logarithm of the
range of c, not with N (a handful in practice). None needs a sort, and only groups with newly clamped tokens see the
next.

**Targets out of reach.** mean(w c) lies between min(c) and max(c), and towards the ends all weight goes to few tokens:
a step made of their noise. So the effective sample size is bounded as well,

    ESS = (sum w)^2 / (N sum w^2) >= 1/2,   that is   mean((w - 1)^2) <= 1                              (3)

and where the target needs less, the weights go as near to it as (3) lets them. Why the ESS: it is what uneven weights
cost (at 1/2 they double the variance of a mean), and it is the quadratic form that (1) minimises already. So the
solution stays (2), with s = sqrt((2 n/N - 1) / v) where that is smaller, found by the same passes, and the weights are
continuous in kappa. Where half of the tokens or more share the extreme c, the end itself is reached: N/n on them, 0
elsewhere. Without clamped tokens (3) acts from |kappa m| = std(c) on, and earlier where a heavy tail makes most of
std(c); m is usually a few hundredths of std(c). :meth:`Neutral.fit` says what was reached.

**Which covariance.** The theory's is that within each distribution that a token was drawn from. There the mean of
log pi is -h, h its entropy. So an engine that knows h hands the scheme l + h in place of l
(:func:`covgrpo.core.covariance.centred_logps`). With l alone, c has the covariance *between* the tokens as well: those
of uncertain distributions have low log-probs, and their advantages differ by where in a completion they are. No entropy
moves by that, and on short answers it is half of the variance of c. A token that was certain (l = h = 0) has a c of 0
but for mean(l + h), which is 0 but for the draw.

**What is held.** mean(w c) = Cov(l, w (A - mean A)). The loss has w A instead, and so the entropy is driven by

    Cov(l, w A) = mean((l - mean l) w A) = mean(w c) + mean(A) Cov(l, w).

They are equal where the token-weighted mean of A is 0, which it is not where wrong completions are longer. On
synthetic heavy-tailed batches of 2,400 tokens with mean(A) = -0.17 the last term was 3 % of kappa m (median), on groups
of 8 completions of 5 tokens 13 %.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covgrpo.core.covariance import covariance, rounding_error_K
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting

MIN_ESS = 0.5  # (sum w)^2 / (N sum w^2), a fraction of the N tokens


@dataclass(frozen=True)
class NeutralFit:
    """Weights, and what they do to the mean covariance of each group: (K,), in ascending order of the group ids."""

    weights: Tensor  # (B, T)
    mean: Tensor  # mean(c), what weights of 1 give
    target: Tensor  # (1 - kappa) mean(c)
    reached: Tensor  # mean(w c)
    held: Tensor  # bool; reached is the target, not the nearest value that (3) allows


def neutral_weights(
    logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None, kappa: float = 1.0
) -> Tensor:
    """Weights nearest to 1 that take the mean token covariance to (1 - kappa) of what it was.

    minimise sum (w - 1)^2   subject to   mean(w) = 1,  mean(w c) = (1 - kappa) mean(c),  w >= 0

    All means run over the N valid tokens of the token's group. Where no token is clamped this is
    w = 1 - kappa mean(c) (c - mean(c)) / var(c). Where c is constant (all advantages equal, one token) or mean(c) is 0,
    every w is 1. A target that would take the effective sample size (sum w)^2 / (N sum w^2) below 1/2 is approached as
    far as 1/2 allows (see the module's text, and :meth:`Neutral.fit` for the value reached).

    Args:
        logps: (B, T) any float dtype; log-probability of each sampled token under the policy that sampled it, plus the
            entropy of its distribution where that is known.
        advantages: (B,) or (B, T) any float dtype.
        mask: (B, T) bool or 0/1; valid completion tokens. What is stored at masked positions (NaN, inf) is ignored.
        group_ids: (B,) integers in any order and with gaps; rows with the same id form a group. ``None``: one group.
        kappa: any finite number; the share of the mean covariance that is taken away.

    Returns:
        (B, T) float32 (float64 for float64 ``logps``), at least 0, mean 1 over each group's valid tokens, 0 at masked
        positions, without gradient.

    Raises:
        ValueError: a wrong shape or dtype, or a kappa that is not finite; the sentence names the argument.

    """
    return Neutral(kappa)(logps, advantages, mask, group_ids)


def _fit(tokens: Tokens, kappa: float) -> tuple["_Solution", Tensor, Tensor]:
    """Solve in every group: the solution, its weights (N,), and the rounding error of c (K,)."""
    c, group, noise_K = covariance(tokens), tokens.group, rounding_error_K(tokens)
    solution = _solve(c, group, noise_K, kappa)
    return solution, solution.weights(c, group), noise_K


@dataclass(frozen=True)
class _Line:
    """1 - slope (c - centre) in each group: (K,)."""

    centre: Tensor
    slope: Tensor

    def at(self, c: Tensor, group: Tensor) -> Tensor:
        return 1 - _of(self.slope, group) * (c - _of(self.centre, group))


@dataclass(frozen=True)
class _Solution:
    """w = height max(0, line), and 0 where ``cut``, the last line that clamped a token, is below 0: (K,)."""

    line: _Line
    cut: _Line
    height: Tensor
    mean: Tensor  # mean(c)
    reached: Tensor  # mean(w c)

    def weights(self, c: Tensor, group: Tensor) -> Tensor:
        w = _of(self.height, group) * self.line.at(c, group).clamp(min=0)
        # A flat line, where what is left has no spread, says nothing of the clamped tokens.
        return w.masked_fill(self.cut.at(c, group) < 0, 0)


def _solve(c_N: Tensor, group_N: Tensor, noise_K: Tensor, kappa: float) -> _Solution:
    """Solve (1) and (3) in every group.

    Args:
        c_N: (N,) token covariances.
        group_N: (N,) the group of each, in 0..K-1.
        noise_K: (K,) a standard deviation of c up to this is rounding error.
        kappa: share of the mean that is taken away.

    """
    left = _Columns(c_N, group_N, len(noise_K))
    size_K, centre_K, variance_K = left.moments()
    total_K, mean_K = size_K, centre_K
    cut = _Line(mean_K, torch.zeros_like(mean_K))
    while True:
        # (2), no steeper than (3) allows; flat where c has no spread
        steepest_K = ((size_K / total_K / MIN_ESS - 1).clamp(min=0) / variance_K).sqrt()
        slope_K = ((kappa * mean_K + (centre_K - mean_K)) / variance_K).clamp(-steepest_K, steepest_K)
        line = _Line(centre_K, torch.where(variance_K.sqrt() <= noise_K, 0, slope_K))
        left, open_K = left.without_clamped(line)
        if not open_K.any():
            return _Solution(line, cut, total_K / size_K, mean_K, reached=centre_K - line.slope * variance_K)
        # another pass over what is left of the groups with newly clamped tokens
        cut = _Line(torch.where(open_K, line.centre, cut.centre), torch.where(open_K, line.slope, cut.slope))
        moments = zip(left.moments(), (size_K, centre_K, variance_K), strict=True)
        size_K, centre_K, variance_K = (torch.where(open_K, new, old) for new, old in moments)


@dataclass(frozen=True)
class _Columns:
    """Tokens of K groups in columns, walked in blocks so that the temporaries stay in the cache."""

    c: Tensor  # (N,)
    group: Tensor  # (N,)
    num_groups: int

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield consecutive parts of both columns."""
        size = 1 << (16 if self.c.device.type == "cpu" else 24)
        return zip(self.c.split(size), self.group.split(size), strict=True)

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and variance of c in each group: (K,) each; count 1 for a group without tokens."""
        size_K = torch.bincount(self.group, minlength=self.num_groups).clamp(min=1).to(self.c.dtype)
        mean_K = self.sum(lambda c, group: c) / size_K
        return size_K, mean_K, self.sum(lambda c, group: (c - _of(mean_K, group)).square()) / size_K

    def sum(self, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Sum ``function`` over each group: (K,)."""
        total_K = self.c.new_zeros(self.num_groups)
        for c, group in self.blocks():
            if self.num_groups == 1:
                total_K += function(c, group).sum()
            else:
                total_K.index_add_(0, group, function(c, group))
        return total_K

    def without_clamped(self, line: _Line) -> tuple["_Columns", Tensor]:
        """Return the tokens not below 0 on ``line``, of the groups that have others, and which groups those are."""
        clamped = [line.at(c, group) < 0 for c, group in self.blocks()]
        open_K = torch.zeros_like(line.slope, dtype=torch.bool)
        for block_clamped, (_, group) in zip(clamped, self.blocks(), strict=True):
            open_K[group[block_clamped]] = True
        if not open_K.any():
            return self, open_K
        parts = []
        for block_clamped, (c, group) in zip(clamped, self.blocks(), strict=True):
            index = (~block_clamped & _of(open_K, group)).nonzero()[:, 0]
            parts.append((c[index], group[index]))
        return _Columns(torch.cat([c for c, _ in parts]), torch.cat([g for _, g in parts]), self.num_groups), open_K


def _of(values_K: Tensor, group: Tensor) -> Tensor:
    """Return the value of each token's group: in the shape of ``group``, or (1,) where there is one group."""
    return values_K if len(values_K) == 1 else values_K[group]


@dataclass(frozen=True)
class Neutral(ColumnWeighting):
    """``neutral``: see :func:`neutral_weights`.

    Args:
        kappa: share of the mean covariance that is taken away: 0 is plain GRPO, 1 leaves none, a negative one enlarges
            it. ``dataclasses.replace(scheme, kappa=...)`` is the scheme with another.

    """

    kappa: float = 1.0

    needs_entropies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check kappa."""
        if not math.isfinite(self.kappa):
            raise ValueError(f"neutral: kappa must be a finite number, got {self.kappa}.")

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w (N,)."""
        return _fit(tokens, self.kappa)[1]

    def fit(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> NeutralFit:
        """:func:`neutral_weights` with what they reach."""
        tokens = Tokens(logps, advantages, mask, group_ids)
        solution, weights, noise_K = _fit(tokens, self.kappa)
        target_K = (1 - self.kappa) * solution.mean
        held_K = (solution.reached - target_K).abs() <= noise_K
        return NeutralFit(tokens.fill(weights), solution.mean, target_K, solution.reached, held_K)
