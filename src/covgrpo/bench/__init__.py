"""Measure a training step: ours beside stock TRL's, alternating, on the same prompts and the same rollouts."""

from covgrpo.bench.case import SWEEPS, BenchCase, sweep
from covgrpo.bench.measure import BenchResult, measure

__all__ = ["SWEEPS", "BenchCase", "BenchResult", "measure", "sweep"]
