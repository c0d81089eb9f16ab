"""Clip-Cov: a few random tokens of high covariance get no policy gradient (arXiv 2505.22617, section 4)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covgrpo.core.covariance import Covariance
from covgrpo.core.groups import GroupedTokens
from covgrpo.core.noise import token_noise


@dataclass(frozen=True)
class ClipCov:
    """``clip_cov``: w = 0 for max(floor(ratio * N), 1) tokens drawn at random among those with low < c < high, else 1.

    Defaults and rule are those of the authors' code (PRIME-RL/Entropy-Mechanism-of-RL), whose recipe also switches the
    PPO clipping off. There c is taken anew for each micro-batch, and tokens that PPO clips are left out of the draw;
    here c is that of the policy that sampled the batch, where nothing is clipped, over the whole scope.

    Args:
        ratio: fraction of the N valid tokens of the scope.
        low: lower bound of c.
        high: upper bound of c.

    """

    needs_noise: ClassVar[bool] = True

    ratio: float = 0.0002
    low: float = 1.0
    high: float = 5.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 < self.ratio <= 1:
            raise ValueError(f"clip_cov: ratio must be a fraction in (0, 1], got {self.ratio}.")
        if not self.low < self.high:
            raise ValueError(f"clip_cov: low ({self.low}) must be below high ({self.high}).")

    def __call__(
        self,
        logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        group_ids: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return w (B, T); ``noise`` (B, T): the numbers that decide the draw, by default those of seed 0."""
        tokens = GroupedTokens(logps, advantages, mask, group_ids)
        c = tokens.map(Covariance(tokens))
        if noise is None:
            noise = token_noise(0, torch.arange(len(logps), device=logps.device), logps.shape[1])
        count_K = (self.ratio * tokens.num_tokens_K).floor().clamp(min=1)
        dropped = tokens.first(count_K, (c > self.low) & (c < self.high), noise)
        return (tokens.mask & ~dropped).to(tokens.result_dtype)
