"""A floor under the policy's entropy: plain GRPO above it, covariance-neutral weights where it is reached."""

from dataclasses import dataclass
from typing import ClassVar

from covgrpo.core.weighting.hold_entropy import HoldEntropy


@dataclass(frozen=True)
class EntropyFloor(HoldEntropy):
    """``entropy_floor``: ``hold_entropy`` from below only, at three quarters of the start's entropy.

    The controller asks for the covariance r that brings the entropy to the target, and for no more than GRPO's:

    mean(w c) = min(r, mean(c)),    kappa = 1 - mean(w c) / mean(c)

    Above the floor r > mean(c), so kappa is 0 and every weight 1. The first steps, which measure where the entropy
    starts, run at kappa 1. Compared with other methods in docs/results.md.

    Args:
        kappa: of the first steps.
        target: the floor, nats a token; default: ``fraction`` of the mean entropy over the first steps.
        fraction: see ``target``.
        bound: kappa stays in [-bound, bound].
        floor: False: the entropy is held from above as well.

    """

    fraction: float = 0.75
    floor: bool = True

    name: ClassVar[str] = "entropy_floor"
