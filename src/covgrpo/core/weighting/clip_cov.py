"""Clip-Cov: a few random tokens of high covariance get no policy gradient (arXiv 2505.22617, section 4)."""

from dataclasses import dataclass

from torch import Tensor

from covgrpo.core.covariance import covariance
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import DrawingWeighting


@dataclass(frozen=True)
class ClipCov(DrawingWeighting):
    """``clip_cov``: w = 0 for max(floor(ratio * N), 1) tokens drawn at random among those with low < c < high, else 1.

    Defaults and rule are those of the authors' code (PRIME-RL/Entropy-Mechanism-of-RL), whose recipe also switches the
    PPO clipping off. There c is taken anew for each micro-batch, and tokens that PPO clips are left out of the draw;
    here c is that of the policy that sampled the batch, where nothing is clipped, over the whole scope.

    Args:
        ratio: fraction of the N valid tokens of the scope.
        low: lower bound of c.
        high: upper bound of c.

    """

    ratio: float = 0.0002
    low: float = 1.0
    high: float = 5.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 < self.ratio <= 1:
            raise ValueError(f"clip_cov: ratio must be a fraction in (0, 1], got {self.ratio}.")
        if not self.low < self.high:
            raise ValueError(f"clip_cov: low ({self.low}) must be below high ({self.high}).")

    def weigh(self, tokens: Tokens, noise: Tensor) -> Tensor:
        """Return w (N,); ``noise`` (N,) decides the draw."""
        c = covariance(tokens).to(tokens.result_dtype)  # not finer than what was given
        count_K = (self.ratio * tokens.num_tokens_K).floor().clamp(min=1)
        return (~tokens.first(count_K, (c > self.low) & (c < self.high), noise)).to(tokens.result_dtype)
