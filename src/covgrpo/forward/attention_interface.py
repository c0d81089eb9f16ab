"""Our attention as an implementation of transformers' attention interface."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from covgrpo.forward.not_shareable import NotShareableError

NAME = "covgrpo"  # of the implementation; transformers makes no mask for it
# Arguments that attention functions are handed and that change nothing here.
_HARMLESS = {"position_ids", "use_cache", "output_attentions", "cache_position", "is_causal", "output_hidden_states"}
_refusing: set[type] = set()  # classes of configs


class Attending(Protocol):
    """What attends in place of a model's layers."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attend with query (N, heads, T, D), key and value (N, K, S, D): (N, heads, T, D)."""


@dataclass
class _Pass:
    """A forward pass under way, and how many of its layers have attended."""

    attending: Attending
    served: int = 0


_pass: ContextVar[_Pass | None] = ContextVar("covgrpo_attention_pass", default=None)


@contextmanager
def attending_by(attending: Attending, config: Any) -> Iterator[None]:
    """Inside the block the model with this (text) config makes one forward pass, whose layers attend by ``attending``.

    Raises:
        NotShareableError: a layer's attention takes what ours does not know, or has not come through the interface.

    """
    with _taking_over(attending, config) as begun:
        yield
    if begun.served != config.num_hidden_layers:
        raise NotShareableError("its layers do not attend through transformers' attention interface")


@contextmanager
def recomputing_by(attending: Attending, config: Any, model: Any) -> Iterator[None]:
    """Inside the block, what gradient checkpointing recomputes of the model in the backward pass attends alike.

    The backward pass comes after the block: every layer's checkpoint takes the context along.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    originals = [layer._gradient_checkpointing_func for layer in layers]
    for layer, original in zip(layers, originals, strict=True):
        contexts = functools.partial(_contexts, attending, config)
        layer._gradient_checkpointing_func = functools.partial(original, context_fn=contexts)
    try:
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer._gradient_checkpointing_func = original


def checkpoints(model: Any) -> bool:
    """Whether gradient checkpointing is on, by the mark on modules: transformers' property has changed its name."""
    return any(True for _ in _checkpointed(model))


def _checkpointed(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if getattr(module, "gradient_checkpointing", False))


def recomputes(model: Any) -> bool:
    """Whether :func:`recomputing_by` serves a model: layers of transformers' kind, checkpointed without reentry."""
    layers: list[Any] = [module for module in _checkpointed(model) if isinstance(module, GradientCheckpointingLayer)]
    settings = [getattr(layer._gradient_checkpointing_func, "keywords", {}) for layer in layers]
    reentrant = any(setting.get("use_reentrant", True) or "context_fn" in setting for setting in settings)
    return bool(layers) and not reentrant


def _contexts(attending: Attending, config: Any) -> tuple[Any, Any]:
    """What torch's checkpoint enters in the forward pass and when it recomputes."""
    return nullcontext(), _taking_over(attending, config)


@contextmanager
def _taking_over(attending: Attending, config: Any) -> Iterator[_Pass]:
    implementation, begun = config._attn_implementation, _Pass(attending)
    token = _pass.set(begun)
    config._attn_implementation = NAME
    try:
        yield begun
    finally:
        config._attn_implementation = implementation
        _pass.reset(token)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    unknown = [name for name, given in others.items() if given is not None and name not in _HARMLESS]
    if unknown or dropout or attention_mask is not None:
        raise NotShareableError(f"its attention takes {', '.join(unknown) or 'dropout or a mask'}")
    begun = _pass.get()
    if begun is None:
        raise RuntimeError(f"attention implementation {NAME!r} works inside attending_by() only.")
    begun.served += 1
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return begun.attending.attend(query, key, value, scaling).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)


def takes_our_attention(model: Any) -> bool:
    """Whether a model's layers may attend by ours; a model that has refused is not asked again."""
    takes_any = getattr(model, "_supports_attention_backend", False)
    return takes_any and type(model.config) not in _refusing


def refuse_our_attention(model: Any) -> None:
    """Remember that models of this kind do not take ours."""
    _refusing.add(type(model.config))


def lowered(x: Tensor) -> Tensor:
    """In autocast's dtype where it is on: the one that attention computes in."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
