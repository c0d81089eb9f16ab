"""What must not change the covariance or the weights."""

from dataclasses import replace

import pytest
import torch
from core_cases import (
    BOTH,
    F64,
    GOLDEN,
    INF,
    NAN,
    SEEDS,
    close,
    sample_batch,
)

from covgrpo import gaussian_weights, token_covariance

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
