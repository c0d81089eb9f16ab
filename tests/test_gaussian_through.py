"""The kernel with the gradient through its weights: closed form against autograd, what it keeps, what it refuses."""

import random
from dataclasses import replace

import pytest
import reference
import reference_through
import torch
from core_cases import F64, NAN, SEEDS, Batch, batch, close

from covgrpo import gaussian_through_weights, gaussian_weights, get_weighting, token_covariance

NORMALISERS = ("completion", "token")
LOGPS = {
    "exponential": lambda rng: -rng.expovariate(1.0),
    "nearly certain, heavy tail": lambda rng: -(rng.paretovariate(0.9) - 1) * 0.01,
    "to -1000": lambda rng: -(10 ** rng.uniform(-5, 3)),
}
REWARDS = {
    "normal": lambda rng, size: [rng.gauss(0, 1) for _ in range(size)],
    "binary": lambda rng, size: [float(rng.random() < 0.5) for _ in range(size)],
    "one right": lambda rng, size: [1.0] + [0.0] * (size - 1),
    "one wrong": lambda rng, size: [0.0] + [1.0] * (size - 1),
    "all equal": lambda rng, size: [1.0] * size,
    "three levels": lambda rng, size: [float(rng.randrange(3)) for _ in range(size)],
}


def normalised(rewards):
    """(R - mean) / std, as the trainers have it."""
    mean = reference.mean(rewards)
    std = (sum((r - mean) ** 2 for r in rewards) / max(len(rewards) - 1, 1)) ** 0.5
    return [(r - mean) / (std + 1e-4) for r in rewards]


def rollouts(seed):
    """A ragged batch of 1 to 3 groups of 2 to 64 completions with normalised rewards, padded on either side."""
    rng = random.Random(seed)
    width = rng.randint(1, 9)
    draw = LOGPS[rng.choice(list(LOGPS))]
    logps, advantages, mask, ids = [], [], [], []
    for group in range(rng.randint(1, 3)):
        size = rng.choice([2, 3, 4, 8, 12, 12, 16, 64])
        advantages += normalised(REWARDS[rng.choice(list(REWARDS))](rng, size))
        for _ in range(size):
            length, left = rng.randint(1, width), rng.random() < 0.3
            valid = [t < length for t in range(width)]
            mask.append(valid[::-1] if left else valid)
            logps.append([draw(rng) if ok else NAN for ok in mask[-1]])
            ids.append(group)
    return batch(logps, advantages, mask, ids)


def determined(inputs):
    """Whether float64 fixes the result to 1e-10: sigma is far above the rounding of c, or plainly 0."""
    logps, advantages, mask, ids = inputs.lists()
    for cells in reference.group_cells(mask, ids).values():
        lp, adv = reference.gather(logps, advantages, cells)
        rows = [i for i, _ in cells]
        sigma = reference.group_sigma(reference_through.covariance(torch.tensor(lp, dtype=F64), adv, rows).tolist())
        tolerance = reference.sigma_tolerance(lp, adv)
        if not (reference_through.flat(adv, rows) or sigma <= tolerance / 8 or sigma > 1e6 * tolerance):
            return False
    return True


def largest_error(inputs, found, expected):
    """Largest difference in a group, as a fraction of its largest weight."""
    worst = 0.0
    for group in inputs.group_ids.unique():
        valid = inputs.mask & (inputs.group_ids == group)[:, None]
        worst = max(worst, ((found - expected)[valid].abs().max() / expected[valid].abs().max()).item())
    return worst


@pytest.mark.parametrize("part", range(10))
def test_the_closed_form_is_the_gradient_of_the_live_loss_on_1000_batches(part):
    worst, left_out = 0.0, 0
    for seed in range(100 * part, 100 * part + 100):
        inputs = rollouts(seed)
        if not determined(inputs):
            left_out += 1
            continue
        normaliser, padded = NORMALISERS[seed % 2], seed % 4 > 1
        found = gaussian_through_weights(*inputs.args(), normaliser=normaliser, padded_mean=padded)
        expected = reference_through.gaussian_through_weights(*inputs.lists(), normaliser, padded)
        worst = max(worst, largest_error(inputs, found, torch.tensor(expected, dtype=F64)))
    assert left_out <= 3
    assert worst < 1e-9


