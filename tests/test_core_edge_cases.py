"""Edge cases and errors of the covariance and the weights."""

import math
import re
from dataclasses import replace

import pytest
import reference
import torch
from core_cases import (
    BOTH,
    F64,
    GOLDEN,
    INF,
    LOGPS_34,
    MASK_34,
    NAN,
    batch,
    close,
)

import covgrpo.core.tokens
from covgrpo import gaussian_weights, token_covariance


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


@pytest.mark.parametrize("apart", [False, True], ids=["unsigned", "far apart"])
def test_group_ids_whose_differences_wrap(monkeypatch, apart):
    """Any integers in any order: a batch in parts must not be cut through its groups."""
    monkeypatch.setitem(covgrpo.core.tokens._PART_TOKENS, "cpu", 64)
    torch.manual_seed(0)
    logps, advantages, mask = -torch.rand(24, 8), torch.randn(24), torch.ones(24, 8)
    plain = torch.tensor([1] * 15 + [0] * 9)
    ids = torch.where(plain == 1, 7 * 10**18, -7 * 10**18) if apart else plain.to(torch.uint8)
    expected = gaussian_weights(logps, advantages, mask, plain)
    assert torch.equal(gaussian_weights(logps, advantages, mask, ids), expected)
