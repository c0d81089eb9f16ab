"""Probability reweighting: "Do Not Let Low-Probability Tokens Over-Dominate" (arXiv 2505.12929)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.groups import GroupedTokens


@dataclass(frozen=True)
class Probability:
    """``prob``: w = alpha * pi + 1 - alpha, with pi = exp(l) the sampled token's probability.

    Args:
        alpha: fraction in [0, 1]; the paper's 0.3 by default. 0 is plain GRPO.

    """

    alpha: float = 0.3

    def __post_init__(self) -> None:
        """Check alpha."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"prob: alpha must be a fraction in [0, 1], got {self.alpha}.")

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return w (B, T)."""
        tokens = GroupedTokens(logps, advantages, mask, group_ids)
        return tokens.map(lambda block: self.alpha * torch.exp(block.logps) + 1 - self.alpha)
