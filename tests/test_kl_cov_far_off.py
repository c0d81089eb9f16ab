"""KL-Cov's penalty on a policy that has moved far: tokens whose log-prob fell by tens and hundreds of nats."""

import pytest
import torch
from trl_runs import flat, ours, relative, scripted_rollouts

from covgrpo.trl.rollout import Rollout

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("nats", [-1.0, 3.0, -60.0, -84.0, -100.0, -300.0])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_penalty_is_its_formula_however_far_the_policy_moved(tmp_path, nats, loss_type):
    """loss = -r A + coef |x|, x = log pi - log pi_old, r = exp(x); against autograd in float64."""
    options = {"weighting": "kl_cov", "epsilon": 1e6, "num_iterations": 2, "loss_type": loss_type}
    trainer = ours(tmp_path, rollouts=scripted_rollouts(7), max_steps=1, **options)
    trainer.train()
    inputs = dict(trainer._buffered_inputs[0])
    weighted = inputs["advantages"].clone()
    weighted[3] = 0
    inputs["advantages"] = weighted
    mask, advantages = inputs["completion_mask"].double(), weighted.double()
    logps = score(trainer, inputs)
    x = torch.full_like(logps, 0.1)
    x[0, 0] = x[1, 0] = nats  # the second one carries no penalty
    coef = torch.zeros_like(logps)
    coef[0, 0], coef[2, 0], coef[3, 0] = 2.0, 0.5, 1.0  # row 3 has no advantage, only a penalty
    inputs |= {"old_per_token_logps": logps.detach() - x, Rollout.key("penalties_BT"): coef}

    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    actual = flat(p.grad for p in trainer.model.parameters())
    trainer.model.zero_grad()
    moved = score(trainer, inputs).double() - inputs["old_per_token_logps"].double()
    by_token = (-moved.exp() * advantages + coef * moved.abs()) * mask
    expected = (by_token.sum(dim=1) / mask.sum(dim=1)).mean() if loss_type == "grpo" else by_token.sum() / mask.sum()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert relative(actual, flat(p.grad for p in trainer.model.parameters())) < 1e-5


def score(trainer, inputs):
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, inputs["completion_ids"].shape[1]
    )
    return logps
