"""Only completions above their group's mean: the token weights of WAPO, arXiv 2606.16154."""

from dataclasses import dataclass

from torch import Tensor

from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting


@dataclass(frozen=True)
class PositiveOnly(ColumnWeighting):
    """``positive_only``: w = 1 where A > 0, else 0; not normalised.

    Winner Advantage Policy Optimization updates on completions of positive advantage alone and divides by the size of
    the whole group, so that a group with few of them counts less. For all of it take unnormalised advantages and a
    constant denominator as well: ``loss_type="dr_grpo"``, ``scale_rewards="none"``. Its clipping from above is PPO's,
    which for A > 0 clips from above only.

    Nothing is unlearnt directly: a mistake loses probability only to what right completions have in its place.
    """

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w (N,)."""
        return (tokens.A > 0).to(tokens.dtype)
