"""The same rollouts give the same weights in verl and in TRL.

``verl_cpu/driver_batch.safetensors`` is the first driver batch of a run of ``make test-verl`` (verl 0.9.1, the tiny
model, four prompts, four completions each): what verl computed, and the rollouts it came from. ``make test-verl``
compares a new one as well.
"""

import pytest
import reference_through
import torch
from verl_trl_cases import VERL_CPU, compare, trl_trainer

from covgrpo.core import get_weighting
from covgrpo.engines.training_batch import number, weigh_rows
from covgrpo.trl.rollout import Rollout

from verl_runs import read  # isort: skip


@pytest.fixture(scope="module")
def dump():
    return read(VERL_CPU / "driver_batch.safetensors")


def test_the_same_log_probs_give_the_same_weights(dump, tmp_path):
    """verl's driver batch through the function with which the TRL trainer weighs."""
    trainer = trl_trainer(tmp_path, dump)
    mask, logps = dump.tensors["response_mask"], dump.tensors["old_log_probs"]
    weighted, weights = weighted_by(trainer, dump.tensors["advantages"].sum(1) / mask.sum(1), mask, logps, dump)
    torch.testing.assert_close(weighted, dump.tensors["weighted"], rtol=1e-6, atol=1e-6)
    assert (weights[mask.bool()] - 1).abs().max() > 0.5


def weighted_by(trainer, advantages, mask, logps, dump):
    """Advantages (B, T) and weights as the TRL trainer's weigher makes them of (B,)."""
    inputs = {"advantages": advantages, "completion_mask": mask, "old_per_token_logps": logps}
    rollout = Rollout.sampled(inputs, torch.arange(len(mask)), num_generations=1, step=0)
    trainer.weigher.weigh(rollout, number(dump.metadata["uid"]))
    rollout.write(inputs)
    return inputs["advantages"], rollout.weights_BT


@pytest.mark.parametrize(("loss_type", "normaliser"), [("dapo", "token"), ("grpo", "completion")])
def test_the_gradient_through_the_weights_is_the_same_in_both(dump, tmp_path, loss_type, normaliser):
    """verl's driver batch through verl's way, through the TRL trainer's, and through the differentiated loss."""
    logps, A, mask = (dump.tensors[name] for name in ("old_log_probs", "advantages", "response_mask"))
    uid = dump.metadata["uid"]
    by_verl, _ = weigh_rows(
        get_weighting("gaussian_through", normaliser=normaliser), "group", logps, A, mask.bool(), uid
    )
    trainer = trl_trainer(tmp_path, dump, weighting="gaussian_through", loss_type=loss_type)
    weighted, _ = weighted_by(trainer, A.sum(1) / mask.sum(1), mask, logps, dump)
    torch.testing.assert_close(weighted, by_verl, rtol=1e-6, atol=1e-6)
    expected = reference_through.gaussian_through_weights(
        logps.double().tolist(), A.double().tolist(), mask.tolist(), number(uid).tolist(), normaliser
    )
    torch.testing.assert_close(by_verl, torch.tensor(expected) * A, rtol=1e-5, atol=1e-6)
    assert (by_verl - dump.tensors["weighted"]).abs().max() > 0.1


def test_the_same_tokens_give_the_same_weights(dump, tmp_path):
    """From the tokens on: log-probs, rewards, advantages and weights are each library's own."""
    difference, logps, count = compare(tmp_path, dump)
    print(f"weights differ by {difference:.1e}, log-probs by {logps:.1e}, {count} tokens")
    assert count > 50
    assert logps < 1e-5
    assert difference < 1e-5
