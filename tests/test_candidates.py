"""The weightings that are to lose less diversity: what is claimed for each in docs/methods.md."""

import math

import pytest
import reference_candidates
import torch
from core_cases import F64, SEEDS, batch, close, sample_batch
from scheme_cases import valid_groups

from covgrpo import gaussian_weights, get_weighting, token_covariance

PER_SIGN, COMMON = get_weighting("gaussian_per_sign"), get_weighting("neutral_common")
ONE_SIDED = get_weighting("gaussian_per_sign", one_sided=True)
DISTANCES = (-2.0, -1.0, 0.0, 1.0, 2.0)


def outcomes(right, of=8):
    """A group of which ``right`` of 8 completions are right; on both sides l spreads alike, at DISTANCES from -3."""
    q = right / of
    advantages = [math.sqrt((1 - q) / q)] * right + [-math.sqrt(q / (1 - q))] * (of - right)
    return batch([[-3.0 + z for z in DISTANCES]] * of, advantages)


@pytest.mark.parametrize("right", range(1, 8))
def test_per_sign_weights_do_not_know_which_outcome_is_rare(right):
    kernel = [math.exp(-(z**2) / (2 * 2)) for z in DISTANCES]  # the variance of DISTANCES is 2
    expected = torch.tensor([[5 * w / math.fsum(kernel) for w in kernel]] * 8, dtype=F64)
    close(PER_SIGN(*outcomes(right).args()), expected)


def test_the_kernel_of_the_whole_group_does_and_equals_the_other_at_one_half():
    close(PER_SIGN(*outcomes(4).args()), gaussian_weights(*outcomes(4).args()))
    weights = gaussian_weights(*outcomes(1).args())
    assert weights[0, 0] < 0.1 < 0.9 < weights[7, 0]  # two standard deviations off: right, wrong


@SEEDS
@pytest.mark.parametrize("scheme", [PER_SIGN, ONE_SIDED], ids=["both sides", "one side"])
def test_per_sign_weights_have_mean_one_on_each_sign(seed, scheme):
    inputs = sample_batch(seed)
    weights, positive = scheme(*inputs.args()), (inputs.advantages > 0)[:, None]
    for valid in valid_groups(inputs):
        for side in (valid & positive, valid & ~positive):
            assert not side.any() or weights[side].mean().item() == pytest.approx(1.0, abs=1e-12)


@SEEDS
def test_one_sided_per_sign_weights_spare_tokens_that_raise_entropy(seed):
    inputs = sample_batch(seed, sizes=(8, 8))
    weights, c = ONE_SIDED(*inputs.args()), token_covariance(*inputs.args())
    slow = reference_candidates.gaussian_per_sign_weights(*inputs.lists(), one_sided=True)
    close(weights, torch.tensor(slow, dtype=F64))
    positive = (inputs.advantages > 0)[:, None]
    for valid in valid_groups(inputs):
        for side in (valid & positive, valid & ~positive):
            spared = weights[side & (c <= 0)]
            close(spared, torch.full_like(spared, weights[side].max().item()))


def test_tokens_without_advantage_are_on_no_side():
    inputs = batch([[-1.0, -2.0], [-3.0, -5.0], [-1.0, -4.0]], [1.0, -1.0, 1e-9])
    weights = PER_SIGN(*inputs.args())
    close(weights[2], [1.0, 1.0])
    for row in (0, 1):
        assert weights[row].mean().item() == pytest.approx(1.0) and (weights[row] - 1).abs().max() > 0.1


def common(inputs, valid):
    """Tokens that are likelier than their group's mean, (B, T) bool."""
    return valid & (inputs.logps > inputs.logps[valid].mean())


@SEEDS
def test_neutral_by_common_tokens_takes_the_covariance_to_zero_or_as_near_as_it_may(seed):
    inputs = sample_batch(seed, sizes=(5, 3, 8, 16))
    weights, c = COMMON(*inputs.args()), token_covariance(*inputs.args())
    for valid in valid_groups(inputs):
        w, own = weights[valid], c[valid]
        before, after, ess = own.mean(), (w * own).mean(), w.sum() ** 2 / (len(w) * (w * w).sum())
        assert ess >= 0.5 - 1e-12 and w.min() >= 0
        bound = w.min() < 1e-12 or ess < 0.5 + 1e-9
        assert abs(after) < 1e-12 or (bound and after / before >= 0)