def test_the_codes_floor_under_sigma_is_not_seen():
    """The authors add 1e-8 to sigma, which guards a division; where sigma is 0 the weights here are 1."""
    inputs = rollouts(3)
    expected = reference_through.gaussian_through_weights(*inputs.lists(), sigma_floor=1e-8)
    assert largest_error(inputs, gaussian_through_weights(*inputs.args()), torch.tensor(expected, dtype=F64)) < 1e-5


@SEEDS
@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_a_completions_push_is_that_of_constant_weights(seed, normaliser):
    """The gradient through the kernel moves push from token to token of a completion, and nowhere else."""
    inputs = rollouts(seed + 17)
    found = gaussian_through_weights(*inputs.args(), normaliser=normaliser)
    logps, advantages, mask, ids = inputs.lists()
    for cells in reference.group_cells(mask, ids).values():
        lp, adv = reference.gather(logps, advantages, cells)
        rows = [i for i, _ in cells]
        constant = reference_through.live_weights(torch.tensor(lp, dtype=F64), adv, rows)
        mine = torch.stack([found[i, t] for i, t in cells])
        for row in set(rows):
            own = torch.tensor([i == row for i in rows])
            if adv[rows.index(row)]:  # an advantage of 0 weighs 1
                close(mine[own].sum(), constant[own].sum(), atol=1e-9)
        if all(adv):
            assert mine.mean().item() == pytest.approx(1.0, abs=1e-10)


def heavy_tailed(right, seed):
    """12 completions of 200 tokens, nearly certain but for 3 in 100; the first ``right`` completions are right."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.empty(2, 12, 200, dtype=F64).exponential_(generator=generator)
    rare = torch.rand(12, 200, generator=generator) < 0.03
    logps = -torch.where(rare, 1 + 2 * draw[0], 0.02 * draw[1])
    advantages = torch.tensor(normalised([1.0] * right + [0.0] * (12 - right)), dtype=F64)
    return Batch(logps, advantages, torch.ones(12, 200, dtype=torch.bool), torch.zeros(12).long())


@pytest.mark.parametrize("right", [3, 6, 9])
def test_rare_tokens_keep_half_of_their_push(right):
    """Rare tokens (log-prob below -1) of the majority: the constant kernel takes most of their push, this one half."""
    kept = {"constant": [], "through": []}
    for seed in range(20):
        inputs = heavy_tailed(right, seed)
        rare = inputs.logps < -1
        # the majority's completions
        rare &= (torch.arange(12) < right)[:, None] if right >= 6 else (torch.arange(12) >= right)[:, None]
        kept["constant"].append(gaussian_weights(*inputs.args())[rare].mean())
        kept["through"].append(gaussian_through_weights(*inputs.args())[rare].mean())
    constant, through = (torch.stack(values).mean().item() for values in kept.values())
    assert constant < 0.3 and through > 0.45


def test_weights_may_be_negative_and_keep_the_sign_elsewhere():
    weights = gaussian_through_weights(*heavy_tailed(6, 0).args())
    assert weights.min() < 0 < weights.max()
    assert (weights > 0).double().mean() > 0.8


def test_the_covariance_is_centred_by_completions():
    """A number added to one completion's log-probs changes nothing here, and something in the kernel as written."""
    inputs = heavy_tailed(6, 0)
    shifted = replace(inputs, logps=inputs.logps - torch.arange(len(inputs.logps), dtype=F64)[:, None] / 7)
    close(gaussian_through_weights(*shifted.args()), gaussian_through_weights(*inputs.args()))
    assert (gaussian_weights(*shifted.args()) - gaussian_weights(*inputs.args())).abs().max() > 0.1


def test_padded_mean_depends_on_the_group_alone():
    """G max_i(n_i) / N: of the group's own longest completion, not of what it is padded to."""
    inputs = rollouts(8)
    weights = gaussian_through_weights(*inputs.args(), padded_mean=True)
    plain = gaussian_through_weights(*inputs.args())
    wide = torch.nn.functional.pad(inputs.logps, (3, 5)), torch.nn.functional.pad(inputs.mask, (3, 5))
    padded = gaussian_through_weights(wide[0], inputs.advantages, wide[1], inputs.group_ids, padded_mean=True)
    close(padded[:, 3:-5], weights)
    for group in inputs.group_ids.unique():
        n = inputs.mask[inputs.group_ids == group].sum(1)
        factor = len(n) * n.max().item() / n.sum().item()
        close(weights[inputs.group_ids == group], factor * plain[inputs.group_ids == group])
        assert factor > 1


