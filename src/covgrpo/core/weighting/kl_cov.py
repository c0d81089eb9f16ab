"""KL-Cov: the tokens of highest covariance are held near the policy that sampled them (arXiv 2505.22617, section 4)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covgrpo.core.covariance import Covariance
from covgrpo.core.groups import GroupedTokens
from covgrpo.core.noise import token_noise


@dataclass(frozen=True)
class KLCov:
    """``kl_cov``: + coef * |log pi - log pi_old| in the loss of the max(floor(ratio * N), 1) tokens of highest c.

    All weights are 1; the penalty is what the scheme adds, without PPO clipping. Strictly on-policy it is inert:
    log pi = log pi_old, so the penalty and its gradient are 0. It acts with several updates for each rollout batch.
    Defaults are those of the authors' recipe (0.2 percent, coefficient 1).

    Args:
        ratio: fraction of the N valid tokens of the scope.
        coef: weight of the penalty.

    """

    needs_noise: ClassVar[bool] = True

    ratio: float = 0.002
    coef: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 < self.ratio <= 1:
            raise ValueError(f"kl_cov: ratio must be a fraction in (0, 1], got {self.ratio}.")
        if not 0 <= self.coef < float("inf"):
            raise ValueError(f"kl_cov: coef must be a finite number of at least 0, got {self.coef}.")

    def __call__(
        self,
        logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        group_ids: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return 1 at valid positions: (B, T)."""
        tokens = GroupedTokens(logps, advantages, mask, group_ids)
        return tokens.mask.to(tokens.result_dtype)

    def penalties(
        self,
        logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        group_ids: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return the coefficient of |log pi - log pi_old| of each token (B, T); ``noise`` decides between equal c."""
        tokens = GroupedTokens(logps, advantages, mask, group_ids)
        c = tokens.map(Covariance(tokens))
        if noise is None:
            noise = token_noise(0, torch.arange(len(logps), device=logps.device), logps.shape[1])
        count_K = (self.ratio * tokens.num_tokens_K).floor().clamp(min=1)
        return self.coef * tokens.first(count_K, tokens.mask, -c, noise).to(tokens.result_dtype)
