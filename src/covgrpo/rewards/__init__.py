"""Reward functions as TRL calls them: ``f(prompts, completions, **columns) -> list[float]``."""

from covgrpo.rewards.correctness import CorrectnessReward, FormatReward, completion_text
from covgrpo.rewards.guard import GuardedReward, guarded

__all__ = ["CorrectnessReward", "FormatReward", "GuardedReward", "completion_text", "guarded"]
