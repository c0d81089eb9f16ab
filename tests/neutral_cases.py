"""Batches for the tests of the covariance-neutral weights, and quadratic programmes that know nothing of their form.

Imports nothing from `covgrpo`.
"""

import random

import numpy as np
from core_cases import batch
from scipy.linalg import null_space
from scipy.optimize import brentq, nnls

LOGPS = {
    "exponential": lambda rng: -rng.expovariate(1.0),
    "nearly certain": lambda rng: -rng.choice([0.01, 0.02, 2.0]) * rng.expovariate(1.0) ** 1.5,
    "pareto": lambda rng: -min(rng.paretovariate(0.7) - 1, 1000.0),
    "few values": lambda rng: -rng.choice([0.0, 0.0, 0.0, 0.0, 1.0, 2.5]),
    "down to -1e3": lambda rng: -(10 ** rng.uniform(-4, 3)),
}


ADVANTAGES = {
    "normal": lambda rng, size: [rng.gauss(0, 1) for _ in range(size)],
    "one right": lambda rng, size: one_right(size),
    "right or wrong": lambda rng, size: [rng.choice([-0.6, 1.7]) for _ in range(size)],
    "equal rewards": lambda rng, size: [rng.choice([0.0, 1e-9, -1e-9]) for _ in range(size)],
}


def one_right(size):
    """Normalised advantages of rewards 1, 0, 0, ..."""
    return [(size - 1) ** 0.5, *[-((size - 1) ** -0.5)] * (size - 1)] if size > 1 else [0.0]


def generate(seed):
    """One to three ragged groups of 1 to 64 completions, and kappa in [-8, 8]."""
    rng = random.Random(seed)
    width, logps_of = rng.choice([1, 2, 3, 5]), LOGPS[rng.choice([*LOGPS])]
    sizes = rng.choices([1, 2, 3, 4, 8, 16, 64], weights=[1, 3, 3, 6, 8, 8, 2], k=rng.randint(1, 3))
    rows = []
    for group, size in enumerate(sizes):
        kinds = [*ADVANTAGES, *3 * ("normal", "one right", "right or wrong")]
        rows += [(7 * group - 9, advantage) for advantage in ADVANTAGES[rng.choice(kinds)](rng, size)]
    rng.shuffle(rows)
    logps = [[logps_of(rng) for _ in range(width)] for _ in rows]
    mask = [[t < length for t in range(width)] for length in (rng.randint(0, width) for _ in rows)]
    inputs = batch(logps, [a for _, a in rows], mask, [group for group, _ in rows])
    return inputs, rng.choice([1.0, 2.0, -1.0, rng.uniform(-8, 8), rng.uniform(-8, 8)])


def groups_of(inputs):
    """For each group its id, and of its valid tokens: where they lie, l and A as numpy arrays."""
    for group in inputs.group_ids.unique():
        valid = inputs.mask & (inputs.group_ids == group)[:, None]
        if valid.any():
            advantages = inputs.advantages[:, None].expand(inputs.mask.shape)[valid]
            yield int(group), valid, inputs.logps[valid].numpy(), advantages.numpy()


def standardised(lp, adv):
    """z = (c - mean(c)) / std(c) and mean(c) / std(c) of one group; None where c has no spread."""
    centred = adv - adv.mean()
    c = (lp - lp.mean()) * (centred if abs(centred).max() > 1e-7 else 0.0)
    if c.std() <= 64 * 2.0**-52 * abs(lp).max() * abs(adv).max():
        return None
    return (c - c.mean()) / c.std(), c.mean() / c.std()


def quadratic_programme(z, target):
    """Minimise sum (w - 1)^2 subject to mean(w) = 1, mean(w z) = target, w >= 0; None where that cannot be.

    The equalities leave w = w_0 + Z x, with w_0 - 1 orthogonal to Z: minimise |x|^2 subject to Z x >= -w_0, a least
    distance programme, which non-negative least squares solves (Lawson and Hanson 1974, chapter 23, section 4).
    """
    equalities = np.stack([np.ones_like(z), z]) / len(z)
    start = 1 + np.linalg.lstsq(equalities, np.array([1, target]) - equalities @ np.ones_like(z), rcond=None)[0]
    free = null_space(equalities)
    if start.min() >= 0:
        return start
    if free.shape[1] == 0:
        return None
    system = np.vstack([free.T, -start])
    goal = np.zeros(len(system))
    goal[-1] = 1
    multipliers, distance = nnls(system, goal, maxiter=50 * len(z))
    residual = system @ multipliers - goal
    return start + free @ (-residual[:-1] / residual[-1]) if distance > 1e-7 else None


def bounded_programme(z, target):
    """The same, but with the nearest target for which (sum w)^2 / (N sum w^2) >= 1/2; the weights, and that target."""
    end = z.min() if target < 0 else z.max()
    last = abs(z - end) <= 1e-9
    if last.mean() >= 0.5 and abs(target) > abs(end) - 1e-9:  # no target is nearer than all weight on the last ones
        return last / last.mean(), target if abs(target - end) <= 1e-9 else end

    def excess(share):
        w = quadratic_programme(z, share * target)
        return 1e3 if w is None else min((w**2).mean() - 2, 1e3)

    if excess(1.0) <= 0:
        return quadratic_programme(z, target), target
    share = brentq(excess, 0.0, 1.0, xtol=1e-14)
    share *= 1 - 1e-13  # on the allowed side
    return quadratic_programme(z, share * target), share * target
