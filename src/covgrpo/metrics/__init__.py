"""Metrics: what an optimizer step did to which tokens, in numbers. Pure tensors; imports torch and the core alone."""

from covgrpo.metrics.damped import most_damped
from covgrpo.metrics.histograms import COVARIANCE_EDGES, WEIGHT_EDGES, histograms
from covgrpo.metrics.summary import SIDE_FRACTIONS, WEIGHT_FRACTIONS, summarise, summarise_weighting
from covgrpo.metrics.tokens import StepTokens

__all__ = [
    "COVARIANCE_EDGES",
    "SIDE_FRACTIONS",
    "WEIGHT_EDGES",
    "WEIGHT_FRACTIONS",
    "StepTokens",
    "histograms",
    "most_damped",
    "summarise",
    "summarise_weighting",
]
