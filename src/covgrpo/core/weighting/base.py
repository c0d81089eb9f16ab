"""What a token weighting is."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Weighting(Protocol):
    """(log-probs, advantages, mask, groups) -> weights of the token advantages.

    A scheme is a (frozen dataclass) instance: its fields are its hyperparameters, their defaults the vetted setting.
    The trainer multiplies A_{i,t} by the returned weight wherever the loss uses A.

    A scheme that draws at random says ``needs_noise = True`` and takes a fifth argument ``noise`` (B, T), uniform in
    [0, 1), which belongs to the tokens and not to their places (see ``core.noise``). A scheme that adds
    coef * |log pi - log pi_old| to the loss of some tokens has a method ``penalties`` with the same arguments that
    returns the coefficients (B, T).
    """

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return weights (B, T), 0 at masked positions, without gradient."""
        ...
