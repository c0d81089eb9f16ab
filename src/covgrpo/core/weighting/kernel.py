"""What the Gaussian-kernel schemes share."""

import torch
from torch import Tensor

from covgrpo.core.covariance import Covariance
from covgrpo.core.groups import Block, GroupedTokens, TokenFunction


def precision(c: Covariance, variance_K: Tensor) -> Tensor:
    """1 / sigma^2 of each group, (K,); 0 (all weights equal) where sigma is below the rounding error of c."""
    no_spread_K = variance_K.sqrt() <= c.rounding_error()
    return torch.where(no_spread_K, 0, 1 / variance_K)


def variance(tokens: GroupedTokens, c: Covariance) -> Tensor:
    """sigma^2 = mean((c - mean(c))^2) of each group: (K,)."""
    mean_c_K = tokens.mean(c)
    return tokens.mean(lambda block: (c(block) - mean_c_K[block.group, None]).square())


def gaussian_exponent(c: TokenFunction, precision_K: Tensor) -> TokenFunction:
    """-c^2 / (2 sigma^2)."""
    return lambda block: -0.5 * precision_K[block.group, None] * c(block).square()


def mean_one(tokens: GroupedTokens, exponent: TokenFunction) -> TokenFunction:
    """w~ = w * N / sum(w) for w = exp(exponent).

    Computed as N * softmax(exponent): subtracting the group's largest exponent keeps w from underflowing.
    """
    top_K = tokens.max(exponent).nan_to_num(neginf=0.0)

    def kernel(block: Block) -> Tensor:
        return torch.exp(exponent(block) - top_K[block.group, None])

    scale_K = tokens.num_tokens_K / tokens.sum(kernel)
    return lambda block: kernel(block) * scale_K[block.group, None]
