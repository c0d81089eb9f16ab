"""The schemes and their references as functions of a batch, for the tests of the schemes."""

import pytest
import reference
import reference_candidates
import reference_through
import torch
from core_cases import F64, GOLDEN, batch, well_posed

from covgrpo import get_weighting

REFERENCE = {
    "hold_entropy": reference.neutral_weights,  # with the kappa of the first steps
    "entropy_floor": reference.neutral_weights,  # likewise
    "gaussian": reference.gaussian_weights,
    "gaussian_through": reference_through.gaussian_through_weights,
    "none": reference.none_weights,
    "clip_cov": reference.clip_cov_weights,
    "kl_cov": reference.none_weights,
    "kl_cov.penalties": reference.kl_cov_penalties,
    "prob": reference.probability_weights,
    "neutral": reference.neutral_weights,
    "gaussian_raw": reference.gaussian_raw_weights,
    "gaussian_centred": reference.gaussian_centred_weights,
    "gaussian_one_sided": reference.gaussian_one_sided_weights,
    "gaussian_mad": reference.gaussian_mad_weights,
    "gaussian_per_sign": reference_candidates.gaussian_per_sign_weights,
    "neutral_common": reference_candidates.neutral_common_weights,
    "delight": reference_candidates.delight_weights,
    "positive_only": reference_candidates.positive_only_weights,
}


DRAWS = ("clip_cov", "kl_cov", "kl_cov.penalties")  # take noise


KERNELS = ("gaussian", "gaussian_through", "gaussian_raw", "gaussian_centred", "gaussian_one_sided", "gaussian_mad")


# Without a spread of c these give 1 at every valid token.
NEED_SPREAD = (*KERNELS, "gaussian_per_sign", "neutral", "neutral_common", "hold_entropy", "entropy_floor")


MEAN_ONE = tuple(name for name in NEED_SPREAD if name != "gaussian_raw")
NEGATIVE = ("gaussian_through",)  # weights may be


# Parameters that make a scheme act on small batches; the others have none or act with their defaults.
ACTIVE = {
    "clip_cov": {"ratio": 0.2, "low": -0.5, "high": 2.0},
    "kl_cov": {"ratio": 0.2, "coef": 0.7},
    "kl_cov.penalties": {"ratio": 0.2, "coef": 0.7},
    "neutral": {"kappa": 3.0},
}


EVERY = pytest.mark.parametrize("name", REFERENCE)


def function(name, **parameters):
    """The scheme, or KL-Cov's penalties, as a function of a Batch and its noise."""
    scheme = get_weighting(name.removesuffix(".penalties"), **parameters)
    if name not in DRAWS:
        return lambda inputs, noise=None: scheme(*inputs.args())
    call = scheme.penalties if name.endswith(".penalties") else scheme
    return lambda inputs, noise=None: call(*inputs.args(), noise)


# The golden example; where an advantage of 0 has no weight (see gaussian_through) it is -1/2 instead.
GOLDEN_NONZERO = batch(GOLDEN.logps.tolist(), [1.0, 2.0, -1.0, -0.5, 5.0], GOLDEN.mask.tolist(), [7, -2, 7, -2, -2])


def golden(name):
    return GOLDEN_NONZERO if name == "gaussian_through" else GOLDEN


def active(name):
    return function(name, **ACTIVE.get(name, {}))


def expected(name, inputs, noise=None, **parameters):
    """The reference's result, float64."""
    if name in ("clip_cov", "kl_cov.penalties"):
        parameters["noise"] = noise.tolist()
    if name == "kl_cov":
        parameters = {}
    return torch.tensor(REFERENCE[name](*inputs.lists(), **parameters), dtype=F64).reshape(inputs.mask.shape)


def neutral_well_posed(lp, adv, kappa):
    """`well_posed` for the tokens that `neutral` clamps not: their slope depends on the spread of their c alone."""
    w = reference.group_neutral_weights(lp, adv, kappa)
    left = [x for x, weight in zip(reference.group_covariance(lp, adv), w, strict=True) if weight > 1e-9]
    sigma, error = reference.group_sigma(left), reference.sigma_tolerance(lp, adv) / 64
    exact = len(set(left)) == 1
    return well_posed(lp, adv) and (exact or (max(left) - min(left)) / sigma * (1 + abs(kappa)) * error / sigma < 1e-9)


def random_noise(inputs, seed=0):
    return torch.rand(inputs.mask.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def valid_groups(inputs):
    """For each group with valid tokens, where they lie: (B, T)."""
    for group in inputs.group_ids.unique():
        valid = inputs.mask & (inputs.group_ids == group)[:, None]
        if valid.any():
            yield valid


#
# The golden example of core_cases.py; z^2/2 of each token in the kernel's exponent:
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
# Neutral, kappa 1: mean(w c) is to be 0.
#   group 7       w = 1 - 0.8 (c - 0.8) / 1.28; ESS 2/3
#   group -2      w = 1 + (c + 1) / 1.375 < 0 at c = -3: clamped. A mean of 0 would leave weight on one token, ESS 1/4.
#                 At ESS 1/2 with n = 3, u = -1/3, v = 1/18: s = -sqrt((2 * 3/4 - 1) / v) = -3, w = 4/3 (2 + 3 c)
# Clip-Cov, ratio 0.5, -1 < c < 2: draws 2 of the candidates 0 -0.8 0.8 1.6 and 2 of 0 -0.5 -0.5, those of lowest noise.
# Per sign of A:  group 7: c = 2.4 0, mean 1.2, 2 sigma^2 = 2.88 | -0.8 0.8 1.6, mean 8/15, 2 sigma^2 = 448/225
#   group -2: one token with A > 0, the others with A = 0: weights 1
# Neutral by common tokens: group 7, sum 4 > 0; common and c > 0 is 2.4 alone, less than 4: delta is 1, w = 0 | 5/4
#   group -2, sum -4 < 0; common and c < 0 are -0.5 twice: delta is 1, ESS 1/2
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
