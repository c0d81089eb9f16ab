"""What the Gaussian-kernel schemes share, in columns of the N valid tokens."""

import torch
from torch import Tensor

from covgrpo.core.covariance import rounding_error_K
from covgrpo.core.tokens import Tokens


def precision_K(tokens: Tokens, sigma2_K: Tensor) -> Tensor:
    """1 / sigma^2 of each group, (K,); 0 (all weights equal) where sigma is below the rounding error of c."""
    return torch.where(sigma2_K.sqrt() <= rounding_error_K(tokens), 0, 1 / sigma2_K)


def log_kernel(tokens: Tokens, x: Tensor, sigma2_K: Tensor) -> Tensor:
    """-x^2 / (2 sigma^2): (N,)."""
    return x.square().mul_(tokens.each(-0.5 * precision_K(tokens, sigma2_K)))


def mean_one(tokens: Tokens, log_w: Tensor, size_K: Tensor | None = None) -> Tensor:
    """w~ = w * N / sum(w): (N,).

    Computed as N * softmax(log w): subtracting the group's largest exponent keeps w from underflowing. ``log_w`` is
    used up. ``size_K``: N, where log w is -inf at the other tokens of the group.
    """
    top_K = tokens.max_K(log_w).nan_to_num(neginf=0.0)
    w = log_w.sub_(tokens.each(top_K)).exp_()
    N_K = tokens.num_tokens_K if size_K is None else size_K
    return w.mul_(tokens.each(N_K / tokens.sum_K(w)))
