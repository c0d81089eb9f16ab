"""KL-Cov: the tokens of highest covariance are held near the policy that sampled them (arXiv 2505.22617, section 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.covariance import covariance
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import DrawingWeighting, noise_column


@dataclass(frozen=True)
class KLCov(DrawingWeighting):
    """``kl_cov``: + coef * |log pi - log pi_old| in the loss of the max(floor(ratio * N), 1) tokens of highest c.

    All weights are 1; the penalty is what the scheme adds, without PPO clipping. Strictly on-policy it is inert:
    log pi = log pi_old, so the penalty and its gradient are 0. It acts with several updates for each rollout batch.
    Defaults are those of the authors' recipe (0.2 percent, coefficient 1).

    Args:
        ratio: fraction of the N valid tokens of the scope.
        coef: weight of the penalty.

    """

    ratio: float = 0.002
    coef: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 < self.ratio <= 1:
            raise ValueError(f"kl_cov: ratio must be a fraction in (0, 1], got {self.ratio}.")
        if not 0 <= self.coef < float("inf"):
            raise ValueError(f"kl_cov: coef must be a finite number of at least 0, got {self.coef}.")

    def weigh(self, tokens: Tokens, noise: Tensor) -> Tensor:
        """Return 1 at every token: (N,)."""
        return torch.ones_like(tokens.row, dtype=tokens.result_dtype)

    def penalties(
        self,
        logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        group_ids: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return the coefficient of |log pi - log pi_old| of each token (B, T); ``noise`` decides between equal c."""
        tokens = Tokens(logps, advantages, mask, group_ids)
        count_K = (self.ratio * tokens.num_tokens_K).floor().clamp(min=1)
        every = torch.ones_like(tokens.row, dtype=torch.bool)
        # Not finer than what was given: the noise decides between tokens that rounding sets apart.
        c = covariance(tokens).to(tokens.result_dtype)
        highest = tokens.first(count_K, every, -c, noise_column(tokens, noise))
        return tokens.fill(self.coef * highest.to(tokens.dtype))
