"""Covariance-neutral weights whose kappa a controller sets each step, to hold the policy's entropy at a target."""

import math
from dataclasses import dataclass
from typing import ClassVar

from covgrpo.core.entropy_controller import KAPPA_BOUND, EntropyController
from covgrpo.core.weighting.neutral import Neutral


@dataclass(frozen=True)
class HoldEntropy(Neutral):
    """``hold_entropy``: ``neutral`` with kappa from :class:`EntropyController`, which an engine runs along.

    A scheme with a method ``controller`` asks for this: the engine lets the controller observe each rollout batch and
    weighs the batch with ``dataclasses.replace(scheme, kappa=controller.kappa)``. Called by itself it is ``neutral``.

    Args:
        kappa: of the first steps; 1 is what first-order theory says holds the entropy.
        target: entropy to hold, nats a token; default: ``fraction`` of its mean over the first steps.
        fraction: see ``target``.
        bound: kappa stays in [-bound, bound].
        floor: the entropy is kept from falling below the target, and the weights never lower it.

    """

    target: float | None = None
    fraction: float = 1.0
    bound: float = KAPPA_BOUND
    floor: bool = False

    name: ClassVar[str] = "hold_entropy"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        for field in ("target", "fraction", "bound"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{self.name}: {field} must be a finite number above 0, got {value}.")
        if self.target is not None and self.fraction != type(self).fraction:
            raise ValueError(f"{self.name}: give target ({self.target}) or fraction ({self.fraction}), not both.")
        if abs(self.kappa) > self.bound:
            raise ValueError(f"{self.name}: kappa ({self.kappa}) lies outside of bound ({self.bound}).")

    def controller(self) -> EntropyController:
        """Return a new controller."""
        return EntropyController(self.target, self.fraction, self.bound, self.floor, self.kappa)
