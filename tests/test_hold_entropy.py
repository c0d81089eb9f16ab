"""The trainer with a scheme that holds the entropy: what it measures, one kappa a rollout batch, resume, processes."""

import math
import random

import pytest
import torch
from exactness_cases import rollouts_by_prompt
from transformers import TrainerCallback
from trl_runs import ours, relative, scripted_rollouts, weights

from covgrpo import neutral_weights, token_covariance
from covgrpo.core.entropy_controller import WARM_UP
from covgrpo.engines.entropy import measure_entropy

HOLD = {"weighting": "hold_entropy", "weighting_scope": "batch"}


def test_the_measured_mean_and_its_error_are_those_of_clusters():
    """Against loops: the spread of a mean over prompts, whose tokens are alike."""
    rng = random.Random(0)
    mask = torch.tensor([[rng.random() < 0.7 for _ in range(9)] for _ in range(12)])
    entropies = torch.where(mask, torch.rand(12, 9, generator=torch.Generator().manual_seed(0)), math.nan)
    group = torch.tensor([5, 5, 5, 5, -1, -1, -1, -1, 8, 8, 8, 8])
    H, variance = measure_entropy(entropies, mask, group)
    tokens = [(int(group[i]), float(entropies[i, t])) for i in range(12) for t in range(9) if mask[i, t]]
    mean = math.fsum(h for _, h in tokens) / len(tokens)
    sums = [math.fsum(h - mean for g, h in tokens if g == name) for name in (5, -1, 8)]
    assert pytest.approx(mean, rel=1e-12) == H
    assert variance == pytest.approx(3 / 2 * math.fsum(s * s for s in sums) / len(tokens) ** 2, rel=1e-9)


def test_the_error_is_that_of_repeated_draws():
    """Prompts of different entropy: the measured variance is that of the mean over many batches."""
    generator = torch.Generator().manual_seed(1)
    means, variances = [], []
    for _ in range(3000):
        level = torch.rand(8, generator=generator).repeat_interleave(4)[:, None]
        entropies = level + 0.1 * torch.rand(32, 20, generator=generator)
        H, variance = measure_entropy(entropies, torch.ones(32, 20), torch.arange(32) // 4)
        means.append(H)
        variances.append(variance)
    spread = torch.tensor(means).var().item()
    assert torch.tensor(variances).mean().item() == pytest.approx(spread, rel=0.1)


def test_edge_cases_of_the_measurement():
    assert measure_entropy(torch.full((2, 3), math.nan), torch.zeros(2, 3), torch.zeros(2).long()) == (0.0, 0.0)
    one = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    H, variance = measure_entropy(one, torch.ones(2, 2), torch.zeros(2).long())
    assert (H, variance) == (2.0, pytest.approx(2 * (2**2 + 2**2) / 16)), "one prompt: completions are the clusters"
    assert measure_entropy(one[:1], torch.ones(1, 2), torch.zeros(1).long()) == (1.0, 0.0)


def train(folder, rollouts=None, callbacks=(), **options):
    trainer = ours(folder, rollouts=rollouts, **{**HOLD, "max_steps": 14, **options})
    trainer.kappas = []
    for callback in callbacks:
        trainer.add_callback(callback)
    weigh = trainer.weigher.weigh

    def noting(rollout, ids):
        weigh(rollout, ids)
        trainer.kappas.append(trainer.weighting.kappa)
        trainer.latest = rollout

    trainer.weigher.weigh = noting
    return trainer


def logged(trainer, name):
    return [log[name] for log in trainer.state.log_history if name in log]


@pytest.mark.slow
def test_kappa_is_1_while_the_target_is_measured_and_moves_then(tmp_path):
    trainer = train(tmp_path)
    trainer.train()
    assert trainer.kappas[: WARM_UP - 1] == [1.0] * (WARM_UP - 1)
    assert len(set(trainer.kappas[WARM_UP - 1 :])) == 14 - WARM_UP + 1
    assert logged(trainer, "hold/kappa") == trainer.kappas
    entropies, (target, *others) = logged(trainer, "entropy"), logged(trainer, "hold/target")
    assert set(others) <= {target}
    assert target == pytest.approx(sum(entropies[:WARM_UP]) / WARM_UP, rel=1e-4), "the sampler's entropies"
    assert len(logged(trainer, "hold/reached")) == 14
    rows = trainer.latest
    centred = rows.logps_BT + rows.entropies_BT
    expected = neutral_weights(centred, rows.advantages_B, rows.mask_BT, None, trainer.kappas[-1])
    torch.testing.assert_close(rows.weights_BT, expected)
    c = token_covariance(centred, rows.advantages_B, rows.mask_BT)
    reached = ((c.double() * rows.weights_BT.double()).sum() / rows.mask_BT.sum()).item()
    assert logged(trainer, "hold/reached")[-1] == pytest.approx(reached, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("num_iterations", [1, 2])
def test_without_our_sampler_the_rollouts_are_scored_for_their_entropies(tmp_path, num_iterations):
    """TRL has the log-probs of the second case already, as it reuses the rollouts; nobody has the entropies."""
    options = {"max_steps": 1, "num_iterations": num_iterations}
    trainer = train(tmp_path, scripted_rollouts(1), learning_rate=0.0, **options)
    batches, weigh = [], trainer._weigh
    trainer._weigh = lambda rollout, batch: (weigh(rollout, batch), batches.append(batch))
    trainer.train()
    rows, batch = trainer.latest, batches[0]
    valid = rows.mask_BT.bool()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, -valid.shape[1] - 1 : -1].double()
    entropies = torch.distributions.Categorical(logits=logits).entropy()[rows.row_B]  # TRL has shuffled the rows
    torch.testing.assert_close(rows.entropies_BT[valid].double(), entropies[valid], atol=1e-5, rtol=1e-5)
    assert trainer.entropy_hold.controller.entropy == pytest.approx(entropies[valid].mean().item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["group", "batch"])
def test_off_policy_updates_keep_the_kappa_of_their_rollout_batch(tmp_path, scope):
    trainer = train(tmp_path, num_iterations=2, max_steps=24, weighting_scope=scope)
    trainer.train()
    kappas = logged(trainer, "hold/kappa")
    assert kappas[::2] == kappas[1::2] and len(set(kappas)) > 2
    assert trainer.entropy_hold.controller.measured == 12


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_iterations": 2, "max_steps": 26}])
def test_a_resumed_run_ends_bit_identical(tmp_path, options):
    whole = train(tmp_path / "whole", **options)
    whole.train()
    saving = {**options, "save_strategy": "steps"}
    for stop in (5, 13):
        cut = tmp_path / f"cut-{stop}"
        first = train(cut, callbacks=[StopAfter(stop)], save_steps=stop, **saving)
        first.train()
        second = train(cut, save_steps=100, **saving)
        second.train(resume_from_checkpoint=str(cut / f"checkpoint-{stop}"))
        assert torch.equal(weights(second), weights(whole))
        assert second.entropy_hold.controller == whole.entropy_hold.controller
        assert logged(second, "hold/kappa")[-1] == logged(whole, "hold/kappa")[-1] != 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "split", [{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}, {"fast_path": False}]
)
def test_how_a_step_is_split_does_not_move_kappa(tmp_path, split):
    found = []
    for folder, options in (("a", {}), ("b", split)):
        trainer = train(tmp_path / folder, **options)
        trainer._generate_single_turn = rollouts_by_prompt(trainer)
        trainer.train()
        found.append(trainer)
    whole, parts = found
    assert parts.kappas == pytest.approx(whole.kappas, rel=1e-3)
    assert relative(weights(parts), weights(whole)) < 1e-5
