"""Ablation: only tokens that drive entropy down (c > 0) are damped."""

from dataclasses import dataclass

from torch import Tensor

from covgrpo.core.covariance import Covariance
from covgrpo.core.groups import GroupedTokens
from covgrpo.core.weighting.kernel import gaussian_exponent, mean_one, precision, variance


@dataclass(frozen=True)
class GaussianOneSided:
    """``gaussian_one_sided``: w = exp(-max(c, 0)^2 / (2 sigma^2)), then mean 1."""

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return w~ (B, T)."""
        tokens = GroupedTokens(logps, advantages, mask, group_ids)
        c = Covariance(tokens)
        exponent = gaussian_exponent(lambda block: c(block).clamp(min=0), precision(c, variance(tokens, c)))
        return tokens.map(mean_one(tokens, exponent))
