"""TRL engine: subclasses of ``GRPOTrainer`` and ``GRPOConfig``. Swap the two names in a TRL script."""

from covgrpo.trl.config import CovGRPOConfig
from covgrpo.trl.methods import METHODS
from covgrpo.trl.trainer import CovGRPOTrainer

__all__ = ["METHODS", "CovGRPOConfig", "CovGRPOTrainer"]
