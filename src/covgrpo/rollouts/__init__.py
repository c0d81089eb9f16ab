"""Rollouts: completions sampled from a model, with their log-probs and entropies."""

from covgrpo.rollouts.gate import why_not_sampled
from covgrpo.rollouts.sampling import Samples, sample
from covgrpo.rollouts.settings import SamplingSettings

__all__ = ["Samples", "SamplingSettings", "sample", "why_not_sampled"]
