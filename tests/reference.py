"""Slow reference of the token weights, in plain Python floats (arXiv 2605.11538).

It shares no code with `covgrpo` and uses no tensors: a group is two lists, the log-probabilities `lp` and
the advantages `adv` of its valid tokens, and every formula stands above the loop that computes it.
Inputs are nested lists: `logps` (B, T), `advantages` (B,) or (B, T), `mask` (B, T) of 0/1, `group_ids` (B,)
or None (one group). Outputs are nested lists (B, T), 0.0 at masked positions.
"""

import math

# Advantages of a group that stay this close to their mean differ by floating-point noise only.
EQUAL_ADVANTAGES = 1e-7
# sigma up to ROUNDING * max|l| * max|A| is the rounding error of c, not a spread.
ROUNDING = 64 * 2.0**-52


def token_covariance(logps, advantages, mask, group_ids=None):
    """c_{i,t} of every valid token."""
    return _per_group(group_covariance, logps, advantages, mask, group_ids)


def gaussian_weights(logps, advantages, mask, group_ids=None):
    """w~_{i,t} of every valid token."""
    return _per_group(group_weights, logps, advantages, mask, group_ids)


def group_covariance(lp, adv):
    """c of one group's tokens."""
    # mean(l) = 1/N sum l,  mean(A) = 1/N sum A: both over tokens
    mean_lp = mean(lp)
    mean_adv = mean(adv)
    # max |A - mean(A)| <= 1e-7: every A is equal, so A - mean(A) = 0
    if max(abs(a - mean_adv) for a in adv) <= EQUAL_ADVANTAGES:
        return [0.0 for _ in adv]
    # c = (l - mean(l)) * (A - mean(A))
    c = []
    for x, a in zip(lp, adv, strict=True):
        c.append((x - mean_lp) * (a - mean_adv))
    return c


def group_sigma(c):
    """Bandwidth of one group."""
    # sigma = sqrt(1/N sum (c - mean(c))^2)
    mean_c = mean(c)
    return math.sqrt(mean([(x - mean_c) ** 2 for x in c]))


def sigma_tolerance(lp, adv):
    """The largest sigma that counts as zero."""
    # tol = 64 * 2^-52 * max|l| * max|A|
    return ROUNDING * max(abs(x) for x in lp) * max(abs(a) for a in adv)


def group_weights(lp, adv):
    """w~ of one group's tokens."""
    c = group_covariance(lp, adv)
    sigma = group_sigma(c)
    # sigma = 0: w~ = 1
    if sigma <= sigma_tolerance(lp, adv):
        return [1.0 for _ in c]
    # w = exp(-c^2 / (2 sigma^2)), up to a factor that w~ does not see: the largest w is taken as 1
    exponent = [-0.5 * (x / sigma) ** 2 for x in c]
    top = max(exponent)
    w = [math.exp(e - top) for e in exponent]
    # w~ = w * N / sum(w)
    total = math.fsum(w)
    return [x * len(w) / total for x in w]


def mean(values):
    """Mean with an exactly rounded sum."""
    return math.fsum(values) / len(values)


def group_cells(mask, group_ids=None):
    """The valid positions (i, t) of each group: {group id: [(i, t), ...]}, groups without any left out."""
    cells = {}
    for i, row in enumerate(mask):
        group = 0 if group_ids is None else group_ids[i]
        for t, valid in enumerate(row):
            if valid:
                cells.setdefault(group, []).append((i, t))
    return cells


def gather(logps, advantages, cells):
    """The lists `lp` and `adv` of the tokens at `cells`."""
    lp, adv = [], []
    for i, t in cells:
        lp.append(logps[i][t])
        adv.append(advantages[i][t] if isinstance(advantages[i], list) else advantages[i])
    return lp, adv


def _per_group(function, logps, advantages, mask, group_ids):
    out = [[0.0 for _ in row] for row in mask]
    for cells in group_cells(mask, group_ids).values():
        lp, adv = gather(logps, advantages, cells)
        for (i, t), value in zip(cells, function(lp, adv), strict=True):
            out[i][t] = value
    return out
