"""The method as pure tensors. Imports only torch and knows no trainer."""

from covgrpo.core.covariance import token_covariance
from covgrpo.core.weighting import WEIGHTINGS, get_weighting
from covgrpo.core.weighting.base import Weighting, WeightingError, check_weights, fit_normaliser
from covgrpo.core.weighting.gaussian import gaussian_weights
from covgrpo.core.weighting.gaussian_through import gaussian_through_weights
from covgrpo.core.weighting.neutral import neutral_weights

__all__ = [
    "WEIGHTINGS",
    "Weighting",
    "WeightingError",
    "check_weights",
    "fit_normaliser",
    "gaussian_through_weights",
    "gaussian_weights",
    "get_weighting",
    "neutral_weights",
    "token_covariance",
]
