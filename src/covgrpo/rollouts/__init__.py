"""Rollouts: completions sampled from a model, with their log-probs and entropies."""

from covgrpo.rollouts.sampling import Samples, sample
from covgrpo.rollouts.settings import SamplingSettings

__all__ = ["Samples", "SamplingSettings", "sample"]
