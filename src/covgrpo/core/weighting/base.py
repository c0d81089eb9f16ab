"""What a token weighting is."""

import dataclasses
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor


@runtime_checkable
class Weighting(Protocol):
    """(log-probs, advantages, mask, groups) -> weights of the token advantages.

    A scheme is a (frozen dataclass) instance: its fields are its hyperparameters, their defaults the vetted setting.
    The trainer multiplies A_{i,t} by the returned weight wherever the loss uses A.

    A scheme that draws at random says ``needs_noise = True`` and takes a fifth argument ``noise`` (B, T), uniform in
    [0, 1), which belongs to the tokens and not to their places (see ``core.noise``). A scheme that adds
    coef * |log pi - log pi_old| to the loss of some tokens has a method ``penalties`` with the same arguments that
    returns the coefficients (B, T). A scheme that must know what the loss divides a token by has a field
    ``normaliser``, which the engine fills in (:func:`fit_normaliser`). One that is steered from step to step has a
    field ``kappa`` and a method ``controller`` (see :class:`covgrpo.core.weighting.hold_entropy.HoldEntropy`).
    """

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return weights (B, T), 0 at masked positions, without gradient."""
        ...


def fit_normaliser(weighting: Weighting, normaliser: str | None, loss: str) -> Weighting:
    """Tell a scheme that asks for it what the engine's loss divides a token by; another scheme comes back as it is.

    Args:
        weighting: the scheme.
        normaliser: ``completion``, ``token``, or ``None`` for a loss that does neither.
        loss: the engine's option and its value, for the sentence.

    Raises:
        ValueError: the loss does neither, or the scheme was built with another normaliser.

    """
    if not hasattr(weighting, "normaliser"):
        return weighting
    name = type(weighting).__name__
    if normaliser is None:
        raise ValueError(
            f"weighting {name} is the gradient of a loss that averages the tokens of each completion, or all tokens "
            f"alike; {loss} does neither."
        )
    if weighting.normaliser not in (None, normaliser):
        raise ValueError(f"weighting {name} has normaliser={weighting.normaliser!r}, and {loss} needs {normaliser!r}.")
    return cast(Weighting, dataclasses.replace(cast(Any, weighting), normaliser=normaliser))
