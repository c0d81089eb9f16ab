"""What a batch's covariances and weights look like, in a few numbers."""

from torch import Tensor

# The quantiles of the paper's covariance table: the threshold that the top fraction of tokens exceeds.
TAIL_FRACTIONS = (0.0001, 0.01, 0.2)


def summarise(c: Tensor, weights: Tensor, mask: Tensor) -> dict[str, float]:
    """Summarise token covariances and weights over all valid tokens.

    Args:
        c: (B, T) token covariances.
        weights: (B, T) token weights.
        mask: (B, T) bool or 0/1.

    Returns:
        ``cov/mean`` and ``cov/sigma`` of c (population standard deviation); ``cov/top_f`` and ``cov/bottom_f``: the
        value that the fraction f of tokens exceeds (lies below); ``weight/min``; ``weight/ess``: effective sample size
        (sum w)^2 / (N sum w^2), a fraction of the N tokens. Empty where no token is valid.

    """
    valid = mask.bool()
    c, weights = c[valid].double(), weights[valid].double()
    if c.numel() == 0:
        return {}
    ordered = c.sort().values
    summary = {"cov/mean": c.mean().item(), "cov/sigma": c.std(correction=0).item()}
    for fraction in TAIL_FRACTIONS:
        # The k-th value from either end, k = ceil(f N): no interpolation, so the number is a token's own.
        k = max(1, -int(-fraction * len(ordered) // 1))
        summary[f"cov/top_{fraction:g}"] = ordered[-k].item()
        summary[f"cov/bottom_{fraction:g}"] = ordered[k - 1].item()
    summary["weight/min"] = weights.min().item()
    squares = weights.square().sum()
    summary["weight/ess"] = (weights.sum().square() / (len(weights) * squares)).item() if squares > 0 else 0.0
    return summary
