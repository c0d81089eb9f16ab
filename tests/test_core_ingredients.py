"""The registry of weightings; each ingredient of the formula is seen by a test."""

import math

import pytest
import torch
from core_cases import F64, GOLDEN, batch, close
from scheme_cases import GOLDEN_NONZERO

import covgrpo
from covgrpo import gaussian_through_weights, gaussian_weights, get_weighting, neutral_weights

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


# --- every term of the gradient through the weights is seen by a test ------------------------------------------


def through_loop(rows, **broken):
    """Effective weights of one group, differentiated by autograd, with a part of the loss broken: held constant or
    taken over other tokens. ``rows`` as above; every token counts 1 / tokens of its completion unless ``share`` says.
    """
    held = {name: (lambda x: x.detach()) if broken.get(name) == "held" else (lambda x: x) for name in HELD}
    live = torch.tensor([lp for row in rows for lp, _ in row], dtype=F64, requires_grad=True)
    own = torch.tensor([i for i, row in enumerate(rows) for _ in row])
    n = torch.tensor([float(len(row)) for row in rows], dtype=F64)
    A = torch.tensor([a for row in rows for _, a in row], dtype=F64)
    mean_l = torch.zeros(len(rows), dtype=F64).index_add(0, own, live)[own] / n[own]
    mean_l = held["mean_l"](live.mean() if broken.get("mean_l") == "group" else mean_l)
    mean_A = A.mean() if broken.get("mean_A") == "tokens" else mean([row[0][1] for row in rows])
    c = (live - mean_l) * (A - mean_A)
    sigma = held["sigma"](c.std(unbiased=False))
    w = torch.exp(-(held["kernel"](c) ** 2) / (2 * sigma**2))
    w = w * len(w) / held["sum"](w.sum())
    share = torch.ones_like(A) if broken.get("share") == "token" else 1 / n[own]
    (gradient,) = torch.autograd.grad((share * A * w * torch.exp(live - live.detach())).sum(), live)
    return (gradient / (share * A)).tolist()


HELD = ("mean_l", "sigma", "kernel", "sum")
THROUGH = GOLDEN_NONZERO


def assert_through_sees(**broken):
    """In both golden groups the core has the right gradient, and the broken one is far from it in one at least."""
    weights, far = gaussian_through_weights(*THROUGH.args()), []
    for group in (7, -2):
        valid = THROUGH.mask & (THROUGH.group_ids == group)[:, None]
        rows = [
            [(THROUGH.logps[i, t].item(), THROUGH.advantages[i].item()) for t in range(4) if valid[i, t]]
            for i in range(5)
            if valid[i].any()
        ]
        assert distance(weights[valid].tolist(), through_loop(rows)) < 1e-12
        far.append(distance(weights[valid].tolist(), through_loop(rows, **broken)))
    assert max(far) > 0.01


def test_ingredient_through_the_kernel():
    assert_through_sees(kernel="held")


def test_ingredient_through_sigma():
    assert_through_sees(sigma="held")


def test_ingredient_through_the_normaliser():
    assert_through_sees(sum="held")


def test_ingredient_through_the_mean_of_logps():
    assert_through_sees(mean_l="held")


def test_ingredient_through_mean_of_logps_by_completions():
    assert_through_sees(mean_l="group")


def test_ingredient_through_mean_of_advantages_over_completions():
    assert_through_sees(mean_A="tokens")


def test_ingredient_through_the_losss_normaliser():
    assert_through_sees(share="token")


# --- of the covariance-neutral weights --------------------------------------------------------------------

# c = 4 -1 -1 -1 | 1 1 0 -1, mean 1/4
SKEWED = batch([[4.0, -1.0, -1.0, -1.0], [-1.0, -1.0, 0.0, 1.0]], [1.0, -1.0])
SKEWED_C = [4.0, -1.0, -1.0, -1.0, 1.0, 1.0, 0.0, -1.0]


def line_of(c, left, slope=None, height=None, target=-0.75):
    """Height (1 - slope (c - u)), u and the right slope those of the tokens that are left; may be below 0."""
    kept = [x for x, stays in zip(c, left, strict=True) if stays]
    u, v = mean(kept), RIGHT["sigma"](kept) ** 2
    slope = (u - target) / v if slope is None else slope
    height = len(c) / len(kept) if height is None else height
    return [height * (1 - slope * (x - u)) for x in c]


# kappa 4: the line of all eight tokens is below 0 at c = 4, that of the other seven nowhere else.
ALL, SEVEN = [True] * 8, [False, *[True] * 7]
NEUTRAL_4 = [max(0.0, w) for w in line_of(SKEWED_C, SEVEN)]


def assert_neutral_sees(broken, right=NEUTRAL_4, kappa=4.0):
    core = neutral_weights(*SKEWED.args(), kappa=kappa).flatten().tolist()
    assert distance(core, right) < 1e-12
    assert distance(core, broken) > 0.02


def test_ingredient_neutral_slope_has_the_right_sign():
    right = line_of(SKEWED_C, ALL, target=0.0)
    assert_neutral_sees([2 - w for w in right], right=right, kappa=1.0)  # the other sign of the slope


def test_ingredient_neutral_uses_kappa():
    assert_neutral_sees(line_of(SKEWED_C, ALL, target=0.0))


