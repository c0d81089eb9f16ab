"""The name of the verifiers in verl's config; the code is in ``covgrpo.engines.verl.rewards``.

reward.custom_reward_function.path=pkg://covgrpo.verl.rewards reward.custom_reward_function.name=compute_score
"""

from covgrpo.engines.verl.rewards import compute_score, verl_row

__all__ = ["compute_score", "verl_row"]
