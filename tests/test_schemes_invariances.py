"""What must not change the weights of any scheme, and what they are."""

import math
from dataclasses import replace

import pytest
import torch
from core_cases import (
    F64,
    GOLDEN,
    INF,
    NAN,
    SEEDS,
    batch,
    close,
    sample_batch,
)
from scheme_cases import (
    ACTIVE,
    EVERY,
    GOLDEN_NOISE,
    MEAN_ONE,
    NEGATIVE,
    REFERENCE,
    active,
    function,
    golden,
    random_noise,
    valid_groups,
)

from covgrpo import gaussian_weights, get_weighting, token_covariance
from covgrpo.core import tokens

# --- invariances ------------------------------------------------------------------------------------------


@EVERY
@SEEDS
def test_permuting_rows_with_their_noise_permutes_the_result(name, seed):
    inputs, call = sample_batch(seed), active(name)
    noise = random_noise(inputs, seed)
    order = torch.randperm(len(noise), generator=torch.Generator().manual_seed(seed))
    close(call(inputs.rows(order), noise[order]), call(inputs, noise)[order])


@EVERY
@SEEDS
@pytest.mark.parametrize("filler", [0.0, NAN, INF])
def test_masked_columns_change_nothing(name, seed, filler):
    inputs, call = sample_batch(seed), active(name)
    noise = random_noise(inputs, seed)
    columns = [2, 3, 5, 7, 8, 9]  # of 11
    logps = torch.full((len(noise), 11), filler, dtype=F64)
    mask, padded_noise = torch.zeros(logps.shape, dtype=torch.bool), torch.zeros_like(logps)
    logps[:, columns], mask[:, columns], padded_noise[:, columns] = inputs.logps, inputs.mask, noise
    padded = call(replace(inputs, logps=logps, mask=mask), padded_noise)
    close(padded[:, columns], call(inputs, noise))
    assert not padded[~mask].any()


@EVERY
@SEEDS
def test_padding_on_the_right_keeps_the_default_draw(name, seed):
    inputs, call = sample_batch(seed), active(name)
    wide = torch.nn.functional.pad(inputs.logps, (0, 4), value=NAN)
    padded = replace(inputs, logps=wide, mask=torch.nn.functional.pad(inputs.mask, (0, 4)))
    close(call(padded)[:, :-4], call(inputs))


@EVERY
@SEEDS
@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1e300])
def test_junk_at_masked_positions_changes_nothing(name, seed, junk):
    inputs, call = sample_batch(seed), active(name)
    noise = random_noise(inputs, seed)
    per_token = torch.where(inputs.mask, inputs.advantages[:, None], junk)
    poisoned = replace(inputs, logps=torch.where(inputs.mask, inputs.logps, junk), advantages=per_token)
    close(call(poisoned, torch.where(inputs.mask, noise, -1.0)), call(inputs, noise), rtol=0, atol=0)


@EVERY
@SEEDS
def test_renaming_groups_changes_nothing(name, seed):
    inputs, call = sample_batch(seed), active(name)
    noise = random_noise(inputs, seed)
    for ids in (-3 * inputs.group_ids, inputs.group_ids + 2**40, inputs.group_ids.to(torch.int16)):
        close(call(replace(inputs, group_ids=ids), noise), call(inputs, noise))


@EVERY
@SEEDS
def test_one_call_equals_a_call_per_group(name, seed):
    inputs, call = sample_batch(seed), active(name)
    noise = random_noise(inputs, seed)
    whole = call(inputs, noise)
    for group in inputs.group_ids.unique():
        rows = inputs.group_ids == group
        close(call(inputs.rows(rows), noise[rows]), whole[rows])
        close(call(replace(inputs.rows(rows), group_ids=None), noise[rows]), whole[rows])


@EVERY
@SEEDS
def test_the_size_of_the_parts_changes_nothing(name, seed, monkeypatch):
    inputs, call = sample_batch(seed), active(name)
    noise = random_noise(inputs, seed)
    whole = call(inputs, noise)
    monkeypatch.setitem(tokens._PART_TOKENS, "cpu", 13)  # a group a part, or two small ones
    close(call(inputs, noise), whole)


@EVERY
@SEEDS
def test_masks_of_any_dtype_and_repeated_advantages(name, seed):
    inputs, call = sample_batch(seed), active(name)
    noise = random_noise(inputs, seed)
    repeated = inputs.advantages[:, None].expand(inputs.mask.shape)
    close(call(replace(inputs, mask=inputs.mask.to(torch.int64)), noise), call(inputs, noise), rtol=0, atol=0)
    close(call(replace(inputs, advantages=repeated), noise), call(inputs, noise))


SIGNED = ("gaussian_one_sided", "positive_only", "kl_cov.penalties")


