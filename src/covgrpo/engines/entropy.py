"""What an engine measures for a scheme that holds the entropy: one rollout batch, seen whole."""

import torch
from torch import Tensor


def measure_entropy(entropies: Tensor, mask: Tensor, group: Tensor) -> tuple[float, float]:
    """Mean entropy of a batch's tokens and the squared standard error of that mean.

    Tokens of one prompt are alike, so the error is taken over the K groups as clusters:

    H = 1/N sum_t h_t,    variance = K / (K - 1) sum_k (sum_{t in k} (h_t - H))^2 / N^2

    Args:
        entropies: (B, T) nats; or -log-probs, whose expectation at a token is its entropy. Ignored where masked.
        mask: (B, T) bool or 0/1.
        group: (B,) int; with one group alone the completions are the clusters.

    Returns:
        nats, and nats squared; both 0 where no token is valid.

    """
    valid = mask.bool()
    h = torch.where(valid, entropies.double(), 0.0)
    N = int(valid.sum())
    if N == 0:
        return 0.0, 0.0
    H = h.sum() / N
    by_row = (h.sum(dim=1) - H * valid.sum(dim=1))[valid.any(dim=1)]
    _, cluster = torch.unique(group[valid.any(dim=1)], return_inverse=True)
    if cluster.max() == 0:
        cluster = torch.arange(len(by_row), device=by_row.device)
    K = int(cluster.max()) + 1
    sums = torch.zeros(K, dtype=h.dtype, device=h.device).index_add_(0, cluster, by_row)
    return H.item(), (K / max(K - 1, 1) * sums.square().sum() / N**2).item()
