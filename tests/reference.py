"""Slow reference of the token weights, in plain Python floats.

The method is arXiv 2605.11538; Clip-Cov and KL-Cov are arXiv 2505.22617, the probability weights arXiv 2505.12929.
The covariance-neutral weights are least squares: minimise sum (w - 1)^2 with mean(w) = 1, w >= 0 and mean(w c) as
asked, as far as (sum w)^2 / (N sum w^2) stays at 1/2 or above.

It shares no code with `covgrpo` and uses no tensors: a group is two lists, the log-probabilities `lp` and
the advantages `adv` of its valid tokens, and every formula stands above the loop that computes it.
Inputs are nested lists: `logps` (B, T), `advantages` (B,) or (B, T), `mask` (B, T) of 0/1, `group_ids` (B,)
or None (one group), `noise` (B, T) in [0, 1). Outputs are nested lists (B, T), 0.0 at masked positions.
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


def none_weights(logps, advantages, mask, group_ids=None):
    """1 at every valid token."""
    return _per_group(lambda lp, adv: [1.0 for _ in lp], logps, advantages, mask, group_ids)


def probability_weights(logps, advantages, mask, group_ids=None, alpha=0.3):
    """alpha * pi + 1 - alpha."""
    return _per_group(lambda lp, adv: [alpha * math.exp(x) + 1 - alpha for x in lp], logps, advantages, mask, group_ids)


def gaussian_raw_weights(logps, advantages, mask, group_ids=None):
    """w, not normalised."""
    return _per_group(group_raw_weights, logps, advantages, mask, group_ids)


def gaussian_centred_weights(logps, advantages, mask, group_ids=None):
    """w~ of a kernel centred at mean(c)."""
    return _per_group(group_centred_weights, logps, advantages, mask, group_ids)


def gaussian_one_sided_weights(logps, advantages, mask, group_ids=None):
    """w~ of a kernel that damps c > 0 only."""
    return _per_group(group_one_sided_weights, logps, advantages, mask, group_ids)


def gaussian_mad_weights(logps, advantages, mask, group_ids=None):
    """w~ with the bandwidth of the median absolute deviation."""
    return _per_group(group_mad_weights, logps, advantages, mask, group_ids)


def neutral_weights(logps, advantages, mask, group_ids=None, kappa=1.0):
    """w nearest to 1 that takes the mean of c to (1 - kappa) of what it was."""
    return _per_group(lambda lp, adv: group_neutral_weights(lp, adv, kappa), logps, advantages, mask, group_ids)


def clip_cov_weights(logps, advantages, mask, group_ids=None, noise=None, ratio=0.0002, low=1.0, high=5.0):
    """0 at the drawn tokens, 1 at the other valid ones."""
    out = none_weights(logps, advantages, mask, group_ids)
    for cells in group_cells(mask, group_ids).values():
        c = group_covariance(*gather(logps, advantages, cells))
        # candidates: low < c < high;  drawn: the max(floor(ratio N), 1) of them of lowest noise
        drawn = []
        for (i, t), x in zip(cells, c, strict=True):
            if low < x < high:
                drawn.append((noise[i][t], i, t))
        drawn.sort()
        for _, i, t in drawn[: count(ratio, len(cells))]:
            out[i][t] = 0.0
    return out


def kl_cov_penalties(logps, advantages, mask, group_ids=None, noise=None, ratio=0.002, coef=1.0):
    """coef at the tokens of highest c, 0 at the others."""
    out = [[0.0 for _ in row] for row in mask]
    for cells in group_cells(mask, group_ids).values():
        c = group_covariance(*gather(logps, advantages, cells))
        # the max(floor(ratio N), 1) tokens of highest c;  of equal c those of lowest noise
        ranked = sorted((-x, noise[i][t], i, t) for (i, t), x in zip(cells, c, strict=True))
        for _, _, i, t in ranked[: count(ratio, len(cells))]:
            out[i][t] = coef
    return out


def count(ratio, num_tokens):
    """How many tokens of a group Clip-Cov draws at most, and KL-Cov takes."""
    # max(floor(ratio N), 1)
    return max(int(ratio * num_tokens), 1)


def token_noise(seed, rows, length):
    """Uniform numbers in [0, 1): a hash of seed, row and position, in unsigned 64-bit integers."""
    out = []
    for row in rows:
        key = splitmix(splitmix(GAMMA * (seed + 1)) + GAMMA * row)
        # the t-th output of a SplitMix64 generator in state `key`; its upper 53 bits are the digits of the number
        out.append([(splitmix(key + GAMMA * (t + 1)) >> 11) / 2**53 for t in range(length)])
    return out


GAMMA = 0x9E3779B97F4A7C15


def splitmix(z):
    """Finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    z %= 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def summary(tokens):
    """The metrics of a step's tokens, each a dict: group, logp, advantage, weight, c, entropy."""
    n = len(tokens)
    if n == 0:
        return {}
    c = [token["c"] for token in tokens]
    w = [token["weight"] for token in tokens]
    out = {"entropy": mean([token["entropy"] for token in tokens])}
    out.update({"cov/mean": mean(c), "cov/sigma": group_sigma(c)})
    sides = (("pos", sorted((x for x in c if x > 0), reverse=True)), ("neg", sorted(x for x in c if x < 0)))
    for side, values in sides:
        for name, share, of in (("0.0001", 1, 10000), ("0.01", 1, 100), ("0.2", 1, 5), ("0.4", 2, 5), ("1", 1, 1)):
            if values:
                # k = ceil(f n): the k-th most extreme of the side
                out[f"cov/{side}_{name}"] = values[(len(values) * share + of - 1) // of - 1]
    out["cov/weighted"] = mean(covariances_of_weighted(tokens))
    out["weight/min"] = min(w)
    for name, share, of in (("0.01", 1, 100), ("0.1", 1, 10), ("0.5", 1, 2)):
        out[f"weight/q_{name}"] = sorted(w)[(n * share + of - 1) // of - 1]
    out["weight/max"] = max(w)
    # (sum w)^2 / (N sum w^2)
    squares = math.fsum(x * x for x in w)
    out["weight/ess"] = math.fsum(w) ** 2 / (n * squares) if squares else 0.0
    # share of tokens with w < 0
    out["weight/reversed"] = sum(x < 0 for x in w) / n
    for name, factors in (("update/top_share", w), ("update/top_share_unweighted", [1.0] * n)):
        # u = |w A| (1 - p)
        size = [abs(f * t["advantage"]) * (1 - math.exp(t["logp"])) for f, t in zip(factors, tokens, strict=True)]
        top = sorted(size, reverse=True)[: (n + 99) // 100]
        out[name] = math.fsum(top) / math.fsum(size) if math.fsum(size) > 0 else 0.0
    return out


def covariances_of_weighted(tokens):
    """(l - mean l)(w A - mean w A), means over the token's group."""
    out = []
    for token in tokens:
        same = [other for other in tokens if other["group"] == token["group"]]
        l_mean = mean([other["logp"] for other in same])
        a_mean = mean([other["weight"] * other["advantage"] for other in same])
        out.append((token["logp"] - l_mean) * (token["weight"] * token["advantage"] - a_mean))
    return out


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
    return normalised_kernel(c, sigma)


def normalised_kernel(c, sigma):
    """w~ of one group from c and the bandwidth."""
    # w = exp(-c^2 / (2 sigma^2)), up to a factor that w~ does not see: the largest w is taken as 1
    exponent = [-0.5 * (x / sigma) ** 2 for x in c]
    top = max(exponent)
    w = [math.exp(e - top) for e in exponent]
    # w~ = w * N / sum(w)
    total = math.fsum(w)
    return [x * len(w) / total for x in w]


def group_raw_weights(lp, adv):
    """w of one group's tokens."""
    c = group_covariance(lp, adv)
    sigma = group_sigma(c)
    # sigma = 0: w = 1
    if sigma <= sigma_tolerance(lp, adv):
        return [1.0 for _ in c]
    # w = exp(-c^2 / (2 sigma^2))
    return [math.exp(-0.5 * (x / sigma) ** 2) for x in c]


def group_centred_weights(lp, adv):
    """w~ of one group's tokens, kernel at mean(c)."""
    c = group_covariance(lp, adv)
    sigma = group_sigma(c)
    if sigma <= sigma_tolerance(lp, adv):
        return [1.0 for _ in c]
    # w = exp(-(c - mean(c))^2 / (2 sigma^2))
    mean_c = mean(c)
    return normalised_kernel([x - mean_c for x in c], sigma)


def group_one_sided_weights(lp, adv):
    """w~ of one group's tokens, only c > 0 damped."""
    c = group_covariance(lp, adv)
    sigma = group_sigma(c)
    if sigma <= sigma_tolerance(lp, adv):
        return [1.0 for _ in c]
    # w = exp(-max(c, 0)^2 / (2 sigma^2)), sigma that of all c
    return normalised_kernel([max(x, 0.0) for x in c], sigma)


def group_mad_weights(lp, adv):
    """w~ of one group's tokens, bandwidth by the median."""
    c = group_covariance(lp, adv)
    sigma = group_mad_sigma(c, sigma_tolerance(lp, adv))
    if sigma <= sigma_tolerance(lp, adv):
        return [1.0 for _ in c]
    return normalised_kernel(c, sigma)


def group_neutral_weights(lp, adv, kappa):
    """w of one group's tokens, by bisection of the one multiplier that the KKT conditions leave."""
    c = group_covariance(lp, adv)
    shift = kappa * mean(c)
    if group_sigma(c) <= sigma_tolerance(lp, adv) or shift == 0:
        return [1.0 for _ in c]
    # y: distance from the end of c towards which mean(w c) moves, so that mean(w y) falls by |shift|
    y = [x - min(c) for x in c] if shift > 0 else [max(c) - x for x in c]
    target = mean(y) - abs(shift)
    # w = max(0, 1 - u y), made mean 1: the larger u, the smaller mean(w y) and (sum w)^2 / (N sum w^2)
    # the largest u that leaves mean(w y) >= target and the other >= 1/2; at the upper end only y = 0 has weight
    low, high = 0.0, 2 / min(x for x in y if x > 0)
    for _ in range(150):
        middle = (low + high) / 2
        w = line_weights(y, middle)
        enough = mean([a * b for a, b in zip(w, y, strict=True)]) >= target
        low, high = (middle, high) if enough and mean([x * x for x in w]) <= 2 else (low, middle)
    return line_weights(y, low)


def line_weights(y, u):
    """max(0, 1 - u y), made mean 1."""
    w = [max(0.0, 1 - u * x) for x in y]
    total = math.fsum(w)
    return [x * len(w) / total for x in w]


def group_mad(c):
    """Median absolute deviation of one group's c."""
    # median|c - median(c)|
    median_c = median(c)
    return median([abs(x - median_c) for x in c])


def group_mad_sigma(c, tolerance):
    """Bandwidth of one group."""
    # sigma = 1.4826 median|c - median(c)|; where that is 0, the standard deviation
    mad = group_mad(c)
    return group_sigma(c) if mad <= tolerance else 1.4826 * mad


def median(values):
    """The middle value, or the mean of the two middle ones."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


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
