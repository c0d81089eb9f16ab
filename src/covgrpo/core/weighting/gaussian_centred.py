"""Ablation: the Gaussian kernel centred at the mean covariance instead of 0."""

from dataclasses import dataclass

from torch import Tensor

from covgrpo.core.covariance import Covariance
from covgrpo.core.groups import Block, GroupedTokens
from covgrpo.core.weighting.kernel import gaussian_exponent, mean_one, precision, variance


@dataclass(frozen=True)
class GaussianCentred:
    """``gaussian_centred``: w = exp(-(c - mean(c))^2 / (2 sigma^2)), then mean 1."""

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return w~ (B, T)."""
        tokens = GroupedTokens(logps, advantages, mask, group_ids)
        c = Covariance(tokens)
        mean_c_K = tokens.mean(c)

        def deviation(block: Block) -> Tensor:
            return c(block) - mean_c_K[block.group, None]

        return tokens.map(mean_one(tokens, gaussian_exponent(deviation, precision(c, variance(tokens, c)))))
