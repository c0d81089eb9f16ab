"""Where sharing a prompt would not be exact, or would not pay."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from covgrpo.forward.attention_interface import checkpoints, recomputes, takes_our_attention

# Sharing starts more kernels a layer. Where a layer's share of the work saved, tokens x weights, is less than this, an
# accelerator waits for their starts: on an H100 with 0.5B and 1.5B models the paths break even at about 2e11.
_LEAST_SAVED_A_LAYER = {"cpu": 0.0}
_LEAST_SAVED_A_LAYER_ELSEWHERE = 2e11


def why_not_shareable(model: PreTrainedModel) -> str | None:
    """Say why the shared-prompt path is not exact for this model as it is set up now; ``None`` where it is."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windows = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    reasons = {
        "its layers do not attend through transformers' attention interface": not takes_our_attention(model),
        f"it mixes attention kinds ({', '.join(sorted(kinds))})": kinds != {"full_attention"},
        "it uses sliding-window attention": windows,
        "gradient checkpointing is reentrant or the model's own, and would not recompute shared prompts": (
            model.training and checkpoints(model) and not recomputes(model)
        ),
        "it is an encoder-decoder": model.config.is_encoder_decoder,
        "dropout is on, and shared prompts would share its noise": model.training and _has_dropout(model),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def saves_enough(backbone: Any, mask: Tensor, shared_mask: Tensor, completion_mask: Tensor) -> bool:
    """Whether sharing pays on the device of the rows.

    tokens not forwarded * weights / layers >= what the device needs     (weights without the embedding's)

    Args:
        backbone: the model without its head.
        mask: (N, L+T) of the rows, which without sharing are forwarded whole, padding and all.
        shared_mask: (P, L) of the prompts.
        completion_mask: (N, T).

    """
    least = _LEAST_SAVED_A_LAYER.get(mask.device.type, _LEAST_SAVED_A_LAYER_ELSEWHERE)
    if not least:
        return True
    saved = mask.numel() - int(shared_mask.sum() + completion_mask.sum())
    embedded = backbone.get_input_embeddings().weight.numel()
    weights = sum(parameter.numel() for parameter in backbone.parameters()) - embedded
    return saved * weights / backbone.config.get_text_config().num_hidden_layers >= least


def _has_dropout(model: PreTrainedModel) -> bool:
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    config = model.config.get_text_config()
    names = ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "dropout")
    return any((getattr(config, name, 0.0) or 0.0) > 0 for name in names)
