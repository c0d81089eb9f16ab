"""Token weightings: one file a scheme, one visible registry.

A user's own scheme needs no registration: name it by import path, ``get_weighting("my_package.my_module:MyScheme")``.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, cast

from covgrpo.core.weighting.base import Weighting
from covgrpo.core.weighting.clip_cov import ClipCov
from covgrpo.core.weighting.delight import Delight
from covgrpo.core.weighting.entropy_floor import EntropyFloor
from covgrpo.core.weighting.gaussian import Gaussian
from covgrpo.core.weighting.gaussian_centred import GaussianCentred
from covgrpo.core.weighting.gaussian_mad import GaussianMad
from covgrpo.core.weighting.gaussian_one_sided import GaussianOneSided
from covgrpo.core.weighting.gaussian_per_sign import GaussianPerSign
from covgrpo.core.weighting.gaussian_raw import GaussianRaw
from covgrpo.core.weighting.gaussian_through import GaussianThrough
from covgrpo.core.weighting.hold_entropy import HoldEntropy
from covgrpo.core.weighting.kl_cov import KLCov
from covgrpo.core.weighting.neutral import Neutral
from covgrpo.core.weighting.neutral_common import NeutralCommon
from covgrpo.core.weighting.none import NoWeighting
from covgrpo.core.weighting.positive_only import PositiveOnly
from covgrpo.core.weighting.prob import Probability

WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "gaussian": Gaussian,
    "gaussian_through": GaussianThrough,
    "none": NoWeighting,
    "clip_cov": ClipCov,
    "kl_cov": KLCov,
    "prob": Probability,
    "neutral": Neutral,
    "hold_entropy": HoldEntropy,
    "entropy_floor": EntropyFloor,
    # Candidates: to keep what GRPO learns and lose less diversity.
    "gaussian_per_sign": GaussianPerSign,
    "neutral_common": NeutralCommon,
    "delight": Delight,
    "positive_only": PositiveOnly,
    # Ablations of the paper's own choices.
    "gaussian_raw": GaussianRaw,
    "gaussian_centred": GaussianCentred,
    "gaussian_one_sided": GaussianOneSided,
    "gaussian_mad": GaussianMad,
}


def get_weighting(name: str, **parameters: Any) -> Weighting:
    """Build a scheme by its registered name, or by import path ``module:Class``.

    Args:
        name: a key of ``WEIGHTINGS``, or ``package.module:Name`` of a class, of an instance, or of a function: one
            whose arguments begin with ``logps`` is the scheme itself, another one takes ``parameters`` and returns it.
        **parameters: the scheme's hyperparameters.

    Raises:
        ValueError: an unknown name (the nearest is suggested), a path that cannot be imported or is no scheme, or a
            parameter that the scheme does not have.

    """
    build = _import(name) if ":" in name else WEIGHTINGS.get(name)
    if build is None:
        near = get_close_matches(name, WEIGHTINGS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(WEIGHTINGS)
        raise ValueError(f"unknown weighting {name!r}; known: {known}, or module:Class.{hint}")
    if _is_scheme(build):
        if parameters:
            raise ValueError(f"weighting {name!r} is no class, so it does not take {parameters!r}.")
        return cast(Weighting, build)
    if name in WEIGHTINGS and is_dataclass(build):
        _check_numbers(name, build, parameters)
    try:
        scheme = build(**parameters)
    except TypeError as error:
        raise ValueError(f"weighting {name!r} does not take {parameters!r}: {error}") from error
    if not callable(scheme):
        raise ValueError(f"weighting {name!r} is a {type(scheme).__name__}, which cannot be called with log-probs.")
    return scheme


def _check_numbers(name: str, build: Any, parameters: dict[str, Any]) -> None:
    """Refuse text, lists and truth values for what is a number by default."""
    for field in fields(build):
        value = parameters.get(field.name, field.default)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(field.default, float) and not numeric:
            raise ValueError(f"weighting {name!r}: {field.name} must be a number, not {value!r}.")


def _is_scheme(found: object) -> bool:
    """Whether this weighs itself: an instance, or a function whose arguments begin with ``logps``."""
    if isinstance(found, type) or not callable(found):
        return False
    if not inspect.isroutine(found):
        return True
    return next(iter(inspect.signature(found).parameters), "") == "logps"


def _import(path: str) -> Callable[..., Weighting]:
    module, _, attribute = path.partition(":")
    if module.startswith("."):
        raise ValueError(f"weighting {path!r} cannot be imported: its module is relative to nothing.")
    try:
        found: Callable[..., Weighting] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"weighting {path!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"weighting {path!r} is a {type(found).__name__}, not a class, a function or a scheme.")
    return found
