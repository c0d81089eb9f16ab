"""The token weights against golden values and an independent reference, and what weights are."""

import math
from dataclasses import replace

import pytest
import reference
import torch
from core_cases import (
    BOTH,
    DTYPES,
    F64,
    GOLDEN,
    GOLDEN_COVARIANCE,
    GOLDEN_WEIGHTS,
    NAN,
    SEEDS,
    SHAPES,
    close,
    generate,
    sample_batch,
    well_posed,
)
from hypothesis import HealthCheck, assume, given, settings

from covgrpo import gaussian_weights, get_weighting, token_covariance


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


def rounding_of_c(logps, advantages, cells):
    """A bound on the float64 rounding error of c in one group: a few 2^-52 max|l| max|A|."""
    lp, adv = reference.gather(logps, advantages, cells)
    return reference.sigma_tolerance(lp, adv) / 4


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
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


# --- what weights are -------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", range(1, 8))
def test_the_rarer_outcome_is_damped_by_its_odds(right):
    # docs/methods.md: rewards 0 and 1, and log-probs one standard deviation from their mean on every completion
    q, logps = right / 8, torch.tensor([[-3.0, -1.0]], dtype=F64).expand(8, 2)
    advantages = torch.tensor([((1 - q) / q) ** 0.5] * right + [-((q / (1 - q)) ** 0.5)] * (8 - right), dtype=F64)
    mask = torch.ones(8, 2, dtype=torch.bool)
    of_right, of_wrong = math.exp(-(1 - q) / q / 2), math.exp(-q / (1 - q) / 2)
    raw = torch.tensor([[of_right] * 2] * right + [[of_wrong] * 2] * (8 - right), dtype=F64)
    close(get_weighting("gaussian_raw")(logps, advantages, mask), raw, rtol=1e-13, atol=0.0)
    close(gaussian_weights(logps, advantages, mask), raw / raw.mean(), rtol=1e-13, atol=0.0)


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
