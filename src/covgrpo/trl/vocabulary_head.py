"""TRL's fused vocabulary head, computed by ours where TRL has no kernel (devices without Triton).

TRL's own folds float32 tiles in several passes, recomputes them in the backward pass, and multiplies there in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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
