"""TRL's fused vocabulary head, computed by ours where TRL has no kernel (devices without Triton).

TRL's own folds float32 tiles in several passes, recomputes them in the backward pass, and multiplies there in float32.
"""

import functools
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.utils as trl_utils

from covgrpo.forward import TiledVocabularyHead


@contextmanager
def tiled_vocabulary_head(device: torch.device) -> Iterator[None]:
    """Inside the block ``model(..., fused_lm_head=True)`` computes by :class:`TiledVocabularyHead`."""
    stock = trl_utils._ChunkedLogProbFunction
    if not trl_utils._use_triton(device):
        trl_utils._ChunkedLogProbFunction = TiledVocabularyHead
    try:
        yield
    finally:
        trl_utils._ChunkedLogProbFunction = stock


def bind_fused_head(model: Any) -> None:
    """Let a model with TRL's fused head run its own weights once it is copied.

    TRL puts a function in place of ``model.forward`` that keeps the first model's forward: on a deep copy (EMA,
    ``AveragedModel``) a plain call would run the weights of the model it was copied from. Here the function takes the
    model that it is called on. Numbers stay the same.
    """
    fused = getattr(model.__dict__.get("forward"), "__func__", None)
    if not inspect.isfunction(fused):
        return
    original = inspect.getclosurevars(fused).nonlocals.get("original_forward")
    plain = getattr(original, "__func__", None)
    if plain is None:  # not TRL's head, or one on a forward that knows no other model
        return

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if fused_lm_head:
            return fused(self, *args, fused_lm_head=True, **kwargs)
        return plain(self, *args, **kwargs)

    model.forward = types.MethodType(forward, model)
