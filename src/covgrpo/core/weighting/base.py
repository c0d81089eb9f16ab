"""What a token weighting is."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from covgrpo.core.noise import token_noise
from covgrpo.core.tokens import Tokens, evaluate


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
    field ``kappa`` and a method ``controller`` (see :class:`covgrpo.core.weighting.hold_entropy.HoldEntropy`). One that
    says ``needs_entropies = True`` is handed log-probs plus entropies in the place of log-probs, where the engine knows
    these (:func:`covgrpo.core.covariance.centred_logps`).
    """

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return weights (B, T), 0 at masked positions, without gradient."""
        ...


class ColumnWeighting(ABC):
    """A scheme written on the columns of the N valid tokens: :meth:`weigh` is its formula."""

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return w (B, T)."""
        return evaluate(self.weigh, logps, advantages, mask, group_ids)

    @abstractmethod
    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w (N,)."""


class DrawingWeighting(ABC):
    """A scheme on columns that draws at random, or breaks ties so."""

    needs_noise: ClassVar[bool] = True

    def __call__(
        self,
        logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        group_ids: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return w (B, T); ``noise`` (B, T): the numbers that decide the draw, by default those of seed 0."""
        tokens = Tokens(logps, advantages, mask, group_ids)
        return tokens.fill(self.weigh(tokens, noise_column(tokens, noise)))

    @abstractmethod
    def weigh(self, tokens: Tokens, noise: Tensor) -> Tensor:
        """Return w (N,), given noise (N,)."""


def noise_column(tokens: Tokens, noise: Tensor | None) -> Tensor:
    """Return the noise (B, T) at the valid tokens, by default that of seed 0: (N,)."""
    if noise is None:
        num_rows, length = tokens.mask.shape
        noise = token_noise(0, torch.arange(num_rows, device=tokens.mask.device), length)
    return tokens.column(noise)


class WeightingError(ValueError):
    """A batch that a scheme cannot weigh, or a scheme that returns no weights; one sentence."""


def check_weights(weighting: Weighting, weights: object, mask: Tensor) -> Tensor:
    """Return what a scheme has returned as weights, if it is some, with 0 where masked.

    Args:
        weighting: the scheme, for the sentence.
        weights: what it returned.
        mask: (B, T) bool or 0/1; valid tokens.

    Raises:
        WeightingError: no floating-point tensor of shape (B, T), or a number at a valid token that is not finite.

    """
    name = getattr(weighting, "__name__", type(weighting).__name__)
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        found = f"a tensor of {weights.dtype}" if isinstance(weights, Tensor) else f"a {type(weights).__name__}"
        raise WeightingError(f"weighting {name} returned {found}; it must return a floating-point tensor (B, T).")
    if weights.shape != mask.shape:
        shape, needed = tuple(weights.shape), tuple(mask.shape)
        raise WeightingError(f"weighting {name} returned weights of shape {shape}; it must be (B, T) = {needed}.")
    bad = mask.bool() & ~weights.isfinite()
    if bad.any():
        row, position = bad.nonzero()[0].tolist()
        value = weights[row, position].item()
        raise WeightingError(
            f"weighting {name} returned {value} at row {row}, position {position}, a valid token "
            f"({int(bad.sum())} of {int(mask.sum())} are not finite)."
        )
    return weights.masked_fill(~mask.bool(), 0)


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
