"""The method as pure tensors. Imports only torch and knows no trainer."""

from covgrpo.core.covariance import token_covariance
from covgrpo.core.weighting import WEIGHTINGS, Weighting, gaussian_through_weights, gaussian_weights, get_weighting

__all__ = [
    "WEIGHTINGS",
    "Weighting",
    "gaussian_through_weights",
    "gaussian_weights",
    "get_weighting",
    "token_covariance",
]
