"""Rollouts: completions sampled from a model, with their log-probs and entropies."""

from covgrpo.rollouts.sampling import Samples, SamplingSettings, sample

__all__ = ["Samples", "SamplingSettings", "sample"]
