"""Probability reweighting: "Do Not Let Low-Probability Tokens Over-Dominate" (arXiv 2505.12929)."""

from dataclasses import dataclass

from torch import Tensor

from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting


@dataclass(frozen=True)
class Probability(ColumnWeighting):
    """``prob``: w = alpha * pi + 1 - alpha, with pi = exp(l) the sampled token's probability.

    Args:
        alpha: fraction in [0, 1]; the paper's 0.3 by default. 0 is plain GRPO.

    """

    alpha: float = 0.3

    def __post_init__(self) -> None:
        """Check alpha."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"prob: alpha must be a fraction in [0, 1], got {self.alpha}.")

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w (N,)."""
        return self.alpha * tokens.l.exp_() + 1 - self.alpha
