"""Slow reference of the candidates: weights that are to keep what GRPO learns and lose less diversity.

Shares no code with `covgrpo`. Inputs and outputs are nested lists, as in reference.py; inside a group `lp` and `adv`
are lists of its valid tokens' log-probs and advantages.
"""

import math

import reference

# |A| up to this share of the group's largest is 0.
ZERO_ADVANTAGE = 1e-6


def gaussian_per_sign_weights(logps, advantages, mask, group_ids=None, one_sided=False):
    """w~ of a kernel with its own bandwidth and mean 1 on each sign of A."""
    return _per_group(lambda lp, adv: group_per_sign(lp, adv, one_sided), logps, advantages, mask, group_ids)


def neutral_common_weights(logps, advantages, mask, group_ids=None):
    """w~ that takes the mean of c to 0 by common tokens of one side, as far as it can."""
    return _per_group(group_neutral_common, logps, advantages, mask, group_ids)


def delight_weights(logps, advantages, mask, group_ids=None, eta=1.0):
    """sigmoid(A (-l) / eta)."""
    return _per_group(
        lambda lp, adv: [sigmoid(-x * a / eta) for x, a in zip(lp, adv, strict=True)],
        logps,
        advantages,
        mask,
        group_ids,
    )


def positive_only_weights(logps, advantages, mask, group_ids=None):
    """1 where A > 0, else 0."""
    return _per_group(lambda lp, adv: [float(a > 0) for a in adv], logps, advantages, mask, group_ids)


def sides(adv):
    """Which tokens of a group have A > 0, and which A < 0: two lists of indices."""
    zero = ZERO_ADVANTAGE * max(abs(a) for a in adv)
    return [k for k, a in enumerate(adv) if a > zero], [k for k, a in enumerate(adv) if a < -zero]


def group_per_sign(lp, adv, one_sided):
    """w~ of one group's tokens."""
    c, w = reference.group_covariance(lp, adv), [1.0 for _ in lp]
    for side in sides(adv):
        own = [c[k] for k in side]
        # sigma_s = sqrt(1/n sum (c - mean(c))^2) over the n tokens of the side; 0: all weights are 1
        if not own or reference.group_sigma(own) <= reference.sigma_tolerance(lp, adv):
            continue
        # w = exp(-c^2 / (2 sigma_s^2)), c = max(c, 0) for one side; then w n / sum(w) over the side
        damped = [max(x, 0.0) for x in own] if one_sided else own
        for k, weight in zip(side, reference.normalised_kernel(damped, reference.group_sigma(own)), strict=True):
            w[k] = weight
    return w


def damped_tokens(lp, adv):
    """c, and the indices of the common tokens whose c has the sign of mean(c)."""
    c = reference.group_covariance(lp, adv)
    mean_lp, total, tolerance = reference.mean(lp), math.fsum(c), reference.sigma_tolerance(lp, adv)
    # common: l > mean(l);  |c| within its rounding error: no sign
    return c, [k for k, x in enumerate(c) if lp[k] > mean_lp and abs(x) > tolerance and x * total > 0]


def group_neutral_common(lp, adv):
    """w~ of one group's tokens; the share delta that is taken is found by halving an interval."""
    c, damped = damped_tokens(lp, adv)
    total, chosen = math.fsum(c), set(damped)

    def weights(delta):
        return [1 - delta if k in chosen else 1.0 for k in range(len(c))]

    def within(delta):
        """Whether sum(w c) has not passed 0, and (sum w)^2 / (N sum w^2) >= 1/2."""
        w = weights(delta)
        left = math.fsum(a * b for a, b in zip(w, c, strict=True))
        return left * total >= 0 and 2 * math.fsum(w) ** 2 >= len(w) * math.fsum(a * a for a in w)

    low, high = 0.0, 1.0
    if damped and within(high):
        low = high
    while damped and high - low > 1e-15:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) else (low, middle)
    w = weights(low)
    # w~ = w N / sum(w)
    return [x * len(w) / math.fsum(w) for x in w]


def sigmoid(x):
    """1 / (1 + e^-x), without overflow."""
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def _per_group(function, logps, advantages, mask, group_ids):
    out = [[0.0 for _ in row] for row in mask]
    for cells in reference.group_cells(mask, group_ids).values():
        for (i, t), value in zip(cells, function(*reference.gather(logps, advantages, cells)), strict=True):
            out[i][t] = value
    return out
