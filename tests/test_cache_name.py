"""The cache goes to a model's forward, and is found in its output, by the name that either has."""

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model
from transformers import LlamaForCausalLM

from covgrpo.forward import cache_name, cache_of
from covgrpo.rollouts import SamplingSettings, decoding, sample, why_not_sampled

NAMES = ("cache", "past_key_values")
OF_LIBRARY = cache_name(tiny_model())
PROMPTS = [[40, 41, 42, *own] for own in ([10, 11, 12], [20, 21], [30, 31, 32, 33], [20, 21])]


def by_name(kind, name):
    """A subclass whose forward takes the cache by this name alone, and returns it by the other."""
    (other,) = set(NAMES) - {name}

    def run(self, cache, logits_to_keep, inputs):
        if logits_to_keep is not None:
            inputs["logits_to_keep"] = logits_to_keep
        output = kind.forward(self, **inputs, **{OF_LIBRARY: cache})
        found = {key: getattr(output, key) for key in ("logits", "last_hidden_state") if hasattr(output, key)}
        return SimpleNamespace(**found, **{other: cache_of(output)})

    def forward_cache(self, cache=None, logits_to_keep=None, **inputs):
        return run(self, cache, logits_to_keep, inputs)

    def forward_past_key_values(self, past_key_values=None, logits_to_keep=None, **inputs):
        return run(self, past_key_values, logits_to_keep, inputs)

    return type(f"By{name}", (kind,), {"forward": locals()[f"forward_{name}"]})


def named(kind, name, source):
    model = by_name(kind, name)(source.config)
    model.load_state_dict(source.state_dict())
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grouped", [True, False])
@torch.no_grad()
def test_the_sampler_draws_the_same_whatever_the_name(monkeypatch, name, grouped):
    if not grouped:
        monkeypatch.setattr(decoding, "takes_our_attention", lambda model: False)
    plain = tiny_model().eval()
    model = named(LlamaForCausalLM, name, plain)
    assert cache_name(model) == name and why_not_sampled(model) is None
    settings = SamplingSettings(max_new_tokens=6, eos_token_ids=(2,), pad_token_id=0)
    drawn, expected = (sample(m, PROMPTS, settings, torch.Generator().manual_seed(0)) for m in (model, plain))
    assert drawn == expected


def test_a_forward_without_a_cache_has_none():
    class Without(torch.nn.Module):
        config = SimpleNamespace(is_encoder_decoder=False, get_text_config=lambda: SimpleNamespace())

        def forward(self, input_ids, logits_to_keep):
            return input_ids

    assert cache_name(Without()) is None
    assert why_not_sampled(Without()) == "its forward takes no cache"


def test_a_cache_is_found_in_an_output():
    for name in NAMES:
        assert cache_of(SimpleNamespace(**{name: 3})) == 3
