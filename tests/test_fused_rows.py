"""The attention that accelerators get, run on the CPU: rows of a tree by torch's fused kernels."""

import logging

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import GPTJConfig, GPTJForCausalLM
from trl_runs import beside_stock, logs, ours, relative, scripted_rollouts, stock, weights

from covgrpo.forward import token_tree


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"beta": 0.1}, {"num_iterations": 3, "learning_rate": 1e-2}, {"mask_truncated_completions": True}],
    ids=str,
)
def test_same_gradients_weights_and_metrics_as_stock(tmp_path, monkeypatch, options):
    monkeypatch.setattr(token_tree, "_by_fused_kernels", lambda device: True)
    mine, theirs = beside_stock(tmp_path, **options)
    assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-5
    assert relative(weights(mine), weights(theirs)) < 1e-5
    names = ["loss", "grad_norm", "reward", "entropy"]
    torch.testing.assert_close(
        torch.tensor(logs(mine, *names)), torch.tensor(logs(theirs, *names)), rtol=1e-4, atol=1e-6
    )


def test_a_model_with_an_attention_of_its_own_takes_trls_path_and_says_so(tmp_path, caplog):
    config = {"vocab_size": len(tiny_tokenizer()), "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}
    config |= {"n_positions": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "eos_token_id": 2}

    def model() -> GPTJForCausalLM:
        torch.manual_seed(0)
        return GPTJForCausalLM(GPTJConfig(**config, pad_token_id=0, bos_token_id=None))

    theirs = stock(tmp_path / "a", model=model(), rollouts=scripted_rollouts(7), max_steps=2)
    theirs.train()
    with caplog.at_level(logging.WARNING):
        mine = ours(tmp_path / "b", model=model(), rollouts=scripted_rollouts(7), weighting="none", max_steps=2)
        mine.train()
    assert relative(weights(mine), weights(theirs)) < 1e-6
    said = [record.message for record in caplog.records if "attention interface" in record.message]
    assert len(said) == 1 and "GPTJForCausalLM: each completion is scored with its own copy" in said[0]
