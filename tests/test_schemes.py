"""Every weighting scheme, the token noise and the summary against plain loops; Clip-Cov and KL-Cov as published.

The batches and their generator are those of test_core.py, which tests the method itself.
"""

import math
import random
from dataclasses import replace

import pytest
import reference
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_core import (
    F64,
    GOLDEN,
    INF,
    LOGPS_34,
    MASK_34,
    NAN,
    SEEDS,
    SHAPES,
    batch,
    close,
    generate,
    sample_batch,
    well_posed,
)

import covgrpo
from covgrpo import gaussian_weights, get_weighting, token_covariance
from covgrpo.core import groups
from covgrpo.core.noise import token_noise
from covgrpo.core.summary import summarise

REFERENCE = {
    "gaussian": reference.gaussian_weights,
    "none": reference.none_weights,
    "clip_cov": reference.clip_cov_weights,
    "kl_cov": reference.none_weights,
    "kl_cov.penalties": reference.kl_cov_penalties,
    "prob": reference.probability_weights,
    "gaussian_raw": reference.gaussian_raw_weights,
    "gaussian_centred": reference.gaussian_centred_weights,
    "gaussian_one_sided": reference.gaussian_one_sided_weights,
    "gaussian_mad": reference.gaussian_mad_weights,
}
DRAWS = ("clip_cov", "kl_cov", "kl_cov.penalties")  # take noise
KERNELS = ("gaussian", "gaussian_raw", "gaussian_centred", "gaussian_one_sided", "gaussian_mad")
MEAN_ONE = tuple(name for name in KERNELS if name != "gaussian_raw")
# Parameters that make a scheme act on small batches; the others have none or act with their defaults.
ACTIVE = {
    "clip_cov": {"ratio": 0.2, "low": -0.5, "high": 2.0},
    "kl_cov": {"ratio": 0.2, "coef": 0.7},
    "kl_cov.penalties": {"ratio": 0.2, "coef": 0.7},
}
EVERY = pytest.mark.parametrize("name", REFERENCE)


def function(name, **parameters):
    """The scheme, or KL-Cov's penalties, as a function of a Batch and its noise."""
    scheme = get_weighting(name.removesuffix(".penalties"), **parameters)
    if name not in DRAWS:
        return lambda inputs, noise=None: scheme(*inputs.args())
    call = scheme.penalties if name.endswith(".penalties") else scheme
    return lambda inputs, noise=None: call(*inputs.args(), noise)


def active(name):
    return function(name, **ACTIVE.get(name, {}))


def expected(name, inputs, noise=None, **parameters):
    """The reference's result, float64."""
    if name in ("clip_cov", "kl_cov.penalties"):
        parameters["noise"] = noise.tolist()
    if name == "kl_cov":
        parameters = {}
    return torch.tensor(REFERENCE[name](*inputs.lists(), **parameters), dtype=F64).reshape(inputs.mask.shape)


def random_noise(inputs, seed=0):
    return torch.rand(inputs.mask.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def valid_groups(inputs):
    """For each group with valid tokens, where they lie: (B, T)."""
    for group in inputs.group_ids.unique():
        valid = inputs.mask & (inputs.group_ids == group)[:, None]
        if valid.any():
            yield valid


def test_every_scheme_has_a_reference():
    assert set(covgrpo.WEIGHTINGS) == {name for name in REFERENCE if "." not in name}


# --- golden values ----------------------------------------------------------------------------------------
#
# The golden example of test_core.py; z^2/2 of each token in the kernel's exponent:
#
# Group 7, N = 5:   c = 2.4 0 | -0.8 0.8 1.6, mean 0.8, 2 sigma^2 = 2.56
#   raw           2.25 0 | 0.25 0.25 1
#   centred       c - 0.8 = 1.6 -0.8 | -1.6 0 0.8:   1 0.25 | 1 0 0.25
#   one-sided     2.25 0 | 0 0.25 1
#   MAD           median 0.8, deviations 1.6 0.8 | 1.6 0 0.8, median 0.8: 2 sigma^2 = 2 (1.4826 * 0.8)^2
# Group -2, N = 4:  c = -3 | 0 -0.5 -0.5, mean -1, 2 sigma^2 = 2.75
#   raw           9/2.75 | 0 0.25/2.75 (twice)
#   centred       c + 1 = -2 | 1 0.5 0.5:   4/2.75 | 1/2.75 0.25/2.75 (twice)
#   one-sided     all 0
#   MAD           median -0.5, deviations 2.5 | 0.5 0 0, median 0.25: 2 sigma^2 = 2 (1.4826 * 0.25)^2
# Clip-Cov, ratio 0.5, -1 < c < 2: draws 2 of the candidates 0 -0.8 0.8 1.6 and 2 of 0 -0.5 -0.5, those of lowest noise.
# KL-Cov, ratio 0.5: 2.4 1.6 and 0 -0.5; of the two -0.5 the one of lower noise.

GOLDEN_NOISE = torch.tensor(
    [
        [0.05, 0.60, 0.01, 0.02],
        [0.01, 0.02, 0.03, 0.04],
        [0.50, 0.90, 0.10, 0.00],
        [0.80, 0.00, 0.70, 0.30],
        [0.00, 0.01, 0.02, 0.03],
    ],
    dtype=F64,
)
GOLDEN_PARAMETERS = {
    "clip_cov": {"ratio": 0.5, "low": -1.0, "high": 2.0},
    "kl_cov": {"ratio": 0.5, "coef": 0.7},
    "kl_cov.penalties": {"ratio": 0.5, "coef": 0.7},
}
# The valid tokens of group 7 and of group -2.
GOLDEN_RESULTS = {
    "gaussian": (
        [0.1738756013077794, 1.649685773596206, 1.284776572298482, 1.284776572298482, 0.6068854804990509],
        [0.05293510264891937, 1.396597161076899, 1.275233868137091, 1.275233868137091],
    ),
    "gaussian_raw": (
        [0.1053992245618643, 1.0, 0.7788007830714049, 0.7788007830714049, 0.3678794411714423],
        [0.03790291440095851, 1.0, 0.9131007162822623, 0.9131007162822623],
    ),
    "gaussian_centred": (
        [0.5585168203204045, 1.182380117896755, 0.5585168203204045, 1.518206123565681, 1.182380117896755],
        [0.3390476042244209, 1.009337661346133, 1.325807367214723, 1.325807367214723],
    ),
    "gaussian_one_sided": (
        [0.1620489693150076, 1.537477813414961, 1.537477813414961, 1.197388925042483, 0.5656064788125871],
        [1.0, 1.0, 1.0, 1.0],
    ),
    "gaussian_mad": (
        [0.2065649812999743, 1.600121868445319, 1.274572593738034, 1.274572593738034, 0.6441679627786393],
        [1.318272595979133e-14, 2.215884021940983, 0.8920579890295022, 0.8920579890295022],
    ),
    "prob": (
        [0.8103638323514326, 0.7149361205103592, 0.7406005849709838, 0.7054946916666202, 0.7020213840997256],
        [0.7054946916666202, 0.7406005849709838, 0.8103638323514326, 0.8103638323514326],
    ),
    "none": (
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 1.0, 1.0, 1.0],
    ),
    "clip_cov": (
        [1.0, 1.0, 0.0, 1.0, 0.0],
        [1.0, 1.0, 0.0, 0.0],
    ),
    "kl_cov": (
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 1.0, 1.0, 1.0],
    ),
    "kl_cov.penalties": (
        [0.7, 0.0, 0.0, 0.0, 0.7],
        [0.0, 0.7, 0.0, 0.7],
    ),
}


