"""The Gaussian kernel within each sign of the advantage: neither outcome is damped for being the rarer one.

``gaussian`` measures all tokens of a group by one sigma. Let rewards be 0 and 1, completions equally long, a fraction q
of them right, and let l spread by s about its mean on both sides. Then A - mean(A) is a_+ = sqrt((1 - q) / q) on right
tokens and a_- = -sqrt(q / (1 - q)) on wrong ones, and

    sigma^2 = q (s a_+)^2 + (1 - q) (s a_-)^2 = s^2                                         whatever q is
    w = exp(-(l - mean(l))^2 a_s^2 / (2 s^2)),   a_+^2 = (1 - q) / q,   a_-^2 = q / (1 - q)

so the rarer outcome, whose |a| is above 1, loses most. Within the tokens of one sign s, a_s is a constant, and

    sigma_s = std(c over sign s) = |a_s| std_s(l)
    w = exp(-c^2 / (2 sigma_s^2)) = exp(-((l - mean(l)) / std_s(l))^2 / 2)                  q cancels

A token is damped for how far its log-prob lies from the group's mean, measured by its own side's spread, and for
nothing else. As A is one number on a side, mean 1 within it leaves the side the total push that it has in GRPO,
sum(w A) = sum(A), and so right and wrong completions in balance. Where both sides spread alike, w does not depend on
the sign of A, and where the reward does not depend on a token either, the expected update is 0, as in GRPO.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.covariance import covariance
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting
from covgrpo.core.weighting.gaussian_through import ZERO
from covgrpo.core.weighting.kernel import log_kernel, mean_one


@dataclass(frozen=True)
class GaussianPerSign(ColumnWeighting):
    """``gaussian_per_sign``: w = exp(-c^2 / (2 sigma_s^2)), mean 1, both within the tokens of one sign s of A.

    c is that of ``gaussian``: its means run over the whole group. Tokens with A = 0 have weight 1; their push is 0.

    Args:
        one_sided: damp c > 0 only, as ``gaussian_one_sided``: common tokens of right completions and rare ones of wrong
            completions. Then w depends on the sign of A.

    """

    one_sided: bool = False

    def __post_init__(self) -> None:
        """Check the parameter."""
        if not isinstance(self.one_sided, bool):
            raise ValueError(f"gaussian_per_sign: one_sided must be true or false, not {self.one_sided!r}.")

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w~ (N,)."""
        c, A = covariance(tokens), tokens.A
        zero = ZERO * tokens.each(tokens.max_K(A.abs()))
        w = torch.ones_like(c)
        for side in (zero < A, -zero > A):
            w = torch.where(side, self._within(tokens, c, side), w)
        return w

    def _within(self, tokens: Tokens, c: Tensor, side: Tensor) -> Tensor:
        """Return w~ (N,) by the tokens where ``side`` (N,) holds; it means nothing elsewhere."""
        size_K = tokens.sum_K(side.to(c.dtype)).clamp(min=1)
        mean_K = tokens.sum_K(c.where(side, 0)) / size_K
        sigma2_K = tokens.sum_K((c - tokens.each(mean_K)).square_().where(side, 0)) / size_K
        log_w = log_kernel(tokens, c.clamp(min=0) if self.one_sided else c, sigma2_K).masked_fill_(~side, -torch.inf)
        return mean_one(tokens, log_w, size_K)
