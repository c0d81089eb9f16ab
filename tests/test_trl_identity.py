"""The trainer against stock TRL: to the last bit where nothing is weighted, to rounding where the reference weighs."""

import pytest
import torch
from trl_runs import live_weights, logs, ours, reference_weighted, relative, scripted_rollouts, stock, weights

pytestmark = pytest.mark.slow

SETTINGS = [
    pytest.param({}, marks=pytest.mark.quick),
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    {"per_device_train_batch_size": 8, "steps_per_generation": 4, "gradient_accumulation_steps": 2},
    {"num_iterations": 2, "learning_rate": 1e-2},
    {"loss_type": "grpo", "beta": 0.1},
]

# The loss in the code of the paper's first author; TRL by now multiplies the KL term by the ratio as well.
AUTHORS = {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}


@pytest.mark.parametrize("options", SETTINGS)
def test_none_without_fast_path_is_stock_trl_to_the_last_bit(tmp_path, options):
    theirs = stock(tmp_path / "a", **options)
    theirs.train()
    mine = ours(tmp_path / "b", weighting="none", fast_path=False, **options)
    mine.train()
    assert torch.equal(weights(mine), weights(theirs))
    assert len(mine.gradients) == len(theirs.gradients) == 5
    assert all(torch.equal(a, b) for a, b in zip(mine.gradients, theirs.gradients, strict=True))
    names = ("loss", "grad_norm", "reward")  # the entropy is ours: over all tokens, not the mean of micro-batches
    assert logs(mine, *names) == logs(theirs, *names)


@pytest.mark.parametrize("fast_path", [False, True])
@pytest.mark.parametrize("options", SETTINGS)
def test_gaussian_is_stock_trl_fed_with_reference_weighted_advantages(tmp_path, options, fast_path):
    theirs = reference_weighted(tmp_path / "a", rollouts=scripted_rollouts(1), **options)
    theirs.train()
    mine = ours(tmp_path / "b", rollouts=scripted_rollouts(1), fast_path=fast_path, **options)
    mine.train()
    for a, b in zip(mine.gradients, theirs.gradients, strict=True):
        assert relative(a, b) < 1e-4
    assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-5
    assert relative(weights(mine), weights(theirs)) < 1e-5


def test_gaussian_changes_the_update(tmp_path):
    theirs = stock(tmp_path / "a", rollouts=scripted_rollouts(1), max_steps=1)
    theirs.train()
    mine = ours(tmp_path / "b", rollouts=scripted_rollouts(1), max_steps=1)
    mine.train()
    assert relative(mine.gradients[0], theirs.gradients[0]) > 0.05


@pytest.mark.parametrize("fast_path", [False, True])
@pytest.mark.parametrize("padded_mean", [False, True])
@pytest.mark.parametrize("options", [AUTHORS, {"loss_type": "grpo"}, {"loss_type": "dapo"}])
def test_gaussian_through_is_the_live_loss_differentiated(tmp_path, options, padded_mean, fast_path):
    options = {**options, "optim": "sgd", "learning_rate": 0.1}  # Adam would enlarge a last bit to a step
    theirs = live_weights(tmp_path / "a", rollouts=scripted_rollouts(1), max_steps=2, **options)
    theirs.padded_mean = padded_mean
    theirs.train()
    through = {"weighting": "gaussian_through", "weighting_kwargs": {"padded_mean": padded_mean}}
    mine = ours(tmp_path / "b", rollouts=scripted_rollouts(1), max_steps=2, fast_path=fast_path, **through, **options)
    mine.train()
    assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-5
    assert relative(mine.gradients[1], theirs.gradients[1]) < 1e-4
    constant = ours(tmp_path / "c", rollouts=scripted_rollouts(1), max_steps=1, **options)
    constant.train()
    assert relative(constant.gradients[0], theirs.gradients[0]) > 0.05


def test_constant_rewards_with_rounding_noise_give_no_update(tmp_path):
    def nearly_constant(completions, **_):
        return [0.1 + 1e-9 * (i % 3) if i % 2 else 0.3 - 0.2 for i in range(len(completions))]

    mine = ours(tmp_path, rollouts=scripted_rollouts(1), max_steps=1, reward_funcs=nearly_constant)
    mine.train()
    assert mine.gradients[0].abs().max() == 0
