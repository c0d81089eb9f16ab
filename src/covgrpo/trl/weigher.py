"""Where the method enters TRL: advantages of a batch (B,) -> token weights (B, T).

The statistics are taken over the rows of all processes and before anything depends on the micro-batch: group statistics
on the generation batch before it is shuffled and split, batch statistics on all micro-batches of the optimizer step
before the first of them is used (see ``step_plan.py``).
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from covgrpo.core import Weighting, check_weights, token_covariance
from covgrpo.core.noise import token_noise
from covgrpo.core.weighting.none import NoWeighting
from covgrpo.engines.entropy import weighs_by_entropies
from covgrpo.trl.entropy_hold import TrainerEntropyHold
from covgrpo.trl.gathering import gather_rows, gather_tokens, local_part
from covgrpo.trl.rollout import Rollout

# Rewards of one group that differ by no more than this fraction of the largest are equal (sums in float32).
REWARD_NOISE = 1e-6


class Weigher:
    """Weighs rollouts by a scheme.

    Args:
        accelerator: of the trainer.
        weighting: the scheme.
        scope: ``group`` or ``batch``.
        seed: of a scheme that draws.

    """

    def __init__(self, accelerator: Accelerator, weighting: Weighting, scope: str, seed: int):
        self.accelerator, self.weighting, self.scope, self.seed = accelerator, weighting, scope, seed
        self.active = not isinstance(weighting, NoWeighting)
        self.needs_entropies = weighs_by_entropies(weighting)
        steered = hasattr(weighting, "controller")
        self.entropy_hold = TrainerEntropyHold(accelerator, weighting, scope) if steered else None

    def steer(self, rollout: Rollout) -> None:
        """Let a scheme that holds the entropy take in a rollout batch before it is weighed."""
        if self.entropy_hold is not None:
            self.entropy_hold.observe_rollout(rollout)
            self.weighting = self.entropy_hold.weighting

    def weigh(self, rollout: Rollout, ids: Tensor) -> None:
        """Fill in covariances, weights and penalties; rows of equal ``ids`` (B,), on any process, share statistics."""
        logps = rollout.known_logps_BT
        rows = gather_rows(self.accelerator, rollout, ids, logps)
        arguments = [rows[name] for name in ("logps", "advantages", "mask", "ids")]
        c = token_covariance(*arguments)
        if getattr(self.weighting, "needs_noise", False):
            arguments.append(token_noise(self.seed, rows["row"], rows["mask"].shape[1]))
        if self.needs_entropies:
            arguments[0] = gather_tokens(self.accelerator, rollout.centred_logps_BT)
        weights = check_weights(self.weighting, self.weighting(*arguments), rows["mask"])
        if self.entropy_hold is not None:
            self.entropy_hold.weighed(token_covariance(*arguments[:4]), weights, rows["mask"])
        rollout.c_BT, rollout.weights_BT = (local_part(self.accelerator, x, logps) for x in (c, weights))
        if hasattr(self.weighting, "penalties"):
            rollout.penalties_BT = local_part(self.accelerator, self.weighting.penalties(*arguments), logps)

    def weigh_together(self, micro_batches: Sequence[dict[str, Any]]) -> None:
        """Weigh micro-batches of TRL's as one, but leave those as they are that an earlier step has weighed."""
        parts = [Rollout.read(micro) for micro in micro_batches]
        rollouts = [part for part in parts if part is not None]
        if all(rollout.weights_BT is not None for rollout in rollouts):
            return
        whole = Rollout.join(rollouts)
        self.weigh(whole, torch.zeros_like(whole.group_B))
        start = 0
        for micro, rollout in zip(micro_batches, rollouts, strict=True):
            end = start + len(rollout.row_B)
            if rollout.weights_BT is None:
                for name, values in whole.take(slice(start, end), rollout.mask_BT.shape[1]).items():
                    setattr(rollout, name, values)
                rollout.write(micro)
            start = end


def attach_covariance(accelerator: Accelerator, rollout: Rollout) -> None:
    """Fill in the covariances over groups where the log-probs are known: a group's rows may be split afterwards."""
    if rollout.logps_BT is None or rollout.advantages_B.dim() > 1:
        return
    rows = gather_rows(accelerator, rollout, rollout.group_B, rollout.logps_BT)
    c = token_covariance(*(rows[name] for name in ("logps", "advantages", "mask", "ids")))
    rollout.c_BT = local_part(accelerator, c, rollout.logps_BT)


def constant_reward_rows(rewards: Tensor, reward_weights: Tensor, num_generations: int) -> Tensor:
    """Mark the rows of groups whose rewards are all equal: their advantage is 0, also where rounding made it 1e-5.

    Args:
        rewards: (B', F) of the F reward functions, over all processes; NaN where one has none.
        reward_weights: (F,).
        num_generations: neighbouring rows of a group.

    Returns:
        (B',) bool.

    """
    total = (rewards * reward_weights.to(rewards.device)).nansum(dim=1)
    unscorable, shape = rewards.isnan().all(dim=1), (-1, num_generations)
    highest = total.masked_fill(unscorable, -torch.inf).view(shape).amax(dim=1)
    lowest = total.masked_fill(unscorable, torch.inf).view(shape).amin(dim=1)
    constant = highest - lowest <= REWARD_NOISE * torch.maximum(highest.abs(), lowest.abs())
    return constant.repeat_interleave(num_generations)
