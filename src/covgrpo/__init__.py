"""covgrpo: covariance-aware GRPO with Gaussian-kernel advantage reweighting (arXiv 2605.11538).

The names below load on first use, so that verifier workers and ``covgrpo --version`` start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "token_covariance": "covgrpo.core",
    "gaussian_weights": "covgrpo.core",
    "gaussian_through_weights": "covgrpo.core",
    "neutral_weights": "covgrpo.core",
    "WEIGHTINGS": "covgrpo.core",
    "get_weighting": "covgrpo.core",
}
__all__ = [
    "WEIGHTINGS",
    "__version__",
    "gaussian_through_weights",
    "gaussian_weights",
    "get_weighting",
    "neutral_weights",
    "token_covariance",
]

if TYPE_CHECKING:
    from covgrpo.core import (
        WEIGHTINGS,
        gaussian_through_weights,
        gaussian_weights,
        get_weighting,
        neutral_weights,
        token_covariance,
    )


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from covgrpo.packages import require

        require("covgrpo", "torch")
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'covgrpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