def golden_result(name):
    result = torch.zeros(GOLDEN.mask.shape, dtype=F64)
    for group, values in zip((7, -2), GOLDEN_RESULTS[name], strict=True):
        result[GOLDEN.mask & (GOLDEN.group_ids == group)[:, None]] = torch.tensor(values, dtype=F64)
    return result


@EVERY
def test_golden_values_of_the_reference(name):
    parameters = GOLDEN_PARAMETERS.get(name, {})
    close(expected(name, GOLDEN, GOLDEN_NOISE, **parameters), golden_result(name), rtol=1e-13)


@EVERY
@pytest.mark.parametrize(("dtype", "rtol"), [(F64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_golden_values(name, dtype, rtol):
    result = function(name, **GOLDEN_PARAMETERS.get(name, {}))(GOLDEN.to(dtype), GOLDEN_NOISE)
    assert result.dtype == (F64 if dtype == F64 else torch.float32)
    close(result.to(F64), golden_result(name), rtol=rtol, atol=1e-15)


# --- the reference, on generated batches ------------------------------------------------------------------

RATIOS = st.sampled_from([0.0002, 0.002, 0.05, 0.29, 0.5, 1.0])
PARAMETERS = {
    "clip_cov": st.fixed_dictionaries(
        {"ratio": RATIOS, "low": st.sampled_from([1.0, -0.7, 0.03]), "high": st.sampled_from([5.0, 1.3, INF])}
    ),
    "kl_cov": st.fixed_dictionaries({"ratio": RATIOS, "coef": st.sampled_from([1.0, 0.0, 0.1])}),
    "kl_cov.penalties": st.fixed_dictionaries({"ratio": RATIOS, "coef": st.sampled_from([1.0, 0.0, 0.1])}),
    "prob": st.fixed_dictionaries({"alpha": st.sampled_from([0.3, 0.0, 1.0, 0.77])}),
}
# Clip-Cov and KL-Cov twice as often: they have more parameters.
CASES = st.sampled_from([*REFERENCE, "clip_cov", "kl_cov.penalties"]).flatmap(
    lambda name: st.tuples(st.just(name), PARAMETERS.get(name, st.just({})))
)


def determined(name, parameters, lp, adv):
    """Whether rounding leaves the result of this group determined (see `well_posed`)."""
    if name in ("none", "kl_cov", "prob"):
        return True
    if name == "clip_cov":
        return clear_of_bounds(lp, adv, parameters["low"], parameters["high"])
    if name == "kl_cov.penalties":
        return clear_choice(lp, adv, reference.count(parameters["ratio"], len(lp)))
    return well_posed(lp, adv) and (name != "gaussian_mad" or mad_well_posed(lp, adv))


def mad_well_posed(lp, adv):
    c = reference.group_covariance(lp, adv)
    tolerance = reference.sigma_tolerance(lp, adv)
    mad = reference.group_mad(c)
    if mad <= tolerance / 8:
        return True
    z = max(1.0, max(abs(x) for x in c) / mad)
    return mad > 8 * tolerance and z * z * (tolerance / 64) / mad < 1e-9


def rounding(lp, adv, c):
    """A bound on the error of one c, in the float32 of the result."""
    return reference.sigma_tolerance(lp, adv) / 4 + 2.0**-22 * abs(c)


def clear_of_bounds(lp, adv, low, high):
    """No c so close to a bound that rounding decides on which side it is."""
    return all(
        abs(c - bound) > rounding(lp, adv, c) for c in reference.group_covariance(lp, adv) for bound in (low, high)
    )


def clear_choice(lp, adv, count):
    """The tokens near the lowest chosen c are either on one side of the cut, or alike: noise decides."""
    c = reference.group_covariance(lp, adv)
    cut = sorted(c, reverse=True)[count - 1]
    near = [k for k, x in enumerate(c) if abs(x - cut) <= 2 * rounding(lp, adv, cut)]
    chosen_for_certain = sum(x > cut for k, x in enumerate(c) if k not in near)
    alike = len({(lp[k], adv[k]) for k in near}) == 1 or not any(c)
    return alike or chosen_for_certain + len(near) == count


def coarse(inputs):
    """The log-probs in steps of 1/2: equal covariances within a group."""
    return replace(inputs, logps=(2 * inputs.logps).round() / 2)


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SHAPES, CASES, st.sampled_from(["default", "given", "rows in another order"]), st.booleans())
def test_schemes_equal_reference_on_generated_batches(shape, case, source, ties):
    name, parameters = case
    inputs = coarse(generate(shape)) if ties else generate(shape)
    cells = list(reference.group_cells(inputs.mask.tolist(), inputs.group_ids.tolist()).values())
    logps, advantages, _, _ = inputs.lists()
    assume(all(determined(name, parameters, *reference.gather(logps, advantages, group)) for group in cells))
    num_rows, length = inputs.mask.shape
    rows, seed = torch.arange(num_rows), 0
    if source != "default":
        seed = shape.seed
    if source == "rows in another order":
        rows = rows.flip(0) + (1 << 32) * (shape.seed % 7)
    noise = torch.tensor(reference.token_noise(seed, rows.tolist(), length), dtype=F64).reshape(num_rows, length)

    result = function(name, **parameters)(inputs, None if source == "default" else noise)

    out = F64 if shape.logps_dtype == F64 else torch.float32
    assert result.dtype == out and result.shape == inputs.mask.shape
    assert not result[~inputs.mask].any()
    rtol = 1e-7 if out == F64 else 1e-6
    close(result.to(F64), expected(name, inputs, noise, **parameters), rtol=rtol, atol=1e-30)


# --- exact counts -----------------------------------------------------------------------------------------


@SEEDS
@pytest.mark.parametrize("ratio", [0.0002, 0.01, 0.1, 0.29, 1.0])
@pytest.mark.parametrize(("low", "high"), [(1.0, 5.0), (-0.5, 0.5), (0.0, INF), (-INF, INF), (50.0, 60.0)])
def test_clip_cov_drops_the_exact_number_of_candidates(seed, ratio, low, high):
    inputs = sample_batch(seed, sizes=(5, 1, 3, 8, 40), width=9)
    weights = get_weighting("clip_cov", ratio=ratio, low=low, high=high)(*inputs.args(), random_noise(inputs))
    c = token_covariance(*inputs.args())
    assert set(weights.unique().tolist()) <= {0.0, 1.0}
    for valid in valid_groups(inputs):
        dropped = c[valid & (weights == 0)]
        assert ((dropped > low) & (dropped < high)).all()
        candidates = sum(low < x < high for x in c[valid].tolist())
        assert len(dropped) == min(candidates, max(math.floor(ratio * int(valid.sum())), 1))


@SEEDS
@pytest.mark.parametrize("ratio", [0.0002, 0.01, 0.1, 0.29, 1.0])
def test_kl_cov_picks_the_exact_number_of_highest_covariances(seed, ratio):
    inputs = sample_batch(seed, sizes=(5, 1, 3, 8, 40), width=9)
    scheme = get_weighting("kl_cov", ratio=ratio, coef=0.25)
    penalties = scheme.penalties(*inputs.args(), random_noise(inputs))
    c = token_covariance(*inputs.args())
    assert set(penalties.unique().tolist()) <= {0.0, 0.25}
    assert torch.equal(scheme(*inputs.args()), inputs.mask.to(F64))
    for valid in valid_groups(inputs):
        picked, left = c[valid & (penalties > 0)], c[valid & (penalties == 0)]
        assert len(picked) == max(math.floor(ratio * int(valid.sum())), 1)
        assert not len(left) or picked.min() >= left.max()


@pytest.mark.parametrize(
    ("ratio", "tokens", "count"),
    [(0.29, 100, 28), (0.5, 3, 1), (0.5, 4, 2), (0.002, 499, 1), (0.002, 1000, 2), (0.002, 1499, 2), (1.0, 7, 7)],
)
def test_counts_are_rounded_down_as_published(ratio, tokens, count):
    # 0.29 * 100 is 28.999999999999996 in float64, so int() gives 28
    inputs = batch([[-0.01 * t for t in range(tokens)] + [-1.0] * 50] * 2, [1.0, -1.0])
    inputs = replace(inputs, mask=torch.arange(tokens + 50)[None] < torch.tensor([tokens, 0])[:, None])
    weights = get_weighting("clip_cov", ratio=ratio, low=-1, high=1)(*inputs.args())
    penalties = get_weighting("kl_cov", ratio=ratio).penalties(*inputs.args())
    assert (inputs.mask.sum() - weights.sum()).item() == penalties.sum().item() == count


def test_clip_cov_draws_every_candidate_equally_often():
    # One group of 12 tokens, 6 candidates, 2 drawn: each is drawn with probability 1/3.
    inputs = sample_batch(3, sizes=(12,), width=1)
    inputs = replace(inputs, mask=torch.ones_like(inputs.mask))
    c = token_covariance(*inputs.args())
    low = c.flatten().sort().values[5:7].mean().item()
    scheme = get_weighting("clip_cov", ratio=0.17, low=low, high=INF)
    dropped = torch.zeros_like(c)
    draws = 1500
    for seed in range(draws):
        dropped += 1 - scheme(*inputs.args(), token_noise(seed, torch.arange(12), 1))
    assert dropped.sum() == 2 * draws and not dropped[c < low].any()
    spread = math.sqrt(draws * (1 / 3) * (2 / 3))
    assert (dropped[c > low] - draws / 3).abs().max() < 4 * spread


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
def test_the_size_of_the_blocks_changes_nothing(name, seed, monkeypatch):
    inputs, call = sample_batch(seed), active(name)
    noise = random_noise(inputs, seed)
    whole = call(inputs, noise)
    monkeypatch.setitem(groups._BLOCK_TOKENS, "cpu", 13)  # two rows a block
    close(call(inputs, noise), whole)


@EVERY
@SEEDS
def test_masks_of_any_dtype_and_repeated_advantages(name, seed):
    inputs, call = sample_batch(seed), active(name)
    noise = random_noise(inputs, seed)
    repeated = inputs.advantages[:, None].expand(inputs.mask.shape)
    close(call(replace(inputs, mask=inputs.mask.to(torch.int64)), noise), call(inputs, noise), rtol=0, atol=0)
    close(call(replace(inputs, advantages=repeated), noise), call(inputs, noise))


SIGNED = ("gaussian_one_sided", "kl_cov.penalties")
SCALES = [(name, scale) for name in REFERENCE if name != "clip_cov" for scale in (1e-3, 3.7, 1e6)]
SCALES += [(name, scale) for name in REFERENCE if name not in ("clip_cov", *SIGNED) for scale in (-1.0, -20.0)]


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
    for name in (*SIGNED, "clip_cov"):
        call = active(name)
        assert (call(flipped, noise) - call(inputs, noise)).abs().max() > 0.1


@SEEDS
@pytest.mark.parametrize("name", [name for name in REFERENCE if name != "prob"])
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
    assert (weights >= 0).all()
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
        GOLDEN,
        logps=torch.where(GOLDEN.mask, GOLDEN.logps, NAN).requires_grad_(),
        advantages=GOLDEN.advantages.clone().requires_grad_(),
    )
    before = [x.detach().clone() for x in inputs.args()]
    noise = GOLDEN_NOISE.clone()
    result = active(name)(inputs, noise)
    assert not result.requires_grad and result.grad_fn is None
    result.fill_(-1.0)
    for now, then in zip((*inputs.args(), noise), (*before, GOLDEN_NOISE), strict=True):
        torch.testing.assert_close(now.detach(), then, rtol=0, atol=0, equal_nan=True)


# --- edge cases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("advantages", [[0.3, 0.3, 0.3], [0.3, 0.3 + 1e-9, 0.3]])
def test_kernels_without_spread_give_ones(name, advantages):
    inputs = batch(LOGPS_34, advantages, MASK_34)
    close(active(name)(inputs), inputs.mask.to(F64), rtol=0, atol=0)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("logp", [-0.1, -1e4 / 3])
def test_kernels_of_equal_logps_give_ones(name, logp):
    inputs = batch([[logp] * 4] * 3, [0.3, -1.1, 1e6 / 7], MASK_34)
    close(active(name)(inputs), inputs.mask.to(F64), rtol=0, atol=0)


@EVERY
def test_one_token(name):
    result = active(name)(batch([[-3.0]], [2.0]))  # c = 0: Clip-Cov's candidate, KL-Cov's highest
    special = {"clip_cov": 0.0, "kl_cov.penalties": 0.7, "prob": 0.3 * math.exp(-3) + 0.7}
    assert result.item() == pytest.approx(special.get(name, 1.0), rel=1e-12)


# Six of eight tokens are alike: the median absolute deviation of c is 0, its standard deviation is not.
ALIKE = batch([[-1.0] * 6, [-2.0, -5.0] + [-9.0] * 4], [1.0, -1.0], [[1] * 6, [1, 1, 0, 0, 0, 0]])


def test_mad_of_zero_with_spread_falls_back_to_the_standard_deviation():
    c = token_covariance(*ALIKE.args())[ALIKE.mask]
    assert len(c.unique()) == 3 and (c == c[0]).sum() == 6
    weights = active("gaussian_mad")(ALIKE)
    close(weights, gaussian_weights(*ALIKE.args()))
    assert (weights[ALIKE.mask] - 1).abs().max() > 0.1


def test_mad_of_rounding_error_counts_as_zero():
    # l next to -2^13, where a unit in the last place is 2^-40; the alike tokens differ in that digit only
    logps = ALIKE.logps - 8192
    logps[0, :3] -= 2.0**-39
    near = replace(ALIKE, logps=logps)
    assert len(near.logps[near.mask].unique()) == 4
    close(active("gaussian_mad")(near), gaussian_weights(*ALIKE.args()), rtol=1e-7)


def test_mad_above_rounding_error_is_the_bandwidth():
    logps = ALIKE.logps.clone()
    logps[0] -= 2.0**-10 * torch.arange(6)
    inputs = replace(ALIKE, logps=logps)
    close(active("gaussian_mad")(inputs), expected("gaussian_mad", inputs), rtol=1e-7, atol=1e-30)
    assert (active("gaussian_mad")(inputs) - gaussian_weights(*inputs.args())).abs().max() > 0.1


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8])
def test_median_of_few_tokens(tokens):
    rng = random.Random(tokens)
    inputs = batch([[-rng.random()] for _ in range(tokens)], [rng.gauss(0, 1) for _ in range(tokens)])
    close(active("gaussian_mad")(inputs), expected("gaussian_mad", inputs), rtol=1e-7)


