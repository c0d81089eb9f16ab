"""No weighting: plain GRPO (arXiv 2402.03300)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting


@dataclass(frozen=True)
class NoWeighting(ColumnWeighting):
    """``none``: every valid token weighs 1."""

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return 1 at every token: (N,)."""
        return torch.ones_like(tokens.row, dtype=tokens.result_dtype)
