"""Every weighting scheme against golden values and plain loops; Clip-Cov and KL-Cov count exactly."""

import math
from dataclasses import replace

import pytest
import reference
import reference_candidates
import reference_through
import torch
from core_cases import (
    F64,
    GOLDEN,
    INF,
    SEEDS,
    SHAPES,
    Shape,
    batch,
    close,
    generate,
    sample_batch,
    well_posed,
)
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from scheme_cases import (
    EVERY,
    GOLDEN_NOISE,
    REFERENCE,
    expected,
    function,
    golden,
    neutral_well_posed,
    random_noise,
    valid_groups,
)

import covgrpo
from covgrpo import get_weighting, token_covariance
from covgrpo.core.noise import token_noise


def test_every_scheme_has_a_reference():
    assert set(covgrpo.WEIGHTINGS) == {name for name in REFERENCE if "." not in name}


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
    # c by completions = 1 -1 | -5/3 1/3 4/3 and 0 | 5/6 -5/12 -5/12 (mean A 3/4); 0 = c of a completion of one token
    "gaussian_through": (
        [0.2862325591843188, 1.8615120629334583, -0.30857210165940224, 1.7155398740823746, 1.445287605459251],
        [1.483316531223335, 0.39099799255021983, 1.0628427381132226, 1.0628427381132226],
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
    "gaussian_per_sign": (
        [0.2384058440442351, 1.7615941559557646, 1.2598396480130107, 1.2598396480130107, 0.4803207039739784],
        [1.0, 1.0, 1.0, 1.0],
    ),
    "neutral_common": (
        [0.0, 1.25, 1.25, 1.25, 1.25],
        [2.0, 2.0, 0.0, 0.0],
    ),
    "delight": (
        [0.7310585786300049, 0.9525741268224334, 0.11920292202211755, 0.01798620996209156, 0.0066928509242848554],
        [0.9996646498695336, 0.5, 0.5, 0.5],
    ),
    "positive_only": (
        [1.0, 1.0, 0.0, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0],
    ),
    "prob": (
        [0.8103638323514326, 0.7149361205103592, 0.7406005849709838, 0.7054946916666202, 0.7020213840997256],
        [0.7054946916666202, 0.7406005849709838, 0.8103638323514326, 0.8103638323514326],
    ),
    "neutral": (
        [0.0, 1.5, 2.0, 1.0, 0.5],
        [0.0, 8 / 3, 2 / 3, 2 / 3],
    ),
    # with the kappa of the first steps, 1, it is the neutral scheme
    "hold_entropy": (
        [0.0, 1.5, 2.0, 1.0, 0.5],
        [0.0, 8 / 3, 2 / 3, 2 / 3],
    ),
    "entropy_floor": (  # likewise
        [0.0, 1.5, 2.0, 1.0, 0.5],
        [0.0, 8 / 3, 2 / 3, 2 / 3],
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
    close(expected(name, golden(name), GOLDEN_NOISE, **parameters), golden_result(name), rtol=1e-13)


@EVERY
@pytest.mark.parametrize(("dtype", "rtol"), [(F64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_golden_values(name, dtype, rtol):
    result = function(name, **GOLDEN_PARAMETERS.get(name, {}))(golden(name).to(dtype), GOLDEN_NOISE)
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
    "gaussian_through": st.fixed_dictionaries(
        {"normaliser": st.sampled_from(["completion", "token"]), "padded_mean": st.booleans()}
    ),
    "gaussian_per_sign": st.fixed_dictionaries({"one_sided": st.booleans()}),
    "delight": st.fixed_dictionaries({"eta": st.sampled_from([1.0, 0.2, 5.0])}),
    "neutral": st.fixed_dictionaries({"kappa": st.sampled_from([1.0, 0.0, -2.0, 0.3, 4.0, 8.0])}),
}


# Those with more parameters twice as often. The kernel with the gradient through it has 1,000 batches of its own.
CASES = st.sampled_from([*REFERENCE, "clip_cov", "kl_cov.penalties", "neutral"]).flatmap(
    lambda name: st.tuples(st.just(name), PARAMETERS.get(name, st.just({})))
)


def determined(name, parameters, lp, adv, rows):
    """Whether rounding leaves the result of this group determined (see `well_posed`)."""
    if name == "gaussian_through":
        return through_well_posed(lp, adv, rows)
    if name in ("none", "kl_cov", "prob", "delight", "positive_only"):
        return True
    if name == "clip_cov":
        return clear_of_bounds(lp, adv, parameters["low"], parameters["high"])
    if name == "kl_cov.penalties":
        return clear_choice(lp, adv, reference.count(parameters["ratio"], len(lp)))
    if name in ("neutral", "hold_entropy", "entropy_floor"):
        return neutral_well_posed(lp, adv, parameters.get("kappa", 1.0))
    if name == "gaussian_per_sign":
        return per_sign_well_posed(lp, adv)
    if name == "neutral_common":
        return common_well_posed(lp, adv)
    return well_posed(lp, adv) and (name != "gaussian_mad" or mad_well_posed(lp, adv))


def through_well_posed(lp, adv, rows):
    """As `well_posed`, for the covariance by completions; and every advantage has an effective weight."""
    if not any(adv):
        return True
    c = reference_through.covariance(torch.tensor(lp, dtype=F64), adv, rows).tolist()
    sigma, tolerance = reference.group_sigma(c), reference.sigma_tolerance(lp, adv)
    flat = reference_through.flat(adv, rows)
    if flat or sigma <= tolerance / 8:
        return True
    z = max(1.0, max(abs(x) for x in c) / sigma)
    sized = min(map(abs, adv)) > 1e-4 * max(map(abs, adv))
    return sized and z * z * (tolerance / 64) / sigma < 1e-11


def per_sign_well_posed(lp, adv):
    """As `well_posed`, for the bandwidth of each sign of A; its own c must set it, not their common mean."""
    c, tolerance = reference.group_covariance(lp, adv), reference.sigma_tolerance(lp, adv)
    for own in ([c[k] for k in side] for side in reference_candidates.sides(adv)):
        sigma = reference.group_sigma(own) if own else 0.0
        if sigma > tolerance / 8 and (max(abs(x) for x in own) / sigma) ** 2 * (tolerance / 64) / sigma > 1e-9:
            return False
    return True


def common_well_posed(lp, adv):
    """No c so small that rounding decides whether the token is damped, and what is damped sets the share."""
    c, damped = reference_candidates.damped_tokens(lp, adv)
    tolerance = reference.sigma_tolerance(lp, adv)
    clear = not any(tolerance / 8 < abs(x) < 8 * tolerance for x in c)
    return clear and (not damped or len(c) * tolerance / 64 < 1e-10 * abs(sum(c[k] for k in damped)))


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
    flat = max(abs(a - reference.mean(adv)) for a in adv) <= reference.EQUAL_ADVANTAGES  # c is exactly 0
    alike = len({(lp[k], adv[k]) for k in near}) == 1 or flat
    return alike or chosen_for_certain + len(near) == count


def coarse(inputs):
    """The log-probs in steps of 1/2: equal covariances within a group."""
    return replace(inputs, logps=(2 * inputs.logps).round() / 2)


# A token lies where its line meets 0: its weight is 1.1e-13, and the two codes differ by 1.1e-16.
@example(
    Shape(73, [1, 1, 3, 2], 3, "around -1e4", "normal", False, False, torch.float16, torch.float16),
    ("hold_entropy", {}),
    "default",
    False,
)
@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SHAPES, CASES, st.sampled_from(["default", "given", "rows in another order"]), st.booleans())
def test_schemes_equal_reference_on_generated_batches(shape, case, source, ties):
    name, parameters = case
    inputs = coarse(generate(shape)) if ties else generate(shape)
    cells = list(reference.group_cells(inputs.mask.tolist(), inputs.group_ids.tolist()).values())
    logps, advantages, _, _ = inputs.lists()
    assume(
        all(
            determined(name, parameters, *reference.gather(logps, advantages, group), [i for i, _ in group])
            for group in cells
        )
    )
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
    # A token may lie where the line of these two meets 0, and `well_posed` leaves 1e-9 of its place open.
    # Likewise for the share that the third takes of common tokens, which may be next to all.
    atol = 1e-9 if name in ("neutral", "hold_entropy", "entropy_floor", "neutral_common") else 1e-30
    close(result.to(F64), expected(name, inputs, noise, **parameters), rtol=rtol, atol=atol)


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
