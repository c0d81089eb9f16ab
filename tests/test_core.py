"""The token weights against an independent reference, their invariances, edge cases and errors."""

import math
import random
import re
from dataclasses import dataclass, replace

import pytest
import reference
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import covgrpo
from covgrpo import gaussian_weights, get_weighting, token_covariance

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

# --- golden values ----------------------------------------------------------------------------------------
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


def test_golden_values_of_the_reference():
    close(torch.tensor(reference.token_covariance(*GOLDEN.lists())), GOLDEN_COVARIANCE)
    close(torch.tensor(reference.gaussian_weights(*GOLDEN.lists())), GOLDEN_WEIGHTS)


@pytest.mark.parametrize(("dtype", "rtol"), [(F64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_golden_values(dtype, rtol):
    # every golden input is exact in bfloat16
    covariance = token_covariance(*GOLDEN.to(dtype).args())
    weights = gaussian_weights(*GOLDEN.to(dtype).args())
    close(covariance.to(F64), torch.tensor(GOLDEN_COVARIANCE, dtype=F64), rtol=rtol, atol=1e-15)
    close(weights.to(F64), torch.tensor(GOLDEN_WEIGHTS, dtype=F64), rtol=rtol, atol=1e-15)


# --- the reference, on generated batches ------------------------------------------------------------------

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


def rounding_of_c(logps, advantages, cells):
    """A bound on the float64 rounding error of c in one group: a few 2^-52 max|l| max|A|."""
    lp, adv = reference.gather(logps, advantages, cells)
    return reference.sigma_tolerance(lp, adv) / 4


@settings(max_examples=2000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SHAPES)
def test_core_equals_reference_on_generated_batches(shape):
    inputs = generate(shape)
    logps, advantages, mask, ids = inputs.lists()
    groups = list(reference.group_cells(mask, ids).values())
    assume(all(well_posed(*reference.gather(logps, advantages, cells)) for cells in groups))

    weights = gaussian_weights(*inputs.args())
    covariance = token_covariance(*inputs.args())

    out = F64 if shape.logps_dtype == F64 else torch.float32
    assert weights.dtype == covariance.dtype == out
    assert weights.shape == covariance.shape == inputs.mask.shape
    assert not weights[~inputs.mask].any() and not covariance[~inputs.mask].any()
    rtol = 1e-7 if out == F64 else 1e-6
    expected = torch.tensor(reference.gaussian_weights(logps, advantages, mask, ids), dtype=F64)
    close(weights.to(F64), expected, rtol=rtol, atol=1e-30)  # below float32's range: 0 or a subnormal
    expected = torch.tensor(reference.token_covariance(logps, advantages, mask, ids), dtype=F64)
    for cells in groups:
        i, t = torch.tensor(cells).T
        atol = rounding_of_c(logps, advantages, cells) + 1e-37
        close(covariance[i, t].to(F64), expected[i, t], rtol=rtol, atol=atol)


# --- invariances ------------------------------------------------------------------------------------------


@BOTH
@SEEDS
def test_permuting_rows_permutes_the_result(function, seed):
    inputs = sample_batch(seed)
    order = torch.randperm(len(inputs.mask), generator=torch.Generator().manual_seed(seed))
    close(function(*inputs.rows(order).args()), function(*inputs.args())[order])


@BOTH
@SEEDS
def test_renaming_groups_changes_nothing(function, seed):
    inputs = sample_batch(seed)
    for ids in (-3 * inputs.group_ids, inputs.group_ids + 2**40, inputs.group_ids.to(torch.int16)):
        close(function(*replace(inputs, group_ids=ids).args()), function(*inputs.args()))


@BOTH
@SEEDS
@pytest.mark.parametrize("filler", [0.0, -1e30, NAN, INF])
def test_masked_columns_change_nothing(function, seed, filler):
    inputs = sample_batch(seed)
    columns = [2, 3, 5, 7, 8, 9]  # of 11: padding on the left and on the right, and columns between
    logps = torch.full((len(inputs.mask), 11), filler, dtype=F64)
    mask = torch.zeros(logps.shape, dtype=torch.bool)
    logps[:, columns], mask[:, columns] = inputs.logps, inputs.mask
    padded = function(*replace(inputs, logps=logps, mask=mask).args())
    close(padded[:, columns], function(*inputs.args()))
    assert not padded[~mask].any()


@BOTH
@SEEDS
def test_one_call_equals_a_call_per_group(function, seed):
    inputs = sample_batch(seed)
    whole = function(*inputs.args())
    for group in inputs.group_ids.unique():
        rows = inputs.group_ids == group
        part = inputs.rows(rows)
        close(function(*part.args()), whole[rows])
        close(function(part.logps, part.advantages, part.mask), whole[rows])  # group_ids=None: one group


@BOTH
@SEEDS
def test_only_the_valid_tokens_of_a_group_matter(function, seed):
    inputs = sample_batch(seed, sizes=(6,))
    i, t = inputs.mask.nonzero(as_tuple=True)
    column = inputs.logps[i, t][:, None]  # each valid token as a row of its own
    alone = function(column, inputs.advantages[i], torch.ones_like(column))
    close(alone[:, 0], function(*inputs.args())[i, t])


@BOTH
@SEEDS
def test_per_token_advantages_equal_repeated_ones(function, seed):
    inputs = sample_batch(seed)
    repeated = inputs.advantages[:, None].expand(inputs.mask.shape)
    close(function(*replace(inputs, advantages=repeated).args()), function(*inputs.args()))


@SEEDS
@pytest.mark.parametrize("scale", [1e-3, -1.0, 3.7, 1e6])
def test_scaling_all_advantages_leaves_weights(seed, scale):
    inputs = sample_batch(seed)
    scaled = replace(inputs, advantages=scale * inputs.advantages)
    close(gaussian_weights(*scaled.args()), gaussian_weights(*inputs.args()))
    close(token_covariance(*scaled.args()), scale * token_covariance(*inputs.args()))


@BOTH
@SEEDS
def test_shifting_the_logps_of_a_group_changes_nothing(function, seed):
    inputs = sample_batch(seed)
    shift = 10.0 * torch.sin(inputs.group_ids.to(F64))  # one constant per group
    moved = replace(inputs, logps=inputs.logps - shift[:, None])
    close(function(*moved.args()), function(*inputs.args()))


@BOTH
def test_statistics_accumulate_in_float64(function):
    # Multiples of 2^-10 are exact in float32 also next to -8192, where a float32 mean is off by about one.
    steps = torch.randint(0, 128, (64, 64), generator=torch.Generator().manual_seed(0))
    near = (-steps / 1024).float()
    advantages = torch.where(torch.arange(64) % 3 == 0, 2.0, -1.0)
    mask = torch.ones(64, 64)
    assert torch.equal(near - 8192 + 8192, near)
    close(function(near - 8192, advantages, mask), function(near, advantages, mask), rtol=1e-6, atol=1e-9)


@BOTH
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.bfloat16])
def test_masks_of_any_dtype(function, dtype):
    close(function(*replace(GOLDEN, mask=GOLDEN.mask.to(dtype)).args()), function(*GOLDEN.args()), rtol=0)


@BOTH
def test_strided_views_are_accepted(function):
    wide = torch.full((8, 5), NAN, dtype=F64)
    wide[::2] = GOLDEN.logps.T
    view = replace(GOLDEN, logps=wide[::2].T, mask=GOLDEN.mask.T.contiguous().T)
    close(function(*view.args()), function(*GOLDEN.args()))


@BOTH
def test_autocast_and_the_default_dtype_change_nothing(function):
    expected = function(*GOLDEN.to(torch.float32).args())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            actual = function(*GOLDEN.to(torch.float32).args())
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(actual, expected) and actual.dtype == torch.float32


# --- what weights are -------------------------------------------------------------------------------------


@SEEDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_have_mean_one_over_the_valid_tokens_of_each_group(seed, dtype):
    inputs = sample_batch(seed, sizes=(5, 1, 3, 8, 24)).to(dtype)
    weights = gaussian_weights(*inputs.args())
    assert weights.isfinite().all() and (weights >= 0).all()
    for group in inputs.group_ids.unique():
        valid = inputs.mask & (inputs.group_ids == group)[:, None]
        if valid.any():
            assert weights[valid].to(F64).mean().item() == pytest.approx(1.0, abs=1e-6)


@BOTH
def test_result_carries_no_gradient(function):
    inputs = replace(
        GOLDEN,
        logps=GOLDEN.logps.clone().requires_grad_(),
        advantages=GOLDEN.advantages.clone().requires_grad_(),
    )
    result = function(*inputs.args())
    assert not result.requires_grad and result.grad_fn is None


@BOTH
def test_result_can_enter_a_backward_pass(function):
    logps = GOLDEN.logps.clone().requires_grad_()
    with torch.inference_mode(False):
        (function(logps, *GOLDEN.args()[1:]) * logps).sum().backward()
    close(logps.grad, function(*GOLDEN.args()))


@BOTH
def test_inputs_are_not_modified(function):
    poisoned = torch.where(GOLDEN.mask, GOLDEN.logps, NAN)
    inputs = replace(GOLDEN, logps=poisoned, advantages=torch.tensor([1, 2, -1, 0, NAN], dtype=F64))
    before = [x.clone() for x in inputs.args()]
    result = function(*inputs.args())
    result.fill_(-1.0)  # nor does the result share memory with them
    for now, then in zip(inputs.args(), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)


# --- edge cases -------------------------------------------------------------------------------------------

LOGPS_34 = [[-1.0, -0.1, -7.0, -2.0], [-0.5, -3.0, -0.2, -1.0], [-4.0, -0.3, -0.6, -9.0]]
MASK_34 = [[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]]


def assert_ones(inputs):
    close(gaussian_weights(*inputs.args()), inputs.mask.to(F64), rtol=0, atol=0)


@pytest.mark.parametrize("advantage", [0.0, 0.1, -2.5, 1e6 + 0.1])
def test_equal_advantages_give_ones_and_zero_covariance(advantage):
    inputs = batch(LOGPS_34, [advantage] * 3, MASK_34)
    assert_ones(inputs)
    assert not token_covariance(*inputs.args()).any()


@pytest.mark.parametrize("base", [0.0, 0.7, -3.0])
def test_advantages_equal_but_for_noise_give_ones_and_zero_covariance(base):
    inputs = batch(LOGPS_34, [base + 1e-9, base - 1e-9, base], MASK_34)
    assert_ones(inputs)
    assert not token_covariance(*inputs.args()).any()


def test_small_but_real_advantages_are_not_noise():
    small = batch(LOGPS_34, [2e-6, -1e-6, 5e-6], MASK_34)
    large = batch(LOGPS_34, [2.0, -1.0, 5.0], MASK_34)
    close(gaussian_weights(*small.args()), gaussian_weights(*large.args()), rtol=1e-7)


def test_noise_is_judged_over_the_valid_tokens_of_one_group():
    # The other group's advantages and that of a row without valid tokens (7.0) do not count.
    mask = [*MASK_34, [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    logps = [*LOGPS_34, LOGPS_34[0], *LOGPS_34[1:]]
    inputs = batch(logps, [0.5, 0.5 + 1e-9, 0.5, 7.0, -1.0, 1.0], mask, [0, 0, 0, 0, 1, 1])
    weights = gaussian_weights(*inputs.args())
    close(weights[:4], inputs.mask[:4].to(F64), rtol=0, atol=0)
    close(weights[4:], gaussian_weights(*inputs.rows(slice(4, None)).args()))
    assert (weights[4:] - 1).abs().max() > 0.1


def test_one_token_gets_weight_one():
    assert_ones(batch([[-3.0]], [2.0]))
    assert_ones(batch(LOGPS_34, [1.0, 2.0, 3.0], [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]))


def test_one_response_gets_ones():
    assert_ones(batch(LOGPS_34[:1], [1.3], MASK_34[:1]))


def test_one_response_a_group_gets_ones():
    assert_ones(batch(LOGPS_34, [1.3, -0.4, 2.0], MASK_34, [3, 1, 2]))


def test_equal_covariances_other_than_zero_give_ones():
    inputs = batch([[-1.0], [-4.0]], [1.0, -0.5])  # c = 1.5 * 0.75 both
    close(token_covariance(*inputs.args()), [[1.125], [1.125]])
    assert_ones(inputs)


@pytest.mark.parametrize("logp", [0.0, -0.1, -1e4 / 3])
def test_equal_logps_give_ones(logp):
    assert_ones(batch([[logp] * 4] * 3, [0.3, -1.1, 1e6 / 7], MASK_34))


def test_sigma_of_rounding_error_counts_as_zero():
    # l differs in its last digits: 2^-38 next to 2^13, where a unit in the last place is 2^-39
    logps = [[-8192.0 - 2.0**-38 * (t == i) for t in range(4)] for i in range(3)]
    inputs = batch(logps, [1.0, -1.0, 0.25], MASK_34)
    assert len(inputs.logps.unique()) == 2
    assert_ones(inputs)


def test_sigma_above_rounding_error_does_not_count_as_zero():
    logps = [[-8192.0 - 2.0**-12 * (t == i) for t in range(4)] for i in range(3)]
    inputs = batch(logps, [1.0, -1.0, 0.25], MASK_34)
    close(gaussian_weights(*inputs.args()), reference.gaussian_weights(*inputs.lists()), rtol=1e-4)
    assert (gaussian_weights(*inputs.args())[inputs.mask] - 1).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("bits", [6, 10, 16])
def test_covariances_large_against_sigma_do_not_underflow(bits, dtype):
    # l = +-1 and A = +-1 with small differences in l: c is about 1 everywhere, sigma about 2^-bits, so
    # exp(-c^2 / (2 sigma^2)) is 0 in float64 for every token.
    d = 2.0**-bits
    inputs = batch([[1 + d, 1.0], [-1.0, -1 + 2 * d]], [1.0, -1.0], dtype=dtype)
    covariance = reference.token_covariance(*inputs.lists())
    sigma = reference.group_sigma([c for row in covariance for c in row])
    assert bits < 10 or math.exp(-0.5 / sigma**2) == 0
    weights = gaussian_weights(*inputs.args())
    assert weights.sum().item() == pytest.approx(4, rel=1e-6)
    close(weights, reference.gaussian_weights(*inputs.lists()), rtol=1e-5, atol=1e-9)


@BOTH
@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1e300])
def test_junk_at_masked_positions_changes_nothing(function, junk):
    logps = torch.where(GOLDEN.mask, GOLDEN.logps, junk)
    advantages = torch.where(GOLDEN.mask.any(1), GOLDEN.advantages, junk)  # row 4
    expected = function(*GOLDEN.args())
    close(function(logps, advantages, GOLDEN.mask, GOLDEN.group_ids), expected, rtol=0, atol=0)
    per_token = torch.where(GOLDEN.mask, GOLDEN.advantages[:, None], junk)
    close(function(logps, per_token, GOLDEN.mask, GOLDEN.group_ids), expected, rtol=0, atol=0)


@BOTH
def test_group_without_valid_token_gets_zeros(function):
    ids = torch.tensor([7, -2, 7, -2, 100])  # row 4 becomes a group of its own
    advantages = torch.tensor([1.0, 2.0, -1.0, 0.0, NAN], dtype=F64)
    result = function(GOLDEN.logps, advantages, GOLDEN.mask, ids)
    close(result, function(*GOLDEN.args()))
    assert not result[4].any()


@BOTH
def test_batch_without_valid_token_gets_zeros(function):
    result = function(torch.full((2, 3), NAN), torch.full((2,), NAN), torch.zeros(2, 3))
    assert torch.equal(result, torch.zeros(2, 3))


@BOTH
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_empty_batches_give_empty_results(function, shape, dtype):
    logps = torch.zeros(shape, dtype=dtype)
    for advantages in (torch.zeros(shape[0]), torch.zeros(shape)):
        for ids in (None, torch.arange(shape[0])):
            result = function(logps, advantages, torch.zeros(shape, dtype=torch.bool), ids)
            assert result.shape == shape
            assert result.dtype == (F64 if dtype == F64 else torch.float32)


# --- errors -----------------------------------------------------------------------------------------------

WRONG = {
    "logps 1-D": ("logps", torch.zeros(15), True),
    "logps 3-D": ("logps", torch.zeros(5, 4, 1), True),
    "logps integer": ("logps", torch.zeros(5, 4, dtype=torch.int64), False),
    "advantages short": ("advantages", torch.zeros(3), True),
    "advantages a column wide": ("advantages", torch.zeros(5, 5), True),
    "advantages one column": ("advantages", torch.zeros(5, 1), True),
    "advantages transposed": ("advantages", torch.zeros(4, 5), True),
    "advantages 0-D": ("advantages", torch.tensor(1.0), True),
    "advantages integer": ("advantages", torch.ones(5, dtype=torch.int64), False),
    "mask transposed": ("mask", torch.ones(4, 5), True),
    "mask 1-D": ("mask", torch.ones(5), True),
    "mask of 2": ("mask", torch.full((5, 4), 2), False),
    "mask of -1": ("mask", torch.full((5, 4), -1), False),
    "mask of 0.5": ("mask", torch.full((5, 4), 0.5), False),
    "mask of nan": ("mask", torch.full((5, 4), NAN), False),
    "group_ids float": ("group_ids", torch.zeros(5), False),
    "group_ids short": ("group_ids", torch.zeros(4, dtype=torch.int64), True),
    "group_ids 2-D": ("group_ids", torch.zeros(5, 1, dtype=torch.int64), True),
}


@BOTH
@pytest.mark.parametrize(("name", "value", "shows_shape"), WRONG.values(), ids=WRONG.keys())
def test_wrong_argument_is_named(function, name, value, shows_shape):
    with pytest.raises(ValueError, match=rf"\b{name}\b") as error:
        function(*replace(GOLDEN, **{name: value}).args())
    if shows_shape:
        assert re.search(rf"\b{name}\b.*{re.escape(str(tuple(value.shape)))}", str(error.value))


# --- weightings -------------------------------------------------------------------------------------------


def test_gaussian_weighting_is_the_method():
    close(get_weighting("gaussian")(*GOLDEN.args()), gaussian_weights(*GOLDEN.args()), rtol=0, atol=0)


def test_none_weighting_is_one_at_valid_positions():
    weights = get_weighting("none")(*GOLDEN.to(torch.bfloat16).args())
    assert torch.equal(weights, GOLDEN.mask.float())
    one_group = get_weighting("none")(GOLDEN.logps, GOLDEN.advantages, GOLDEN.mask)
    assert torch.equal(one_group, GOLDEN.mask.to(F64))


def test_weightings_are_listed():
    assert {"gaussian", "none"} <= set(covgrpo.WEIGHTINGS)
    for name, scheme in covgrpo.WEIGHTINGS.items():
        assert isinstance(scheme, type)
        assert isinstance(get_weighting(name), scheme)


def test_weighting_of_ones_own_is_loaded_by_import_path(tmp_path, monkeypatch):
    source = """
        class Half:
            def __call__(self, logps, advantages, mask, group_ids=None):
                return 0.5 * mask
    """
    (tmp_path / "weightings_of_mine.py").write_text(source.replace("\n        ", "\n"))
    monkeypatch.syspath_prepend(tmp_path)
    assert torch.equal(get_weighting("weightings_of_mine:Half")(*GOLDEN.args()), 0.5 * GOLDEN.mask)


@pytest.mark.parametrize(("typo", "name"), [("gausian", "gaussian"), ("nome", "none")])
def test_unknown_weighting_suggests_the_nearest(typo, name):
    with pytest.raises(ValueError, match=rf"{typo}(?s:.*)\b{name}\b"):
        get_weighting(typo)


# --- every ingredient is seen by a test -------------------------------------------------------------------
#
# The formula of one group with parts that can be exchanged for broken ones. `rows` holds, for each response,
# the list of its (l, A) pairs. With the right parts it is the core's result; each test breaks one part and
# requires that the golden example tells the two apart.


def mean(values):
    return math.fsum(values) / len(values)


RIGHT = {
    "mean_of_advantages": lambda rows: mean([a for row in rows for _, a in row]),
    "mean_of_logps": lambda rows: mean([lp for row in rows for lp, _ in row]),
    "sigma": lambda c: math.sqrt(mean([(x - mean(c)) ** 2 for x in c])),
    "kernel_centre": lambda c: 0.0,
    "normalise": lambda w: [x * len(w) / math.fsum(w) for x in w],
}


def loop_weights(rows, **broken):
    """w~ of one group, with some parts of the formula exchanged."""
    part = RIGHT | broken
    mean_adv, mean_lp = part["mean_of_advantages"](rows), part["mean_of_logps"](rows)
    c = [(lp - mean_lp) * (a - mean_adv) for row in rows for lp, a in row]
    sigma, centre = part["sigma"](c), part["kernel_centre"](c)
    return part["normalise"]([math.exp(-((x - centre) ** 2) / (2 * sigma**2)) for x in c])


def golden_rows(group, mask=GOLDEN.mask, ids=GOLDEN.group_ids):
    """One group of the golden example: per response its (l, A) pairs at the positions of `mask`."""
    rows = []
    for i in (ids == group).nonzero().flatten().tolist():
        pairs = [(GOLDEN.logps[i, t].item(), GOLDEN.advantages[i].item()) for t in range(4) if mask[i, t]]
        rows.append(pairs)
    return [row for row in rows if row]


def core_weights(group):
    """The core's weights at the valid tokens of one golden group."""
    valid = GOLDEN.mask & (GOLDEN.group_ids == group)[:, None]
    return gaussian_weights(*GOLDEN.args())[valid].tolist()


def distance(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def assert_core_sees(**broken):
    """In both golden groups the core has the right formula, and the broken one is far from it."""
    for group in (7, -2):
        core = core_weights(group)
        assert distance(core, loop_weights(golden_rows(group))) < 1e-12
        assert distance(core, loop_weights(golden_rows(group), **broken)) > 0.02


def test_ingredient_mean_of_advantages_is_token_weighted():
    assert_core_sees(mean_of_advantages=lambda rows: mean([row[0][1] for row in rows]))


def test_ingredient_advantages_are_centred():
    assert_core_sees(mean_of_advantages=lambda rows: 0.0)


def test_ingredient_logps_are_centred():
    assert_core_sees(mean_of_logps=lambda rows: 0.0)


def test_ingredient_mean_of_logps_is_token_weighted():
    assert_core_sees(mean_of_logps=lambda rows: mean([mean([lp for lp, _ in row]) for row in rows]))


def test_ingredient_sigma_is_about_the_mean():
    assert_core_sees(sigma=lambda c: math.sqrt(mean([x**2 for x in c])))


def test_ingredient_sigma_divides_by_n():
    assert_core_sees(sigma=lambda c: RIGHT["sigma"](c) * math.sqrt(len(c) / (len(c) - 1)))


def test_ingredient_sigma_is_squared():
    assert_core_sees(sigma=lambda c: math.sqrt(RIGHT["sigma"](c)))


def test_ingredient_kernel_is_centred_at_zero():
    assert_core_sees(kernel_centre=mean)


def test_ingredient_weights_are_normalised():
    assert_core_sees(normalise=lambda w: w)


def test_ingredient_weights_have_mean_one_not_maximum_one():
    assert_core_sees(normalise=lambda w: [x / max(w) for x in w])


def test_ingredient_weights_have_mean_one_not_sum_one():
    assert_core_sees(normalise=lambda w: [x / math.fsum(w) for x in w])


def test_ingredient_mean_one_counts_valid_tokens_only():
    padded = {5: 8, 4: 12}  # tokens -> positions of the group's rows
    assert_core_sees(normalise=lambda w: [x * padded[len(w)] / math.fsum(w) for x in w])


def test_ingredient_mask():
    everything = torch.ones_like(GOLDEN.mask)
    for group in (7, -2):
        kept = [m for row in GOLDEN.mask[GOLDEN.group_ids == group].tolist() for m in row]
        broken = loop_weights(golden_rows(group, mask=everything))
        broken = [w for w, valid in zip(broken, kept, strict=True) if valid]
        assert distance(core_weights(group), loop_weights(golden_rows(group))) < 1e-12
        assert distance(core_weights(group), broken) > 0.02


def test_ingredient_statistics_are_those_of_the_group():
    one_group = torch.zeros(5)
    broken = loop_weights(golden_rows(0, ids=one_group))  # both groups' tokens in the order of the rows
    core = gaussian_weights(*GOLDEN.args())[GOLDEN.mask].tolist()
    merged = gaussian_weights(GOLDEN.logps, GOLDEN.advantages, GOLDEN.mask)[GOLDEN.mask].tolist()
    assert distance(core, broken) > 0.02
    assert distance(merged, broken) < 1e-12


def live_weights(lp, adv):
    """w~ of one group's tokens (N,), with the gradient flowing through it: broken on purpose."""
    c = (lp - lp.mean()) * (adv - adv.mean())
    w = torch.exp(-(c**2) / (2 * c.var(correction=0)))
    return w * len(w) / w.sum()


def test_ingredient_stop_gradient():
    # d/dl of sum w~ A exp(l - l_old) at l = l_old is w~ A, if w~ is a constant.
    lp = torch.tensor([pair[0] for row in golden_rows(7) for pair in row], dtype=F64, requires_grad=True)
    adv = torch.tensor([pair[1] for row in golden_rows(7) for pair in row], dtype=F64)
    gradients = []
    for weights in (gaussian_weights(lp[:, None], adv, torch.ones(5, 1))[:, 0], live_weights(lp, adv)):
        close(weights.detach(), torch.tensor(core_weights(7), dtype=F64))
        loss = (weights * adv * torch.exp(lp - lp.detach())).sum()
        gradients.append(torch.autograd.grad(loss, lp)[0])
    core, broken = gradients
    close(core, torch.tensor(core_weights(7), dtype=F64) * adv)
    assert (core - broken).abs().max() > 0.02