def test_clip_cov_without_candidate_drops_nothing():
    inputs = sample_batch(0)
    assert not (token_covariance(*inputs.args()) > 1e3).any()
    weights = get_weighting("clip_cov", ratio=1.0, low=1e3, high=1e4)(*inputs.args())
    assert torch.equal(weights, inputs.mask.to(F64))


def test_clip_cov_with_fewer_candidates_than_the_count_drops_them_all():
    # golden c = 2.4 0 -0.8 0.8 1.6 and -3 0 -0.5 -0.5; 0.7 < c < 2 leaves 0.8 and 1.6 in group 7, none in group -2
    weights = get_weighting("clip_cov", ratio=1.0, low=0.7, high=2.0)(*GOLDEN.args(), GOLDEN_NOISE)
    close(weights[GOLDEN.mask], torch.tensor([1, 1, 1, 1, 0, 0, 1, 1, 1], dtype=F64), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_clip_covs_bounds_are_exclusive(dtype):
    # mean(l) = -4, mean(A) = 0: c = 3 1 -1 -3 | -3 -1 1 3, exactly
    inputs = batch([[-1.0, -3.0, -5.0, -7.0]] * 2, [1.0, -1.0], dtype=dtype)
    dropped = 1 - get_weighting("clip_cov", ratio=1.0, low=-1.0, high=3.0)(*inputs.args())
    close(dropped, [[0, 1, 0, 0], [0, 0, 1, 0]], rtol=0, atol=0)


def test_equal_covariances_in_kl_cov_are_decided_by_noise():
    # c = 3 1 -1 -3 | -3 -1 1 3; ratio 3/8: both 3 and one of the two 1
    inputs = batch([[-1.0, -3.0, -5.0, -7.0]] * 2, [1.0, -1.0])
    scheme = get_weighting("kl_cov", ratio=0.375)
    noise = torch.full((2, 4), 0.5, dtype=F64)
    for row, column in ((0, 1), (1, 2)):
        lower = noise.clone()
        lower[row, column] = 0.25
        picked = torch.zeros(2, 4, dtype=F64)
        picked[0, 0] = picked[1, 3] = picked[row, column] = 1
        close(scheme.penalties(*inputs.args(), lower), picked, rtol=0, atol=0)


def test_covariances_that_are_all_equal_leave_the_whole_choice_to_noise():
    inputs = replace(GOLDEN, advantages=torch.zeros(5, dtype=F64))
    penalties = get_weighting("kl_cov", ratio=0.5).penalties(*inputs.args(), GOLDEN_NOISE)
    dropped = 1 - get_weighting("clip_cov", ratio=0.5, low=-1.0)(*inputs.args(), GOLDEN_NOISE)[GOLDEN.mask]
    # the two lowest of 0.05 0.6 | 0.5 0.9 0.1 and of 0.04 | 0.8 0.7 0.3
    choice = torch.tensor([1, 0, 1, 0, 0, 1, 0, 0, 1], dtype=F64)
    close(penalties[GOLDEN.mask], choice, rtol=0, atol=0)
    close(dropped, choice, rtol=0, atol=0)


@pytest.mark.parametrize("name", DRAWS)
def test_default_noise_is_that_of_seed_0(name):
    inputs = sample_batch(1)
    noise = token_noise(0, torch.arange(len(inputs.mask)), inputs.mask.shape[1])
    close(active(name)(inputs), active(name)(inputs, noise), rtol=0, atol=0)


@EVERY
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_empty_batches_give_empty_results(name, shape, dtype):
    inputs = replace(GOLDEN, logps=torch.zeros(shape, dtype=dtype), mask=torch.zeros(shape, dtype=torch.bool))
    for advantages in (torch.zeros(shape[0]), torch.zeros(shape)):
        for ids in (None, torch.arange(shape[0])):
            for noise in (None, torch.zeros(shape, dtype=F64)):
                result = active(name)(replace(inputs, advantages=advantages, group_ids=ids), noise)
                assert result.shape == shape
                assert result.dtype == (F64 if dtype == F64 else torch.float32)


@EVERY
def test_batch_and_group_without_valid_token_get_zeros(name):
    nothing = replace(GOLDEN, logps=torch.full((5, 4), NAN), mask=torch.zeros(5, 4))
    assert torch.equal(active(name)(nothing), torch.zeros(5, 4))
    own_group = replace(GOLDEN, group_ids=torch.tensor([7, -2, 7, -2, 100]))
    close(active(name)(own_group, GOLDEN_NOISE), active(name)(GOLDEN, GOLDEN_NOISE))


# --- the published rules, where one micro-batch holds everything ------------------------------------------
#
# The losses of Clip-Cov and KL-Cov by verl's rules, in a few lines: statistics over all valid tokens of the tensors at
# hand, with the log-probs of the current policy. At the first update of a rollout batch ours are given the same.


def token_mean(losses, mask):
    return losses[mask].mean()


def published_covariance(logps, advantages, mask):
    lp = logps.detach()
    return (advantages - token_mean(advantages, mask)) * (lp - token_mean(lp, mask))


def published_candidates(logps, old, advantages, mask, ratio, low, high, clip):
    """The tokens to draw from, and how many to draw."""
    surrogate, clipped = surrogates(logps, old, advantages, clip)
    c = published_covariance(logps, advantages, mask)
    candidates = (c > low) & (c < high) & mask & ~(clipped > surrogate)
    return candidates, max(int(ratio * mask.sum().item()), 1)


def surrogates(logps, old, advantages, clip):
    """PPO's two losses of each token."""
    r = torch.exp(logps - old)
    return -advantages * r, -advantages * torch.clamp(r, 1 - clip, 1 + clip)


def published_clip_cov_loss(logps, old, advantages, mask, drawn, clip):
    losses = torch.maximum(*surrogates(logps, old, advantages, clip))
    return token_mean(losses * (~drawn).to(losses), mask)


def published_kl_cov_loss(logps, old, advantages, mask, ratio, coef):
    """The loss and the tokens that carry the penalty."""
    c = published_covariance(logps, advantages, mask)
    where = mask.nonzero()[c[mask].topk(max(1, int(mask.sum().item() * ratio))).indices]
    selected = torch.zeros_like(mask)
    selected[where[:, 0], where[:, 1]] = True
    d = logps - old
    losses = -advantages * torch.exp(d)
    losses = torch.where(selected, losses + coef * d.abs(), losses)
    return token_mean(losses, mask), selected


def weighted_loss(logps, old, advantages, mask, clip):
    """TRL's loss, which takes advantages of every token."""
    r = torch.exp(logps - old)
    clipped = torch.clamp(r, 1 - clip, 1 + clip)
    return token_mean(-torch.minimum(r * advantages, clipped * advantages), mask)


def micro_batch(seed, dtype, step):
    """(old, logps, A (B, T), mask): a ragged batch, and the log-probs after a random step of that size."""
    inputs = sample_batch(seed, sizes=(24,), width=20).to(dtype)
    torch.manual_seed(seed)
    old = inputs.logps
    logps = (old + step * torch.randn(old.shape, dtype=dtype)).requires_grad_()
    return old, logps, inputs.advantages[:, None].expand(old.shape), inputs.mask


PUBLISHED = pytest.mark.parametrize(("dtype", "rtol"), [(F64, 1e-12), (torch.float32, 1e-5)])
CLIP_COV = pytest.mark.parametrize(
    ("ratio", "low", "high"), [(0.0002, 1.0, 5.0), (0.01, 1.0, 5.0), (0.1, 0.5, 1.0), (0.5, -0.2, 0.2)]
)


@PUBLISHED
@CLIP_COV
@SEEDS
def test_clip_cov_draws_from_the_published_candidates(seed, ratio, low, high, dtype, rtol):
    old, logps, advantages, mask = micro_batch(seed, dtype, step=0.0)
    candidates, number = published_candidates(logps, old, advantages, mask, ratio, low, high, clip=1.0)
    everything = get_weighting("clip_cov", ratio=1.0, low=low, high=high)(old, advantages, mask)
    assert torch.equal(mask & (everything == 0), candidates)
    for draw in range(5):
        noise = token_noise(draw, torch.arange(len(mask)), mask.shape[1])
        drawn = mask & (
            get_weighting("clip_cov", ratio=ratio, low=low, high=high)(old, advantages, mask, None, noise) == 0
        )
        assert not (drawn & ~candidates).any()
        assert drawn.sum() == min(number, candidates.sum())


@PUBLISHED
@SEEDS
@pytest.mark.parametrize("clip", [1.0, 0.2])
@pytest.mark.parametrize("step", [0.0, 0.3])
def test_clip_cov_has_the_published_loss_and_gradient(seed, step, clip, dtype, rtol):
    old, logps, advantages, mask = micro_batch(seed, dtype, step)
    weights = get_weighting("clip_cov", ratio=0.1, low=0.2, high=2.0)(old, advantages, mask)
    drawn = mask & (weights == 0)
    assert drawn.any()
    ours = weighted_loss(logps, old, advantages * weights, mask, clip)
    published = published_clip_cov_loss(logps, old, advantages, mask, drawn, clip)
    close(ours, published.detach(), rtol=rtol, atol=1e-7 if dtype == torch.float32 else 1e-14)
    (our_gradient,) = torch.autograd.grad(ours, logps)
    (gradient,) = torch.autograd.grad(published, logps)
    close(our_gradient, gradient, rtol=rtol)
    assert not gradient[drawn].any() and gradient.any()


@PUBLISHED
@SEEDS
@pytest.mark.parametrize(("ratio", "coef"), [(0.002, 1.0), (0.0002, 0.1), (0.2, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("step", [0.0, 0.3])
def test_kl_cov_has_the_published_tokens_loss_and_gradient(seed, step, ratio, coef, dtype, rtol):
    # The trainer gives `penalties` the log-probs of the rollout; here the current ones, as published.
    old, logps, advantages, mask = micro_batch(seed, dtype, step)
    penalties = get_weighting("kl_cov", ratio=ratio, coef=coef).penalties(logps, advantages, mask)
    published, selected = published_kl_cov_loss(logps, old, advantages, mask, ratio, coef)
    assert torch.equal(penalties > 0, selected)
    # -r A' = -r A + coef |d| for A' = A - coef |d| / r
    d = logps - old
    r = torch.exp(d)
    ours = token_mean(-r * (advantages - penalties * d.abs() / r), mask)
    close(ours, published.detach(), rtol=rtol, atol=1e-7 if dtype == torch.float32 else 1e-14)
    (our_gradient,) = torch.autograd.grad(ours, logps)
    (gradient,) = torch.autograd.grad(published, logps)
    close(our_gradient, gradient, rtol=rtol, atol=1e-8 if dtype == torch.float32 else 1e-15)


@SEEDS
def test_kl_covs_penalty_needs_the_ratio_undetached(seed):
    # The identity holds for value and gradient; with r detached in A' the value holds, the gradient does not.
    old, logps, advantages, mask = micro_batch(seed, F64, step=0.3)
    penalties = get_weighting("kl_cov", ratio=0.2).penalties(logps, advantages, mask)
    published, _ = published_kl_cov_loss(logps, old, advantages, mask, 0.2, 1.0)
    d = logps - old
    r = torch.exp(d)
    detached = token_mean(-r * (advantages - (penalties * d.abs() / r).detach()), mask)
    close(detached, published.detach())
    (broken,), (gradient,) = torch.autograd.grad(detached, logps), torch.autograd.grad(published, logps)
    assert (broken - gradient).abs().max() > 0.1 * gradient.abs().max()


@SEEDS
def test_kl_cov_is_inert_on_policy(seed):
    old, logps, advantages, mask = micro_batch(seed, F64, step=0.0)
    loss, selected = published_kl_cov_loss(logps, old, advantages, mask, 0.2, 1.0)
    plain = weighted_loss(logps, old, advantages, mask, clip=1e6)
    assert selected.any()
    close(loss.detach(), plain.detach(), rtol=0, atol=0)
    (gradient,), (stock,) = torch.autograd.grad(loss, logps), torch.autograd.grad(plain, logps)
    close(gradient, stock, rtol=0, atol=0)


# --- token noise ------------------------------------------------------------------------------------------

# The first outputs of SplitMix64 seeded with 0, as published with it.
SPLITMIX64 = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
# (seed, row): the first three numbers
GOLDEN_TOKEN_NOISE = {
    (0, 0): [0.33805245419550545, 0.2691302712263999, 0.2715666096967839],
    (0, 1): [0.13870941014555427, 0.9711020828012883, 0.2778328726049074],
    (1, 1): [0.5026230818294767, 0.5805554841444246, 0.12765422614041944],
    (42, 2): [0.052582344588916974, 0.16027646924056627, 0.515101633340319],
    (42, 30064771075): [0.9067653089078341, 0.5154437838524621, 0.8011923870933217],
    (-5, 11): [0.3516891333355585, 0.28723456157669935, 0.26195372617017343],
    (9223372036854775809, 4611686018427387904): [0.8720345464079728, 0.7542460326564543, 0.7171954540008839],
    (9, -4): [0.297529783539326, 0.11069370804302703, 0.3055760095950961],
}


def noise_of(seed, rows, length):
    return token_noise(seed, torch.tensor(rows), length)


def test_reference_noise_mixes_as_splitmix64_does():
    assert [reference.splitmix(reference.GAMMA * t) for t in (1, 2, 3, 4)] == SPLITMIX64


@pytest.mark.parametrize(("seed", "row"), GOLDEN_TOKEN_NOISE)
def test_golden_token_noise(seed, row):
    numbers = GOLDEN_TOKEN_NOISE[seed, row]
    assert reference.token_noise(seed, [row], 3) == [numbers]
    assert noise_of(seed, [row], 3).tolist() == [numbers]  # to the last bit


@pytest.mark.parametrize("seed", [0, 1, 42, -1, -12345, 2**31, 2**63, 2**64 - 1, 2**70 + 3])
@pytest.mark.parametrize("rows", [[0, 1, 2], [5], [-1, -(2**40)], [3 * 2**32 + 7, 2**62], []])
def test_token_noise_equals_reference(seed, rows):
    rows = torch.tensor(rows, dtype=torch.int64)
    for length in (0, 1, 9):
        expected_noise = torch.tensor(reference.token_noise(seed, rows.tolist(), length), dtype=F64)
        assert torch.equal(token_noise(seed, rows, length), expected_noise.reshape(len(rows), length))


def test_token_noise_is_deterministic_and_independent_of_its_surroundings():
    whole = noise_of(7, range(50), 40)
    assert whole.dtype == F64 and whole.min() >= 0 and whole.max() < 1
    assert torch.equal(whole, noise_of(7, range(50), 40))
    assert torch.equal(whole[:, :13], noise_of(7, range(50), 13))  # the length
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole[order], token_noise(7, order, 40))  # the order of the rows
    assert torch.equal(whole[[3]], noise_of(7, [3], 40))  # the other rows
    assert torch.equal(whole, token_noise(7, torch.arange(50, dtype=torch.int32), 40))


def test_token_noise_leaves_torchs_generator_alone():
    state = torch.get_rng_state()
    noise_of(3, range(4), 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_token_noise_differs_between_rows_and_positions():
    assert len(noise_of(0, range(300), 300).unique()) == 300 * 300
    steps = [row + step * 2**32 for step in range(30) for row in range(30)]  # as the trainer names its rows
    assert len(noise_of(42, steps, 30).unique()) == 30**3


def test_token_noise_of_a_row_differs_between_seeds():
    for row in (0, 1, 5, 2**32 + 5):
        assert len(torch.cat([noise_of(seed, [row], 50) for seed in range(100)]).unique()) == 100 * 50


def test_token_noise_differs_between_all_seeds_and_rows():
    numbers = torch.cat([noise_of(seed, range(20), 20) for seed in range(20)])
    assert len(numbers.unique()) == 20**3


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs().item()


def test_token_noise_is_uniform():
    numbers = noise_of(2024, range(500), 200).flatten()
    n = len(numbers)
    assert n == 100_000
    # 4 standard errors: the variance of a uniform number is 1/12, that of its squared deviation 1/180
    assert abs(numbers.mean().item() - 1 / 2) < 4 * math.sqrt(1 / 12 / n)
    assert abs(numbers.var().item() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    # Kolmogorov-Smirnov: sqrt(n) max|F_n - F| exceeds 1.63 in 1 % of cases
    ordered, ranks = numbers.sort().values, torch.arange(n + 1, dtype=F64) / n
    distance = torch.maximum((ranks[1:] - ordered).max(), (ordered - ranks[:-1]).max()).item()
    assert math.sqrt(n) * distance < 1.63


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_neighbouring_token_noise_is_uncorrelated(lag):
    numbers = noise_of(2024, range(500), 200)
    limit = 4 / math.sqrt(100_000)
    assert correlation(numbers[:, lag:], numbers[:, :-lag]) < limit  # positions
    assert correlation(numbers[lag:], numbers[:-lag]) < limit  # rows
    assert correlation(noise_of(2024 + lag, range(500), 200), numbers) < limit  # seeds
    assert correlation(noise_of(2024, range(lag << 32, (lag << 32) + 500), 200), numbers) < limit  # rollout batches


# --- summary ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 6, 99, 100, 101, 9_999, 10_000, 10_001, 20_000, 20_001])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_summary_equals_reference(tokens, dtype):
    torch.manual_seed(tokens)
    width = 7
    mask = torch.zeros(tokens // 5 + 1, width, dtype=torch.bool)
    mask.view(-1)[torch.randperm(mask.numel())[:tokens]] = True
    assert mask.sum() == tokens
    c = torch.where(mask, torch.randn(mask.shape), NAN).to(dtype)
    weights = torch.where(mask, torch.rand(mask.shape) ** 4, INF).to(dtype)
    expected_summary = reference.summary(c.tolist(), weights.tolist(), mask.tolist())
    for as_given in (mask, mask.long(), mask.float()):
        summary = summarise(c, weights, as_given)
        assert list(summary) == list(expected_summary)
        assert all(type(value) is float for value in summary.values())
        for key, value in expected_summary.items():
            exact = key.startswith(("cov/top", "cov/bottom", "weight/min"))
            assert summary[key] == (value if exact else pytest.approx(value, rel=1e-12, abs=1e-15)), key


def test_summary_of_golden_values():
    c = torch.tensor([[4.0, -2.0, 1.0], [0.0, 2.0, NAN]])
    weights = torch.tensor([[0.0, 1.0, 1.0], [2.0, 1.0, 7.0]])
    summary = summarise(c, weights, torch.tensor([[1, 1, 1], [1, 1, 0]]))
    # mean 1; deviations 3 -3 0 -1 1: 20 / 5 = 4.  ess: 5^2 / (5 * 7)
    assert summary == pytest.approx(
        {
            "cov/mean": 1.0,
            "cov/sigma": 2.0,
            "cov/top_0.0001": 4.0,
            "cov/bottom_0.0001": -2.0,
            "cov/top_0.01": 4.0,
            "cov/bottom_0.01": -2.0,
            "cov/top_0.2": 4.0,
            "cov/bottom_0.2": -2.0,
            "weight/min": 0.0,
            "weight/ess": 5 / 7,
        }
    )


def test_summary_tails_count_tokens_without_rounding_error():
    # k = ceil(f N) in integers, also at every N of which f is a whole number of tokens
    for fraction, one_in in ((0.0001, 10_000), (0.01, 100), (0.2, 5)):
        for n in [*range(1, 300), *range(one_in, 20_001, one_in)]:
            summary = summarise(torch.arange(n), torch.ones(n), torch.ones(n))
            k = (n + one_in - 1) // one_in
            assert summary[f"cov/top_{fraction:g}"] == n - k
            assert summary[f"cov/bottom_{fraction:g}"] == k - 1


def test_summary_of_nothing_and_of_zero_weights():
    assert summarise(torch.full((2, 3), NAN), torch.zeros(2, 3), torch.zeros(2, 3)) == {}
    assert summarise(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3)) == {}
    summary = summarise(torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 2))
    assert summary["weight/ess"] == summary["weight/min"] == 0.0
    assert summary["cov/sigma"] == 0.0 and summary["cov/mean"] == 1.0


# --- parameters -------------------------------------------------------------------------------------------

NOT_A_FRACTION = [0.0, -0.1, 1.0001, 20, NAN, INF]
WRONG = [
    *(("clip_cov", {"ratio": value}, "ratio") for value in NOT_A_FRACTION),
    *(("kl_cov", {"ratio": value}, "ratio") for value in NOT_A_FRACTION),
    *(("prob", {"alpha": value}, "alpha") for value in [-0.1, 1.0001, NAN, INF]),
    ("clip_cov", {"low": 5.0}, "low"),
    ("clip_cov", {"low": 6.0}, "low"),
    ("clip_cov", {"low": 1.0, "high": 0.5}, "high"),
    ("clip_cov", {"low": NAN}, "low"),
    ("clip_cov", {"high": NAN}, "high"),
    ("kl_cov", {"coef": -1e-9}, "coef"),
    ("kl_cov", {"coef": NAN}, "coef"),
]


@pytest.mark.parametrize(("name", "parameters", "named"), WRONG)
def test_wrong_parameter_is_named(name, parameters, named):
    value = parameters[named]
    for build in (covgrpo.WEIGHTINGS[name], lambda **given: get_weighting(name, **given)):
        with pytest.raises(ValueError, match=rf"{name}\b.*\b{named}\b") as error:
            build(**parameters)
        assert str(value) in str(error.value)


@pytest.mark.parametrize("parameters", [{"ratio": "0.1"}, {"ratio": None}, {"low": "1"}])
def test_parameter_of_a_wrong_type_is_a_value_error(parameters):
    with pytest.raises(ValueError, match="clip_cov"):
        get_weighting("clip_cov", **parameters)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("clip_cov", {"ratio": 0.01, "low": 0.5, "high": 9.0}),
        ("clip_cov", {"ratio": 1, "low": -INF, "high": INF}),
        ("kl_cov", {"ratio": 1.0, "coef": 0.0}),
        ("kl_cov", {"ratio": 0.2, "coef": 0.1}),
        ("prob", {"alpha": 0.0}),
        ("prob", {"alpha": 1}),
    ],
)
def test_parameters_are_set(name, parameters):
    scheme = get_weighting(name, **parameters)
    assert {key: getattr(scheme, key) for key in parameters} == parameters


def test_default_parameters():
    clip_cov, kl_cov = get_weighting("clip_cov"), get_weighting("kl_cov")
    assert (clip_cov.ratio, clip_cov.low, clip_cov.high) == (0.0002, 1.0, 5.0)
    assert (kl_cov.ratio, kl_cov.coef) == (0.002, 1.0)
    assert get_weighting("prob").alpha == 0.3


@pytest.mark.parametrize("name", covgrpo.WEIGHTINGS)
def test_unknown_parameter_is_named(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*\btemperature\b"):
        get_weighting(name, temperature=1.0)


@pytest.mark.parametrize("name", covgrpo.WEIGHTINGS)
def test_parameters_cannot_be_changed_afterwards(name):
    scheme = get_weighting(name)
    with pytest.raises(AttributeError):
        scheme.ratio = 0.5


@EVERY
@pytest.mark.parametrize(
    ("argument", "value"),
    [("logps", torch.zeros(5, 4, 1)), ("advantages", torch.zeros(3)), ("mask", torch.full((5, 4), 2))],
)
def test_wrong_argument_is_named(name, argument, value):
    with pytest.raises(ValueError, match=rf"\b{argument}\b"):
        active(name)(replace(GOLDEN, **{argument: value}))
