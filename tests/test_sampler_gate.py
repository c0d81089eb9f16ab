"""The sampler on models other than Llama's kind: positions that must not be moved, models that it does not serve."""

import logging

import pytest
import torch
from tiny import tiny_config, tiny_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
)
from trl_runs import ours

from covgrpo.errors import UserError
from covgrpo.rollouts import SamplingSettings, decoding, sample, why_not_sampled

V = tiny_config().vocab_size
ENDS = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 2}
PREFIX = list(range(40, 52))
PROMPTS = [PREFIX + own for own in ([10, 11, 12], [20, 21], [30, 31, 32, 33, 34], [20, 21])]


def alibi():
    """Linear biases counted by column, whatever the mask says."""
    return spread(MptForCausalLM(MptConfig(vocab_size=V, d_model=32, n_layers=2, n_heads=4, max_seq_len=256, **ENDS)))


def learned():
    """Positions of an embedding table."""
    config = GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=256, resid_pdrop=0.0, **ENDS)
    return spread(GPT2LMHeadModel(config))


def recurrent():
    config = MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=8, **ENDS)
    return spread(MambaForCausalLM(config))


def hybrid():
    """Convolutions and attention in turn."""
    config = Lfm2Config(
        vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, layer_types=["conv", "full_attention"], **ENDS,
    )  # fmt: skip
    return spread(Lfm2ForCausalLM(config))


def spread(model):
    """Random weights scaled up, so that a wrong position shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    return model.float().eval()


def log_probs_alone(model, prompt, ids):
    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(dim=1).gather(1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize("make", [alibi, learned, tiny_model])
@torch.no_grad()
def test_no_position_is_moved_by_a_common_prefix(make):
    model = make()
    torch.manual_seed(1)
    drawn = sample(model, PROMPTS, SamplingSettings(max_new_tokens=8, eos_token_ids=(2,), pad_token_id=0))
    for prompt, ids, logps in zip(PROMPTS, drawn.token_ids, drawn.logps, strict=True):
        torch.testing.assert_close(torch.tensor(logps), log_probs_alone(model, prompt, ids), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "said"), [(recurrent, "it keeps a recurrent state"), (hybrid, "not all of its layers attend (conv)")]
)
def test_recurrent_and_hybrid_models_are_drawn_from_by_generate(tmp_path, caplog, make, said):
    model = make()
    assert why_not_sampled(model) == said and why_not_sampled(tiny_model()) is None
    with pytest.raises(UserError, match="cannot be sampled from here"):
        sample(model, PROMPTS, SamplingSettings(max_new_tokens=2, eos_token_ids=(2,), pad_token_id=0))
    with caplog.at_level(logging.WARNING):
        mine = ours(tmp_path, model=model, max_steps=2)
        mine.train()
    assert mine.sampler.latest is None and mine.gradients[-1].isfinite().all() and mine.gradients[-1].abs().max() > 0
    assert [said in record.message for record in caplog.records if "generate" in record.message] == [True]


def test_a_wrong_sampler_is_noticed_on_first_use(tmp_path, caplog, monkeypatch):
    """A prefix taken out where positions are not relative: the log-probs give it away."""
    monkeypatch.setattr(decoding, "positions_are_relative", lambda model: True, raising=False)
    with caplog.at_level(logging.WARNING):
        mine = ours(tmp_path, model=alibi(), max_steps=2)
        mine.train()
    assert mine.sampler.latest is None
    assert sum("the sampler's log-probs differ by" in record.message for record in caplog.records) == 1


def test_a_right_sampler_passes_its_check(tmp_path, caplog):
    mine = ours(tmp_path, max_steps=1)
    with caplog.at_level(logging.WARNING):
        mine.train()
    assert mine.sampler.checked and mine.sampler.refused is None
    assert "drawn by transformers' generate" not in caplog.text
    drawn = mine.sampler.latest
    assert len(drawn.token_ids) == 16 and all(drawn.token_ids)
    assert [list(map(len, rows)) for rows in (drawn.logps, drawn.entropies)] == [list(map(len, drawn.token_ids))] * 2
