"""Which models the sampler serves."""

import inspect
from typing import Any

from covgrpo.forward import cache_name

# Kinds of layers that keep keys and values of tokens and nothing else; anything else has a state of its own.
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def why_not_sampled(model: Any) -> str | None:
    """Say why the sampler does not serve this model; ``None`` where it does. A PEFT wrapper is looked through."""
    model = causal_lm(model)
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if getattr(model, "_is_stateful", False):
        return "it keeps a recurrent state"
    layer_types = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if not layer_types <= _ATTENTION:
        return f"not all of its layers attend ({', '.join(sorted(layer_types - _ATTENTION))})"
    if cache_name(model) is None:
        return "its forward takes no cache"
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        return "its forward takes no logits_to_keep"
    return None


def positions_are_relative(model: Any) -> bool:
    """Whether moving a row changes nothing: rotary embeddings know differences of positions only.

    Learned positions and those of ALiBi, which some models count by column, are not moved.
    """
    return hasattr(causal_lm(model).base_model, "rotary_emb")


def causal_lm(model: Any) -> Any:
    """Return the model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