# --- advantages of 0 ------------------------------------------------------------------------------------------

ZEROS = [[-1.0, -2.0, -0.5], [-0.1, -3.0, -1.0], [-0.7, -0.2, -4.0]]


def live_gradient(advantages):
    """Of the code's objective, by completion and token."""
    live = torch.tensor(ZEROS, dtype=F64).flatten().requires_grad_()
    rows = [row for row in range(3) for _ in range(3)]
    objective = reference_through.group_objective(live, [advantages[row] for row in rows], rows, "token")
    return torch.autograd.grad(objective, live)[0].view(3, 3)


@pytest.mark.parametrize("noise", [0.0, 3e-8])
def test_an_advantage_of_0_in_a_group_of_mean_0_weighs_1(noise):
    """Rewards 0, 1, 2: the code's gradient is 0 in the middle, also where float32 leaves 3e-8 of it."""
    inputs = batch(ZEROS, [-1.0, noise, 1.0])
    weights = gaussian_through_weights(*inputs.args())
    close(weights[1], torch.ones(3, dtype=F64))
    live = inputs.logps.flatten().requires_grad_()
    objective = reference_through.group_objective(
        live, [-1.0] * 3 + [0.0] * 3 + [1.0] * 3, [0] * 3 + [1] * 3 + [2] * 3, "token"
    )
    (gradient,) = torch.autograd.grad(objective, live)
    assert gradient[3:6].abs().max() < 1e-15


def test_an_advantage_of_0_elsewhere_is_refused():
    """Unnormalised rewards: the code's gradient is not 0 where A is, so no weight gives it."""
    inputs = batch(ZEROS, [1.0, 0.0, 0.5], group_ids=[4, 4, 4])
    with pytest.raises(ValueError, match=r"advantages\[1\] is 0 and the mean advantage of its group is 0\.5"):
        gaussian_through_weights(*inputs.args())
    live = inputs.logps.flatten().requires_grad_()
    objective = reference_through.group_objective(
        live, [1.0] * 3 + [0.0] * 3 + [0.5] * 3, [0] * 3 + [1] * 3 + [2] * 3, "token"
    )
    (gradient,) = torch.autograd.grad(objective, live)
    assert gradient[3:6].abs().max() > 1e-2


def test_equal_advantages_weigh_1():
    for advantages in ([0.0, 0.0, 0.0], [0.5, 0.5, 0.5]):
        close(gaussian_through_weights(*batch(ZEROS, advantages).args()), torch.ones(3, 3, dtype=F64))


def test_completions_of_one_token_weigh_1():
    close(gaussian_through_weights(*batch([[-1.0], [-2.0]], [1.0, -1.0]).args()), torch.ones(2, 1, dtype=F64))


# --- parameters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "named"),
    [({"normaliser": "batch"}, "normaliser.*'batch'"), ({"padded_mean": "yes"}, "padded_mean.*'yes'")],
)
def test_wrong_parameters_are_named(parameters, named):
    with pytest.raises(ValueError, match=named):
        get_weighting("gaussian_through", **parameters)
    with pytest.raises(ValueError, match=r"normaliser.*'batch'"):
        gaussian_through_weights(*rollouts(0).args(), normaliser="batch")


def test_the_registered_scheme_is_the_function():
    inputs = rollouts(1)
    for normaliser in (None, *NORMALISERS):
        for padded in (False, True):
            found = get_weighting("gaussian_through", normaliser=normaliser, padded_mean=padded)(*inputs.args())
            expected = gaussian_through_weights(
                *inputs.args(), normaliser=normaliser or "completion", padded_mean=padded
            )
            close(found, expected, rtol=0, atol=0)


def test_covariance_as_reported_stays_that_of_the_paper():
    """cov/* of the metrics is Cov(l, A) over the group's tokens, whatever the scheme takes as its c."""
    inputs = rollouts(2)
    logps, advantages, mask, ids = inputs.lists()
    close(
        token_covariance(*inputs.args()),
        torch.tensor(reference.token_covariance(logps, advantages, mask, ids), dtype=F64),
    )