@SEEDS
def test_neutral_by_common_tokens_damps_one_side_of_them_alike_and_no_other(seed):
    inputs = sample_batch(seed, sizes=(5, 3, 8, 16))
    weights, c = COMMON(*inputs.args()), token_covariance(*inputs.args())
    for valid in valid_groups(inputs):
        side = common(inputs, valid) & (c * c[valid].sum() > 0)
        spared = weights[valid & ~side]
        close(spared, torch.full_like(spared, spared.max().item()))
        if side.any():
            close(weights[side], torch.full_like(weights[side], weights[side].min().item()))
            assert weights[side].max() < spared.min()


def test_the_push_on_a_rare_mistake_and_on_a_rare_right_token_is_kept():
    # two right and two wrong completions; the last token of the second is rare and right, of the fourth a rare mistake
    inputs = batch([[-0.1, -0.2, -0.1], [-0.1, -0.1, -3.0], [-0.3, -0.1, -0.1], [-0.1, -0.2, -4.0]], [1, 1, -1, -1])
    c = token_covariance(*inputs.args())
    assert c.sum() > 0 and c[3, 2] == c.max() and c[1, 2] == c.min()
    weights = COMMON(*inputs.args())
    assert weights[3, 2] == weights[1, 2] == weights.max() and weights.max() > 1
    assert (weights[:2, :2] < 1).all() and (weights[2:, :2] == weights.max()).all()
    assert gaussian_weights(*inputs.args())[3, 2] < 0.1
    assert get_weighting("neutral")(*inputs.args())[3, 2] < 0.9


@pytest.mark.parametrize("eta", [1.0, 0.25])
def test_delight_opens_on_rare_successes_and_closes_on_rare_failures(eta):
    inputs = batch([[-0.0, -0.5, -5.0]] * 2, [1.0, -2.0])
    weights = get_weighting("delight", eta=eta)(*inputs.args())
    close(weights[:, 0], [0.5, 0.5])
    assert 0.5 < weights[0, 1] < weights[0, 2] < 1 and 0.5 > weights[1, 1] > weights[1, 2] > 0
    assert weights[0, 2].item() == pytest.approx(1 / (1 + math.exp(-5 / eta)), rel=1e-12)


def test_positive_only_keeps_completions_above_the_mean():
    weights = get_weighting("positive_only")(*batch([[-1.0, -2.0]] * 3, [0.5, 0.0, -0.5]).args())
    assert torch.equal(weights, torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], dtype=F64))


def test_expected_update_where_the_reward_does_not_depend_on_the_token():
    """Tokens as often as their probability, on both sides alike: GRPO's update of the logits is 0, and so is the
    per-sign kernel's; the other moves probability from common to rare tokens."""
    counts = [10, 4, 2]  # of 16, so that each is drawn as often as it is likely
    p = torch.tensor(counts, dtype=F64) / 16
    drawn = [token for token, count in enumerate(counts) for _ in range(count)]
    inputs = batch([[math.log(p[token]) for token in drawn]] * 2, [1.0, -1.0])
    one_hot = torch.eye(3, dtype=F64)[drawn]  # d log p / d logits = one_hot - p

    def update(weights):
        return ((weights * inputs.advantages[:, None])[..., None] * (one_hot - p)).sum(dim=(0, 1))

    close(update(torch.ones(2, 16, dtype=F64)), torch.zeros(3))
    close(update(PER_SIGN(*inputs.args())), torch.zeros(3))
    c = token_covariance(*inputs.args())
    assert abs(c.sum()) < 1e-12  # so nothing is damped
    close(update(COMMON(*inputs.args())), torch.zeros(3))
    damped = torch.ones(2, 16, dtype=F64)
    damped[0, :10] = 0.5  # a share of the common tokens of the right completion
    moved = update(damped)
    assert moved[0] < 0 < moved[1] and moved[2] > 0
