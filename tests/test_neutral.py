"""The covariance-neutral weights: quadratic programmes, KKT conditions, worked examples, and what they promise."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from core_cases import F64, GOLDEN, SEEDS, SHAPES, batch, close, sample_batch
from core_cases import generate as generate_hard
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from neutral_cases import bounded_programme, generate, groups_of, standardised
from scheme_cases import neutral_well_posed, valid_groups

from covgrpo import gaussian_weights, get_weighting, neutral_weights, token_covariance
from covgrpo.core.weighting.neutral import Neutral, _Columns, _solve

# --- 1,000 generated batches ------------------------------------------------------------------------------

BATCHES = range(1000)


def solved_groups():
    """Of each group in 1,000 batches: w, z = (c - mean(c)) / std(c), what mean(w z) is to be, and whether it is."""
    for seed in BATCHES:
        inputs, kappa = generate(seed)
        fit = Neutral(kappa).fit(*inputs.args())
        held = dict(zip(inputs.group_ids.unique().tolist(), fit.held.tolist(), strict=True))
        for group, valid, lp, adv in groups_of(inputs):
            w, of_c = fit.weights[valid].numpy(), standardised(lp, adv)
            if of_c is None:
                yield w, None, 0.0, held[group]
            else:
                z, mean_z = of_c
                yield w, z, -kappa * mean_z, held[group]


def kind(w, z, held):
    if z is None:
        return "no spread"
    if not held and (w**2).mean() < 2 - 1e-9:
        return "at the end"
    return ("held" if held else "bounded") + (", clamped" if (w == 0).any() else "")


def test_weights_equal_an_independent_quadratic_programme():
    seen = Counter()
    for w, z, target, held in solved_groups():
        seen[kind(w, z, held)] += 1
        if z is None:
            assert (w == 1).all()
            continue
        expected, reached = bounded_programme(z, target)
        assert held == (reached == target)
        # the programme bisects for the bound: it has it to 1e-13 of the target
        tolerance = 1e-11 if held else 1e-7
        assert abs(w - expected).max() <= tolerance * max(1.0, w.max())
        assert abs((w * z).mean() - reached) <= 1e-11 * max(1.0, abs(reached))
    cases = ("no spread", "held", "held, clamped", "bounded", "bounded, clamped")
    assert min(seen[case] for case in cases) > 50 and seen["at the end"] > 5, seen


def test_kkt_conditions():
    """Of the convex programme: a point that meets them is its solution. All in units of the largest weight.

    held:     minimise sum (w - 1)^2 subject to mean(w) = 1, mean(w z) = target, w >= 0
    bounded:  move mean(w z) towards the target as far as mean(w) = 1, w >= 0, mean(w^2) <= 2 allow; the last need not
              bind where half of the tokens or more share the extreme z
    Stationary: w = a - b z where w > 0; where w = 0 the multiplier of w >= 0 is -(a - b z), at least 0.
    """
    for w, z, target, held in solved_groups():
        if z is None:
            continue
        scale, reached, square = max(1.0, w.max()), (w * z).mean(), (w**2).mean()
        assert (w >= 0).all() and abs(w.mean() - 1) <= 1e-9
        assert square <= 2 + 1e-9
        if target == 0:
            assert held and (w == 1).all()
            continue
        if held:
            assert abs(reached - target) <= 1e-9 * max(1.0, abs(target))
        else:
            at_the_end = np.ptp(z[w > 0]) <= 1e-9
            assert (at_the_end or abs(square - 2) <= 1e-9) and abs(reached) < abs(target)
        above = w > 0
        b = -math.copysign(1.0, target) * np.inf
        if np.ptp(z[above]) > 1e-9:
            b, a = np.polyfit(z[above], w[above], 1) * (-1, 1)
            assert abs(a - b * z[above] - w[above]).max() <= 1e-9 * scale
            assert (a - b * z[~above] <= 1e-9 * scale).all()
        else:  # the weight is on equal tokens: any b of the right sign that is large enough
            assert ((z[~above] - z[above].mean()) * b > 0).all()
        assert reached * target > 0 and b * target < 0


# --- worked examples --------------------------------------------------------------------------------------


def batch_of(c):
    """Two completions with A = 1 and -1, mean(l) = mean(A) = 0, and these covariances."""
    half = len(c) // 2
    inputs = batch([c[:half], [-x for x in c[half:]]], [1.0, -1.0])
    close(token_covariance(*inputs.args()).flatten(), torch.tensor(c, dtype=F64))
    return inputs


# mean(c) = 1/4, var(c) = 43/16
SKEWED = batch_of([4.0, -1.0, -1.0, -1.0, 1.0, 1.0, 0.0, -1.0])


def of_skewed(kappa):
    fit = Neutral(kappa).fit(*SKEWED.args())
    return fit, fit.weights.flatten().tolist()


def test_unclamped_weights_are_a_line_in_c():
    fit, w = of_skewed(1.0)
    c = token_covariance(*SKEWED.args()).flatten()
    assert w == pytest.approx((1 - (c - 0.25) / 4 * 16 / 43).tolist(), rel=1e-13)
    assert fit.held.item() and fit.reached.item() == pytest.approx(0, abs=1e-15)
    assert fit.mean.item() == 0.25 and fit.target.item() == 0


def test_clamped_weights():
    # Target -3/4. The line of all tokens is below 0 at c = 4. Of the other 7: u = -2/7, v = 38/49, s = 91/152.
    fit, w = of_skewed(4.0)
    low, middle, high = 31 / 19, 18 / 19, 5 / 19
    assert w == pytest.approx([0, low, low, low, high, high, middle, low], rel=1e-13, abs=1e-13)
    assert fit.held.item() and fit.reached.item() == pytest.approx(-0.75, rel=1e-13)


def test_target_beyond_the_end_is_approached_to_half_the_effective_sample_size():
    # Target -9/4, min(c) = -1 on half of the tokens: 2 on those is an effective sample of one half.
    fit, w = of_skewed(10.0)
    assert w == pytest.approx([0, 2, 2, 2, 0, 0, 0, 2], rel=1e-12, abs=1e-12)
    assert not fit.held.item() and fit.reached.item() == pytest.approx(-1, rel=1e-12)
    assert fit.target.item() == -2.25


def test_target_within_the_ends_is_approached_too():
    # A mean of 4 - 1/8 would put nearly all weight on one token. The line with mean(w^2) = 2 is above 0 everywhere.
    fit, w = of_skewed(-14.5)
    c = token_covariance(*SKEWED.args()).flatten()
    assert fit.target.item() == 3.875
    assert w == pytest.approx((1 + (c - 0.25) / math.sqrt(43 / 16)).tolist(), rel=1e-13)
    assert not fit.held.item() and fit.reached.item() == pytest.approx(0.25 + math.sqrt(43 / 16), rel=1e-13)


# mean(c) = 1/2; six of eight tokens share the smallest c
TIES = batch_of([-1.0, -1.0, -1.0, 5.0, -1.0, -1.0, -1.0, 5.0])


@pytest.mark.parametrize(("kappa", "held"), [(3.0, True), (3.5, False), (1e9, False)])
def test_the_end_itself_is_reached_where_most_tokens_share_it(kappa, held):
    fit = Neutral(kappa).fit(*TIES.args())
    close(fit.weights.flatten(), torch.tensor([4, 4, 4, 0, 4, 4, 4, 0], dtype=F64) / 3)
    assert fit.held.item() == held and fit.reached.item() == pytest.approx(-1, rel=1e-13)


def test_what_is_left_after_clamping_may_differ_by_rounding_error_only():
    # A unit in the last place of l is 2^-39 here: to tell the six tokens of c = -1 apart would be to weigh noise.
    logps = TIES.logps - 8192
    logps[0, :2] -= 2.0**-39
    near = replace(TIES, logps=logps)
    assert len(token_covariance(*near.args()).flatten().unique()) > 2
    weights = neutral_weights(*near.args(), kappa=3.5).flatten()
    close(weights, torch.tensor([4, 4, 4, 0, 4, 4, 4, 0], dtype=F64) / 3, rtol=1e-9, atol=1e-9)


def test_kappa_0_is_no_weighting():
    weights = neutral_weights(*GOLDEN.args(), kappa=0.0)
    assert torch.equal(weights, GOLDEN.mask.to(F64))


def test_covariances_whose_mean_is_0_give_ones():
    inputs = batch_of([-3.0, 3.0, 1.0, -1.0])
    inputs = replace(inputs, logps=inputs.logps + 1)
    assert torch.equal(neutral_weights(*inputs.args(), kappa=5.0), torch.ones(2, 2, dtype=F64))


# --- what they promise, on hard batches -------------------------------------------------------------------

HARD = SHAPES.map(lambda shape: replace(shape, logps_dtype=F64, advantages_dtype=F64))
KAPPAS = st.one_of(st.sampled_from([0.0, 1.0, 2.0, -1.0]), st.floats(-8, 8), st.floats(-1e6, 1e6))
hard = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def by_token(inputs):
    """The advantages (B, T)."""
    return inputs.advantages.reshape(len(inputs.mask), -1).expand(inputs.mask.shape)


def lists_of(inputs):
    """(lp, adv) of each group."""
    advantages = by_token(inputs)
    for valid in valid_groups(inputs):
        yield inputs.logps[valid].tolist(), advantages[valid].tolist()


def assume_determined(inputs, kappa):
    """No group in which rounding decides what the weights are."""
    assume(all(neutral_well_posed(lp, adv, kappa) for lp, adv in lists_of(inputs)))


@hard
@given(HARD, KAPPAS)
def test_mean_one_not_negative_and_the_target_reached_or_named(shape, kappa):
    inputs = generate_hard(shape)
    fit = Neutral(kappa).fit(*inputs.args())
    c = token_covariance(*inputs.args())
    assert (fit.weights >= 0).all() and not fit.weights[~inputs.mask].any()
    reached = {int(g): k for k, g in enumerate(inputs.group_ids.unique())}
    for valid in valid_groups(inputs):
        k = reached[int(inputs.group_ids[valid.any(1)][0])]
        w, size = fit.weights[valid], c[valid].abs().max().item()
        assert w.mean().item() == pytest.approx(1, abs=1e-9)
        assert w.square().mean().item() <= 2 + 1e-6
        assert (w * c[valid]).mean().item() == pytest.approx(fit.reached[k].item(), abs=1e-8 * size)
        assert c[valid].mean().item() == pytest.approx(fit.mean[k].item(), abs=1e-9 * size)
        assert fit.target[k].item() == pytest.approx((1 - kappa) * fit.mean[k].item(), rel=1e-12)
        if fit.held[k]:
            assert fit.reached[k].item() == pytest.approx(fit.target[k].item(), abs=1e-9 * size)
        elif (w != 1).any():  # as near as half of the tokens' worth allows, or all on the extreme ones
            end = c[valid].min() if fit.target[k] < fit.mean[k] else c[valid].max()
            at_the_end = abs(fit.reached[k].item() - end.item()) <= 1e-9 * size
            assert at_the_end or w.square().mean().item() == pytest.approx(2, abs=1e-6)


@hard
@given(HARD, KAPPAS, st.integers(0, 2**32), st.sampled_from([-1.0, 2.0**-7, -3.7, 1e3]))
def test_order_padding_split_and_scale_change_nothing(shape, kappa, seed, scale):
    inputs = generate_hard(replace(shape, advantages=shape.advantages.replace("noise", "normal")))
    assume_determined(inputs, kappa)
    weights = neutral_weights(*inputs.args(), kappa=kappa)

    def same(other, expected):
        close(neutral_weights(*other.args(), kappa=kappa), expected, rtol=1e-6, atol=1e-7)

    order = torch.randperm(len(inputs.mask), generator=torch.Generator().manual_seed(seed))
    same(inputs.rows(order), weights[order])
    same(replace(inputs, advantages=scale * inputs.advantages), weights)
    pad = torch.full((len(inputs.mask), 2), math.nan, dtype=F64)
    padded = replace(
        inputs,
        logps=torch.cat([pad, inputs.logps], 1),
        advantages=torch.cat([pad, by_token(inputs)], 1),
        mask=torch.cat([torch.zeros_like(pad).bool(), inputs.mask], 1),
    )
    same(padded, torch.cat([torch.zeros_like(pad), weights], 1))
    for group in inputs.group_ids.unique():
        rows = inputs.group_ids == group
        same(replace(inputs.rows(rows), group_ids=None), weights[rows])


@SEEDS
def test_weights_and_reached_covariance_are_continuous_and_monotone_in_kappa(seed):
    inputs = replace(sample_batch(seed), group_ids=None)
    c = token_covariance(*inputs.args())[inputs.mask]
    shifts = torch.linspace(-2, 2, 801, dtype=F64)  # kappa mean(c) / std(c)
    fits = [Neutral((x * c.std() / c.mean()).item()).fit(*inputs.args()) for x in shifts]
    held = [fit.held.item() for fit in fits]
    assert held[400] and not held[0] and not held[-1]
    assert (torch.stack([fit.reached[0] for fit in fits]).diff() <= 1e-12).all()
    steps = torch.stack([fit.weights for fit in fits]).diff(dim=0).abs().amax((1, 2))
    assert steps.max() < 0.1


# --- the scheme -------------------------------------------------------------------------------------------


def test_a_controller_makes_a_copy_with_another_kappa():
    scheme = get_weighting("neutral")
    copy = replace(scheme, kappa=-2.5)
    assert (scheme.kappa, copy.kappa) == (1.0, -2.5) and isinstance(copy, Neutral)
    inputs = sample_batch(0)
    close(scheme(*inputs.args()), neutral_weights(*inputs.args()), rtol=0, atol=0)
    close(copy(*inputs.args()), neutral_weights(*inputs.args(), kappa=-2.5), rtol=0, atol=0)
    close(copy.fit(*inputs.args()).weights, copy(*inputs.args()), rtol=0, atol=0)
    assert (copy(*inputs.args()) - scheme(*inputs.args())).abs().max() > 0.1


@pytest.mark.parametrize("kappa", [math.nan, math.inf, -math.inf])
def test_kappa_that_is_not_finite_is_named(kappa):
    for call in (lambda: neutral_weights(*GOLDEN.args(), kappa=kappa), lambda: replace(Neutral(), kappa=kappa)):
        with pytest.raises(ValueError, match=rf"neutral\b.*\bkappa\b.*{kappa}"):
            call()


def test_a_kappa_of_a_wrong_type_is_a_value_error():
    with pytest.raises(ValueError, match="neutral"):
        get_weighting("neutral", kappa="1")


@SEEDS
def test_fit_names_the_groups_in_the_order_of_their_ids(seed):
    inputs = sample_batch(seed)
    whole = Neutral(2.0).fit(*inputs.args())
    for k, group in enumerate(inputs.group_ids.unique()):  # ascending
        alone = Neutral(2.0).fit(*inputs.rows(inputs.group_ids == group).args())
        for name in ("mean", "target", "reached", "held"):
            close(getattr(whole, name)[k], getattr(alone, name)[0])


def test_groups_without_spread_or_tokens_name_what_is_reached():
    constant = batch([[-1.0], [-4.0], [-1.0]], [1.0, -0.5, 3.0], [[1], [1], [0]], [5, 5, 9])  # c = 1.125 twice
    fit = Neutral().fit(*constant.args())
    assert fit.held.tolist() == [False, True]
    assert fit.reached.tolist() == fit.mean.tolist() == [1.125, 0.0]


def test_covariance_with_the_weighted_advantages_is_what_is_held_where_their_mean_is_0():
    # Cov(l, w A) = mean(w c) + mean(A) Cov(l, w)
    for seed in range(5):
        inputs = replace(sample_batch(seed), group_ids=None)
        lp, w = inputs.logps[inputs.mask], neutral_weights(*inputs.args())[inputs.mask]
        for centred in (True, False):
            adv = by_token(inputs)[inputs.mask]
            adv = adv - adv.mean() if centred else adv
            weighted = ((lp - lp.mean()) * (w * adv - (w * adv).mean())).mean()
            rest = adv.mean() * ((lp - lp.mean()) * (w - 1)).mean()
            close(weighted - rest, torch.tensor(0.0, dtype=F64), atol=1e-12)
            assert (abs(rest) < 1e-12) == centred


@pytest.mark.parametrize("kappa", [1.0, 4.0])
def test_half_precision_inputs_and_default_dtype(kappa):
    inputs = sample_batch(3).to(torch.bfloat16)
    expected = neutral_weights(*inputs.to(F64).args(), kappa=kappa)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            weights = neutral_weights(*inputs.args(), kappa=kappa)
    finally:
        torch.set_default_dtype(before)
    assert weights.dtype == torch.float32
    close(weights.to(F64), expected, rtol=1e-6, atol=1e-6)


def test_fewer_tokens_are_touched_than_by_the_kernel():
    # what the method is for: c with a heavy tail whose mean is a few hundredths of its standard deviation
    rng = torch.Generator().manual_seed(0)
    amplitude = torch.where(torch.rand(48, 50, generator=rng, dtype=F64) < 0.75, 0.02, 1.5)
    right = torch.arange(48) % 2 == 0
    logps = amplitude * torch.rand(48, 50, generator=rng, dtype=F64).log() * (1 - 0.2 * right[:, None])
    inputs = batch(logps.tolist(), (2.0 * right - 1).tolist())
    fit, kernel = Neutral().fit(*inputs.args()), gaussian_weights(*inputs.args())
    c = token_covariance(*inputs.args())
    assert 0.01 < c.mean() / c.std() < 0.2 and fit.held.item()
    assert ((fit.weights - 1).abs() > 0.1).double().mean() < 0.2 < ((kernel - 1).abs() > 0.1).double().mean()


# --- work -------------------------------------------------------------------------------------------------


def passes(monkeypatch, c, kappa):
    count = Counter()
    moments = _Columns.moments

    def counted(columns):
        count["passes"] += 1
        count["tokens"] += len(columns.c)
        return moments(columns)

    with monkeypatch.context() as patch:
        patch.setattr(_Columns, "moments", counted)
        _solve(c, torch.zeros(len(c), dtype=torch.long), torch.zeros(1, dtype=F64), kappa)
    return count


@pytest.mark.parametrize("kappa", [0.1, 1.0, 2.0, 8.0, -1.0, -8.0, 1e6])
def test_passes_grow_with_the_logarithm_of_the_range_not_with_the_tokens(monkeypatch, kappa):
    rng = torch.Generator().manual_seed(0)
    normal, tail = torch.randn(2, 100_000, generator=rng, dtype=F64)
    count = passes(monkeypatch, normal / tail, kappa)  # Cauchy
    assert count["passes"] <= 8 and count["tokens"] <= 800_000
    for sign in (1, -1):  # 4,000 tokens from 2^-275 to 2^275: one a pass would be 4,000 passes
        count = passes(monkeypatch, sign * 1.1 ** torch.arange(-2000, 2000, dtype=F64), kappa)
        assert count["passes"] <= 100
