"""TRL engine: subclasses of ``GRPOTrainer`` and ``GRPOConfig``. Swap the two names in a TRL script.

The names load on first use, so that the methods can be looked up without TRL.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from covgrpo.packages import require

_EXPORTS = {
    "METHODS": "covgrpo.trl.methods",
    "CovGRPOConfig": "covgrpo.trl.config",
    "CovGRPOTrainer": "covgrpo.trl.trainer",
}
__all__ = ["METHODS", "CovGRPOConfig", "CovGRPOTrainer"]

if TYPE_CHECKING:
    from covgrpo.trl.config import CovGRPOConfig
    from covgrpo.trl.methods import METHODS
    from covgrpo.trl.trainer import CovGRPOTrainer


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        if name != "METHODS":
            require("covgrpo.trl", "trl", "transformers", "accelerate", "datasets")
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'covgrpo.trl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
