"""What the covariances and weights of a step look like, in a few numbers."""

from fractions import Fraction

import torch
from torch import Tensor

from covgrpo.metrics.tokens import StepTokens, covariance_of

# The rows of the paper's covariance table: the threshold that the top fraction of a side's tokens reaches.
SIDE_FRACTIONS = {name: Fraction(name) for name in ("0.0001", "0.01", "0.2", "0.4", "1")}
WEIGHT_FRACTIONS = {name: Fraction(name) for name in ("0.01", "0.1", "0.5")}
_TOP = Fraction("0.01")


def summarise(tokens: StepTokens) -> dict[str, float]:
    """Summarise an optimizer step's tokens; every number counts each valid token once.

    Returns:
        ``entropy``: mean entropy, nats. ``cov/mean``, ``cov/sigma``: mean and population standard deviation of c.
        ``cov/pos_f`` (``cov/neg_f``): the c that the fraction f of the tokens with c > 0 (c < 0) reaches or exceeds
        (falls to or below); a token's own value; absent where a side has no token.
        ``cov/weighted``: Cov(l, w A), what drives the entropy once the advantages are weighted.
        ``weight/min``, ``weight/max``, ``weight/q_f``: the weight that the fraction f of the tokens falls to or below.
        ``weight/ess``: effective sample size (sum w)^2 / (N sum w^2), a fraction of the N tokens; negative weights
        lower it.
        ``weight/reversed``: fraction of the N tokens with w < 0, whose push is turned round.
        ``update/top_share``, ``update/top_share_unweighted``: the share of sum_t u_t that the 1 % of the tokens with
        the largest u carry, u = |w A| (1 - p), with the weights and with w = 1.
        Empty where no token is valid.

    """
    if len(tokens) == 0:
        return {}
    logps, weighted_A = tokens.logps.double(), tokens.weights.double() * tokens.advantages.double()
    weighted_c = covariance_of(logps, weighted_A, tokens.group)
    weighting = summarise_weighting(tokens.logps, tokens.advantages, tokens.weights, tokens.c, weighted_c)
    return {"entropy": tokens.entropies.double().mean().item(), **weighting}


def summarise_weighting(
    logps: Tensor, advantages: Tensor, weights: Tensor, c: Tensor, weighted_c: Tensor
) -> dict[str, float]:
    """Summarise tokens whose entropies are not known: :func:`summarise` without ``entropy``.

    Args:
        logps: (N,) float, N at least 1; columns as in :class:`StepTokens`.
        advantages: (N,) float.
        weights: (N,) float.
        c: (N,) float.
        weighted_c: (N,) float; covariance with the weighted advantages.

    """
    w, A, c = weights.double(), advantages.double(), c.double()
    squares = w.square().sum()
    # |grad_z w A log p(y)|_1 = 2 |w A| (1 - p): half of it, over the logits z of the token's position.
    size = A.abs() * -torch.expm1(logps.double())
    return {
        "cov/mean": c.mean().item(),
        "cov/sigma": c.std(correction=0).item(),
        **_sides(c),
        "cov/weighted": weighted_c.double().mean().item(),
        **_weight_quantiles(w),
        "weight/ess": (w.sum().square() / (len(w) * squares)).item() if squares > 0 else 0.0,
        "weight/reversed": (w < 0).double().mean().item(),
        "update/top_share": _top_share(w.abs() * size),
        "update/top_share_unweighted": _top_share(size),
    }


def rank(count: int, fraction: Fraction) -> int:
    """Return k = ceil(f N), at least 1, in integers: no interpolation, so that a quantile is a token's own value."""
    return max(1, -(-count * fraction.numerator // fraction.denominator))


def _sides(c: Tensor) -> dict[str, float]:
    ordered = c.sort().values
    negative, positive = ordered[ordered < 0], ordered[ordered > 0].flip(0)
    return {
        f"cov/{side}_{name}": values[rank(len(values), fraction) - 1].item()
        for side, values in (("pos", positive), ("neg", negative))
        for name, fraction in SIDE_FRACTIONS.items()
        if len(values)
    }


def _weight_quantiles(w: Tensor) -> dict[str, float]:
    ordered = w.sort().values
    quantiles = {f"weight/q_{n}": ordered[rank(len(w), f) - 1].item() for n, f in WEIGHT_FRACTIONS.items()}
    return {"weight/min": ordered[0].item(), **quantiles, "weight/max": ordered[-1].item()}


def _top_share(size: Tensor) -> float:
    total = size.sum()
    top = size.topk(rank(len(size), _TOP)).values.sum()
    return (top / total).item() if total > 0 else 0.0