ABSOLUTE = ("clip_cov", "delight")  # the size of A matters, and its sign


SCALES = [(name, scale) for name in REFERENCE if name not in ABSOLUTE for scale in (1e-3, 3.7, 1e6)]


SCALES += [(name, scale) for name in REFERENCE if name not in (*ABSOLUTE, *SIGNED) for scale in (-1.0, -20.0)]


@SEEDS
@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_scaling_all_advantages_changes_nothing(name, seed, scale):
    inputs, call = sample_batch(seed), active(name)
    noise = random_noise(inputs, seed)
    close(call(replace(inputs, advantages=scale * inputs.advantages), noise), call(inputs, noise))


@SEEDS
@pytest.mark.parametrize("scale", [2.0**-10, 3.7, 1e6])
def test_scaling_advantages_and_bounds_leaves_clip_cov(seed, scale):
    inputs = sample_batch(seed)
    noise = random_noise(inputs, seed)
    bounds = {"low": scale * ACTIVE["clip_cov"]["low"], "high": scale * ACTIVE["clip_cov"]["high"]}
    scaled = function("clip_cov", ratio=ACTIVE["clip_cov"]["ratio"], **bounds)
    close(scaled(replace(inputs, advantages=scale * inputs.advantages), noise), active("clip_cov")(inputs, noise))


@SEEDS
def test_the_sign_of_advantages_matters_where_it_should(seed):
    inputs = sample_batch(seed)
    flipped = replace(inputs, advantages=-inputs.advantages)
    noise = random_noise(inputs, seed)
    for name in (*SIGNED, *ABSOLUTE):
        call = active(name)
        assert (call(flipped, noise) - call(inputs, noise)).abs().max() > 0.1


@SEEDS
@pytest.mark.parametrize("name", [name for name in REFERENCE if name not in ("prob", "delight")])
def test_shifting_the_logps_of_a_group_changes_nothing(name, seed):
    inputs, call = sample_batch(seed), active(name)
    noise = random_noise(inputs, seed)
    shift = 10.0 * torch.sin(inputs.group_ids.to(F64))
    close(call(replace(inputs, logps=inputs.logps - shift[:, None]), noise), call(inputs, noise))


# --- what the results are ---------------------------------------------------------------------------------


@SEEDS
@pytest.mark.parametrize("name", MEAN_ONE)
def test_normalised_weights_have_mean_one_in_each_group(name, seed):
    inputs = sample_batch(seed)
    weights = active(name)(inputs)
    assert (weights >= 0).all() or name in NEGATIVE
    for valid in valid_groups(inputs):
        assert weights[valid].mean().item() == pytest.approx(1.0, abs=1e-12)


@SEEDS
def test_raw_weights_are_fractions_and_normalise_to_the_method(seed):
    inputs = sample_batch(seed)
    raw, weights = active("gaussian_raw")(inputs), gaussian_weights(*inputs.args())
    assert (raw <= 1).all() and (raw[inputs.mask] > 0).all()
    for valid in valid_groups(inputs):
        close(raw[valid] / raw[valid].mean(), weights[valid])


@SEEDS
def test_one_sided_weights_do_not_damp_tokens_that_raise_entropy(seed):
    inputs = sample_batch(seed, sizes=(8, 8))
    weights, c = active("gaussian_one_sided")(inputs), token_covariance(*inputs.args())
    for valid in valid_groups(inputs):
        negative, positive = weights[valid & (c <= 0)], weights[valid & (c > 1e-3)]
        close(negative, torch.full_like(negative, negative.max().item()))
        assert positive.max() < negative.max()


def test_prob_is_the_papers_formula():
    inputs = batch([[math.log(0.5), math.log(0.1), 0.0]], [1.0])
    for alpha, weights in ((0.3, [0.85, 0.73, 1.0]), (0.0, [1.0, 1.0, 1.0]), (1.0, [0.5, 0.1, 1.0])):
        close(get_weighting("prob", alpha=alpha)(*inputs.args()), torch.tensor([weights], dtype=F64))


@EVERY
def test_results_carry_no_gradient_and_inputs_stay(name):
    inputs = replace(
        golden(name),
        logps=torch.where(GOLDEN.mask, GOLDEN.logps, NAN).requires_grad_(),
        advantages=golden(name).advantages.clone().requires_grad_(),
    )
    before = [x.detach().clone() for x in inputs.args()]
    noise = GOLDEN_NOISE.clone()
    result = active(name)(inputs, noise)
    assert not result.requires_grad and result.grad_fn is None
    result.fill_(-1.0)
    for now, then in zip((*inputs.args(), noise), (*before, GOLDEN_NOISE), strict=True):
        torch.testing.assert_close(now.detach(), then, rtol=0, atol=0, equal_nan=True)
