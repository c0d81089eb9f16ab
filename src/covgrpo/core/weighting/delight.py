"""The gate of the Delightful Policy Gradient, arXiv 2603.14608; for stale actors 2603.20521."""

import math
from dataclasses import dataclass

from torch import Tensor

from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting


@dataclass(frozen=True)
class Delight(ColumnWeighting):
    """``delight``: w = sigmoid(A (-l) / eta), not normalised; A (-l), advantage times surprisal, is the delight.

    The gate opens on rare tokens of right completions, up to 1, and closes on rare ones of wrong completions, down to
    0. Common tokens have about 1/2. Of the four parts of the covariance (see ``neutral_common``) it turns up one with
    c < 0 and down one with c > 0: to first order entropy falls less than in GRPO. A rare mistake keeps little push.

    The papers take l under the policy that learns. Here it is the one that sampled the batch, fixed over its updates;
    on-policy they are the same. It uses A as it is: its size matters.

    Args:
        eta: temperature of the gate, above 0; the papers' experiments use 1.

    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        """Check eta."""
        if not (math.isfinite(self.eta) and self.eta > 0):
            raise ValueError(f"delight: eta must be a finite number above 0, got {self.eta}.")

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w (N,)."""
        return (tokens.A * -tokens.l / self.eta).sigmoid_()
