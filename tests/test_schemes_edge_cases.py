"""Edge cases, parameters and errors of every scheme."""

import math
import random
from dataclasses import replace

import pytest
import torch
from core_cases import (
    F64,
    GOLDEN,
    INF,
    LOGPS_34,
    MASK_34,
    NAN,
    batch,
    close,
    sample_batch,
)
from scheme_cases import (
    DRAWS,
    EVERY,
    GOLDEN_NOISE,
    NEED_SPREAD,
    active,
    expected,
    golden,
)

import covgrpo
from covgrpo import gaussian_weights, get_weighting, token_covariance
from covgrpo.core.noise import token_noise

# --- edge cases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEED_SPREAD)
@pytest.mark.parametrize("advantages", [[0.3, 0.3, 0.3], [0.3, 0.3 + 1e-9, 0.3]])
def test_schemes_without_spread_give_ones(name, advantages):
    inputs = batch(LOGPS_34, advantages, MASK_34)
    close(active(name)(inputs), inputs.mask.to(F64), rtol=0, atol=0)


@pytest.mark.parametrize("name", NEED_SPREAD)
@pytest.mark.parametrize("logp", [-0.1, -1e4 / 3])
def test_schemes_of_equal_logps_give_ones(name, logp):
    inputs = batch([[logp] * 4] * 3, [0.3, -1.1, 1e6 / 7], MASK_34)
    close(active(name)(inputs), inputs.mask.to(F64), rtol=0, atol=0)


@EVERY
def test_one_token(name):
    result = active(name)(batch([[-3.0]], [2.0]))  # c = 0: Clip-Cov's candidate, KL-Cov's highest
    special = {"clip_cov": 0.0, "kl_cov.penalties": 0.7, "prob": 0.3 * math.exp(-3) + 0.7}
    special["delight"] = 1 / (1 + math.exp(-6))
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
    inputs = replace(golden(name), logps=torch.zeros(shape, dtype=dtype), mask=torch.zeros(shape, dtype=torch.bool))
    for advantages in (torch.zeros(shape[0]), torch.zeros(shape)):
        for ids in (None, torch.arange(shape[0])):
            for noise in (None, torch.zeros(shape, dtype=F64)):
                result = active(name)(replace(inputs, advantages=advantages, group_ids=ids), noise)
                assert result.shape == shape
                assert result.dtype == (F64 if dtype == F64 else torch.float32)


@EVERY
def test_batch_and_group_without_valid_token_get_zeros(name):
    nothing = replace(golden(name), logps=torch.full((5, 4), NAN), mask=torch.zeros(5, 4))
    assert torch.equal(active(name)(nothing), torch.zeros(5, 4))
    own_group = replace(golden(name), group_ids=torch.tensor([7, -2, 7, -2, 100]))
    close(active(name)(own_group, GOLDEN_NOISE), active(name)(golden(name), GOLDEN_NOISE))


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
    *(("delight", {"eta": value}, "eta") for value in [0.0, -1.0, NAN, INF]),
    *(("gaussian_per_sign", {"one_sided": value}, "one_sided") for value in ["yes", 1, None]),
    *(("neutral", {"kappa": value}, "kappa") for value in [NAN, INF, -INF]),
    *(
        (scheme, {name: value}, name)
        for scheme in ("hold_entropy", "entropy_floor")
        for name in ("target", "fraction", "bound")
        for value in [NAN, INF, 0, -1.0]
    ),
    ("hold_entropy", {"kappa": 33.0}, "kappa"),
    ("hold_entropy", {"target": 0.3, "fraction": 0.9}, "fraction"),
    ("entropy_floor", {"target": 0.3, "fraction": 0.9}, "fraction"),
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
        ("delight", {"eta": 0.5}),
        ("gaussian_per_sign", {"one_sided": True}),
        ("neutral", {"kappa": -2.5}),
        ("neutral", {"kappa": 0}),
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
    assert get_weighting("neutral").kappa == 1.0
    assert get_weighting("delight").eta == 1.0 and get_weighting("gaussian_per_sign").one_sided is False


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
