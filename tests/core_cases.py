"""Batches for the tests of the core: golden values and a generator of hard ones."""

import math
import random
from dataclasses import dataclass, replace

import pytest
import reference
import torch
from hypothesis import strategies as st

from covgrpo import gaussian_weights, token_covariance

F64 = torch.float64


NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Batch:
    """Arguments of the functions under test."""

    logps: torch.Tensor  # (B, T)
    advantages: torch.Tensor  # (B,) or (B, T)
    mask: torch.Tensor  # (B, T)
    group_ids: torch.Tensor | None = None  # (B,)

    def args(self):
        return self.logps, self.advantages, self.mask, self.group_ids

    def lists(self):
        """The reference's arguments: the values as they are after rounding to the dtype."""
        ids = None if self.group_ids is None else self.group_ids.tolist()
        return self.logps.to(F64).tolist(), self.advantages.to(F64).tolist(), self.mask.tolist(), ids

    def rows(self, index):
        ids = None if self.group_ids is None else self.group_ids[index]
        return Batch(self.logps[index], self.advantages[index], self.mask[index], ids)

    def to(self, dtype):
        return replace(self, logps=self.logps.to(dtype), advantages=self.advantages.to(dtype))


def batch(logps, advantages, mask=None, group_ids=None, dtype=F64):
    """A Batch from lists; every position is valid unless a mask is given."""
    logps = torch.tensor(logps, dtype=dtype)
    mask = torch.ones(logps.shape, dtype=torch.bool) if mask is None else torch.tensor(mask).bool()
    ids = None if group_ids is None else torch.tensor(group_ids)
    return Batch(logps, torch.tensor(advantages, dtype=dtype), mask, ids)


def close(actual, expected, rtol=1e-9, atol=1e-12):
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, check_dtype=False)


def sample_batch(seed, sizes=(5, 1, 3, 8), width=6):
    """A well-conditioned ragged float64 batch: several groups, interleaved rows, holes in the mask."""
    rng = random.Random(seed)
    ids = [9 * g - 14 for g, size in enumerate(sizes) for _ in range(size)]
    rng.shuffle(ids)
    logps = [[-rng.expovariate(1.0) for _ in range(width)] for _ in ids]
    mask = [[rng.random() < 0.7 for _ in range(width)] for _ in ids]
    return batch(logps, [rng.gauss(0, 1) for _ in ids], mask, ids)


SEEDS = pytest.mark.parametrize("seed", range(5))


BOTH = pytest.mark.parametrize("function", [token_covariance, gaussian_weights])


#
# Two interleaved groups; x marks a masked position (tool output, padding on either side), whose value is junk.
#
# Group 7, rows 0 and 2, N = 5 tokens:
#   l = -1 -3 | -2 -4 -5   mean -3      A = 1 1 | -1 -1 -1   mean -1/5 (token-weighted; over responses it is 0)
#   l - mean = 2 0 | 1 -1 -2            A - mean = 1.2 1.2 | -0.8 -0.8 -0.8
#   c = 2.4 0 | -0.8 0.8 1.6            mean(c) = 0.8
#   sigma^2 = (1.6^2 + 0.8^2 + 1.6^2 + 0 + 0.8^2) / 5 = 1.28, so 2 sigma^2 = 2.56
#   w = e^-2.25, 1 | e^-0.25, e^-0.25, e^-1
# Group -2, rows 1, 3 and 4 (row 4 has no valid token), N = 4 tokens:
#   l = -4 | -2 -1 -1      mean -2      A = 2 | 0 0 0        mean 1/2
#   c = -3 | 0 -0.5 -0.5                mean(c) = -1
#   sigma^2 = (4 + 1 + 0.25 + 0.25) / 4 = 1.375, so 2 sigma^2 = 2.75
#   w = e^(-9/2.75) | 1, e^(-0.25/2.75), e^(-0.25/2.75)
GOLDEN = batch(
    logps=[
        [-1.0, -3.0, -0.25, -9.0],  #    .    .    x    x
        [-6.0, -0.25, -2.5, -4.0],  #    x    x    x    .
        [-2.0, -4.0, -5.0, -0.25],  #    .    .    .    x
        [-2.0, -9.0, -1.0, -1.0],  #     .    x    .    .
        [-3.0, -0.25, -6.0, -1.0],  #    x    x    x    x
    ],
    advantages=[1.0, 2.0, -1.0, 0.0, 5.0],
    mask=[[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0]],
    group_ids=[7, -2, 7, -2, -2],
)


GOLDEN_COVARIANCE = [
    [2.4, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, -3.0],
    [-0.8, 0.8, 1.6, 0.0],
    [0.0, 0.0, -0.5, -0.5],
    [0.0, 0.0, 0.0, 0.0],
]


