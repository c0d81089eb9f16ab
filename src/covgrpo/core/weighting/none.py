"""No weighting: plain GRPO (arXiv 2402.03300)."""

from dataclasses import dataclass

from torch import Tensor

from covgrpo.core.groups import GroupedTokens


@dataclass(frozen=True)
class NoWeighting:
    """``none``: every valid token weighs 1."""

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return 1 at valid positions, 0 at masked ones: (B, T)."""
        tokens = GroupedTokens(logps, advantages, mask, group_ids)
        return tokens.mask.to(tokens.result_dtype)