def test_ingredient_neutral_is_not_negative():
    assert min(line_of(SKEWED_C, ALL)) < -0.3
    assert_neutral_sees(line_of(SKEWED_C, ALL))


def test_ingredient_neutral_meets_its_target_after_clamping():
    assert_neutral_sees([max(0.0, w) for w in line_of(SKEWED_C, ALL)])


def test_ingredient_neutral_has_mean_one():
    assert_neutral_sees([max(0.0, w) for w in line_of(SKEWED_C, SEVEN, height=1.0)])


def test_ingredient_neutral_keeps_half_of_the_effective_sample_size():
    # kappa -10: target 11/4. The tokens of c = 4 1 1 0 would reach it, with a mean of w^2 of 3.4.
    bounded = line_of(SKEWED_C, ALL, slope=-1 / RIGHT["sigma"](SKEWED_C))
    exact = [max(0.0, w) for w in line_of(SKEWED_C, [x >= 0 for x in SKEWED_C], target=2.75)]
    assert mean([w * w for w in bounded]) == pytest.approx(2) and mean([w * w for w in exact]) > 3.3
    assert mean([w * x for w, x in zip(exact, SKEWED_C, strict=True)]) == pytest.approx(2.75)
    assert_neutral_sees(exact, right=bounded, kappa=-10.0)


# --- of the candidates ------------------------------------------------------------------------------------


def assert_candidate_sees(name, inputs, right, broken):
    core = get_weighting(name)(*inputs.args())[inputs.mask].tolist()
    assert distance(core, right) < 1e-12
    assert distance(core, broken) > 0.02


# c = 2.4 0 with A > 0, -0.8 0.8 1.6 with A < 0
PER_SIGN = GOLDEN.rows(GOLDEN.group_ids == 7)
PER_SIGN_C = ([2.4, 0.0], [-0.8, 0.8, 1.6])


def kernel(c, sigma):
    return [math.exp(-(x**2) / (2 * sigma**2)) for x in c]


PER_SIGN_RIGHT = [w for side in PER_SIGN_C for w in RIGHT["normalise"](kernel(side, RIGHT["sigma"](side)))]


def test_ingredient_per_sign_sigma_is_that_of_the_side():
    sigma = RIGHT["sigma"]([x for side in PER_SIGN_C for x in side])
    broken = [w for side in PER_SIGN_C for w in RIGHT["normalise"](kernel(side, sigma))]
    assert_candidate_sees("gaussian_per_sign", PER_SIGN, PER_SIGN_RIGHT, broken)


def test_ingredient_per_sign_mean_is_one_on_each_side():
    broken = [w / max(side) for side in (PER_SIGN_RIGHT[:2], PER_SIGN_RIGHT[2:]) for w in side]
    assert_candidate_sees("gaussian_per_sign", PER_SIGN, PER_SIGN_RIGHT, broken)


# SKEWED: the sum of c is 2; l is above its mean where c = 4, and where c = -1 at the end.
def test_ingredient_neutral_common_leaves_rare_tokens_alone():
    broken = [2 / 3 if x > 0 else 1.0 for x in SKEWED_C]
    assert_candidate_sees("neutral_common", SKEWED, [8 / 15] + [16 / 15] * 7, RIGHT["normalise"](broken))


def test_ingredient_neutral_common_damps_the_side_that_moves_the_entropy():
    risen = batch([[4.0, -1.0, -1.0, -1.0], [-1.0, -1.0, 0.0, 1.0]], [-1.0, 1.0])  # c as above, times -1
    broken = RIGHT["normalise"]([1.0] * 7 + [3.0])
    assert_candidate_sees("neutral_common", risen, [8 / 15] + [16 / 15] * 7, broken)


def test_ingredient_neutral_common_takes_the_covariance_to_zero():
    w = get_weighting("neutral_common")(*SKEWED.args()).flatten().tolist()
    assert math.fsum(x * y for x, y in zip(w, SKEWED_C, strict=True)) == pytest.approx(0.0, abs=1e-12)
    assert_candidate_sees("neutral_common", SKEWED, [8 / 15] + [16 / 15] * 7, [0.0] + [8 / 7] * 7)


def test_ingredient_neutral_common_keeps_half_of_the_effective_sample_size():
    # c = 1 1 1 | 9: three quarters of the tokens would have to give twelve, and have three
    inputs = batch([[-1.0] * 3, [-9.0] * 3], [1.0, -1.0], [[1, 1, 1], [1, 0, 0]])
    right = RIGHT["normalise"]([1 - 1 / (0.75 + math.sqrt(0.1875))] * 3 + [1.0])
    assert mean([w * w for w in right]) == pytest.approx(2)
    assert_candidate_sees("neutral_common", inputs, right, [0.0] * 3 + [4.0])


def test_ingredient_delight_has_the_sign_of_the_advantage():
    surprisals = [1.0, 3.0, 2.0, 4.0, 5.0]  # of the golden group, A = 1 1 | -1 -1 -1
    right = [1 / (1 + math.exp(-a * x)) for a, x in zip([1, 1, -1, -1, -1], surprisals, strict=True)]
    assert_candidate_sees("delight", PER_SIGN, right, [1 / (1 + math.exp(-x)) for x in surprisals])
