"""A model in training and after it is a plain transformers model: a copy runs its own weights, no patch is left."""

import copy

import pytest
import torch
from tiny import tiny_model
from transformers import TrainerCallback
from trl_runs import flat, ours, scripted_rollouts

pytestmark = pytest.mark.slow
IDS = torch.tensor([[5, 6, 7, 8, 9]])


class _CopyAfterFirstStep(TrainerCallback):
    """As a callback that averages weights would."""

    copied = None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.copied = self.copied or copy.deepcopy(model)


@pytest.mark.parametrize("options", [{}, {"fast_path": False}, {"bf16": True}], ids=str)
@torch.no_grad()
def test_a_deep_copy_in_training_runs_its_own_weights(tmp_path, options):
    mine = ours(tmp_path, rollouts=scripted_rollouts(7), max_steps=3, **options)
    keeper = _CopyAfterFirstStep()
    mine.add_callback(keeper)
    with torch.enable_grad():
        mine.train()
    copied, plain = keeper.copied.eval(), tiny_model().eval()
    assert not torch.equal(flat(copied.parameters()), flat(mine.model.parameters()))
    plain.load_state_dict(copied.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in options):
        assert torch.equal(copied(IDS).logits.float(), plain(IDS).logits.float())
    for parameter in copied.parameters():
        parameter.zero_()
    assert copied(IDS).logits.abs().max() == 0
    assert mine.model(IDS).logits.abs().max() > 0


@torch.no_grad()
def test_after_training_the_body_has_no_patch_and_the_model_its_own_numbers(tmp_path):
    mine = ours(tmp_path, rollouts=scripted_rollouts(7), max_steps=2)
    with torch.enable_grad():
        mine.train()
    assert set(mine.scorer.first_use.values()) == {None}, "the shared path was used"
    model, plain = mine.accelerator.unwrap_model(mine.model).eval(), tiny_model().eval()
    assert "forward" not in vars(model.model)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert torch.equal(model(IDS, labels=IDS).loss, plain(IDS, labels=IDS).loss)
    assert torch.equal(model.generate(IDS, do_sample=False), plain.generate(IDS, do_sample=False))