GOLDEN_WEIGHTS = [
    [0.17387560130777951, 1.6496857735962063, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.05293510264891937],
    [1.2847765722984819, 1.2847765722984819, 0.6068854804990508, 0.0],
    [1.3965971610768992, 0.0, 1.2752338681370907, 1.2752338681370907],
    [0.0, 0.0, 0.0, 0.0],
]


DTYPES = [torch.float16, torch.bfloat16, torch.float32, F64]


LOGPS = {
    "exponential": lambda rng: -rng.expovariate(1.0),
    "down to -1e4": lambda rng: -(10 ** rng.uniform(-6, 4)),
    "around -1e4": lambda rng: -9990 + 3 * rng.gauss(0, 1),
    "constant": lambda rng: -0.7,
}


ADVANTAGES = {
    "normal": lambda rng: rng.gauss(0, 1),
    "binary": lambda rng: rng.choice([-0.5, 2.0]),
    "zero": lambda rng: 0.0,
    "noise": lambda rng: 1e-9 * rng.gauss(0, 1),
    "large": lambda rng: 1e6 * rng.gauss(0, 1),
}


@dataclass(frozen=True)
class Shape:
    """What one generated case looks like; the numbers come from `seed`."""

    seed: int
    sizes: list  # rows of each group
    width: int
    logps: str
    advantages: str
    per_token: bool  # advantages (B, T)
    poison: bool
    logps_dtype: torch.dtype
    advantages_dtype: torch.dtype


SHAPES = st.builds(
    Shape,
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 33, 64]), min_size=1, max_size=4),
    width=st.integers(1, 7),
    logps=st.sampled_from(["exponential", "down to -1e4", "around -1e4"] * 3 + ["constant"]),
    advantages=st.sampled_from(["normal", "binary", "large"] * 3 + ["zero", "noise"]),
    per_token=st.booleans(),
    poison=st.booleans(),
    logps_dtype=st.sampled_from(DTYPES),
    advantages_dtype=st.sampled_from(DTYPES),
)


def generate(shape):
    """The batch of a Shape."""
    rng = random.Random(shape.seed)
    ids = random_ids(rng, shape.sizes)
    mask = [random_mask_row(rng, shape.width) for _ in ids]
    logps = [[LOGPS[shape.logps](rng) for _ in row] for row in mask]
    advantages = [[ADVANTAGES[shape.advantages](rng)] * shape.width for _ in ids]
    if shape.per_token:
        advantages = [[ADVANTAGES[shape.advantages](rng) for _ in row] for row in mask]
    if shape.poison:
        poison(rng, logps, mask)
        poison(rng, advantages, mask if shape.per_token else [[any(row)] * shape.width for row in mask])
    logps = round_to(logps, shape.logps_dtype)
    advantages = round_to(advantages, shape.advantages_dtype)
    advantages = advantages if shape.per_token else advantages[:, 0]
    return Batch(logps, advantages, torch.tensor(mask), torch.tensor(ids))


def random_ids(rng, sizes):
    """Ids of the rows in random order, with gaps, some negative."""
    names = rng.sample(range(-50, 50), len(sizes))
    ids = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    rng.shuffle(ids)
    return ids


def random_mask_row(rng, width):
    """Padding on the right, on the left, holes, or nothing valid."""
    length = rng.randint(0, width)
    right = [t < length for t in range(width)]
    return rng.choice([right, right, right[::-1], [rng.random() < 0.6 for _ in range(width)]])


def poison(rng, values, keep):
    for row, kept in zip(values, keep, strict=True):
        for t, valid in enumerate(kept):
            row[t] = row[t] if valid else rng.choice([NAN, INF, -INF])


def round_to(values, dtype):
    """The nested list as a tensor, clipped at float16's range (-1e4 and 1e6 scale down to it)."""
    values = torch.tensor(values, dtype=F64)
    if dtype == torch.float16:
        values = torch.where(values.isfinite(), values.clamp(-6e4, 6e4), values)
    return values.to(dtype)


def well_posed(lp, adv):
    """Whether rounding to float64 leaves w~ of this group determined to about 1e-8.

    c is known to about eps = 2^-52 max|l| max|A|, and w's exponent -z^2/2, z = c/sigma, to |z| eps/sigma.
    So sigma must be either clearly zero (well below its tolerance of 64 eps), or so far above eps that this
    is below 1e-9 (sigma > 1e9 eps, 10^7 tolerances, for z around 1). Between the two no float64 code can be
    held to another one's digits, and a case with such a group is not used.
    """
    c = reference.group_covariance(lp, adv)
    sigma = reference.group_sigma(c)
    tolerance = reference.sigma_tolerance(lp, adv)
    if sigma <= tolerance / 8:
        return True
    z = max(1.0, max(abs(x) for x in c) / sigma)
    return z * (tolerance / 64) / sigma < 1e-9


LOGPS_34 = [[-1.0, -0.1, -7.0, -2.0], [-0.5, -3.0, -0.2, -1.0], [-4.0, -0.3, -0.6, -9.0]]


MASK_34 = [[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]]
