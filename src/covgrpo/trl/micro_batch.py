"""The micro-batch that a loss is computed on: what scoring needs to know of it, and what scoring leaves there."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from covgrpo.trl.penalty import penalise
from covgrpo.trl.rollout import Rollout
from covgrpo.trl.scorer import RowsToScore, Scores


def only_advantages_act(trainer: Any) -> bool:
    """Whether a completion without advantage or penalty adds nothing to the loss of a ``GRPOTrainer``."""
    other_terms = trainer.beta != 0.0 or trainer._entropy_bonus_enabled or trainer.aux_loss_enabled
    return not other_terms and bool(trainer.top_entropy_quantile == 1.0)


@dataclass
class MicroBatch:
    """A micro-batch under TRL's loss.

    Args:
        inputs: TRL's dict, as the loss reads it.
        rollout: the rows' part of it.
        on_policy: nothing has been updated since the rows were sampled.
        rows: which of them need a gradient; ``None``: all.
        logps_BT: (B, T) scored, without gradient; ``None`` before.
        entropies_BT: likewise.

    """

    inputs: dict[str, Any]
    rollout: Rollout
    on_policy: bool
    rows: RowsToScore | None = None
    logps_BT: Tensor | None = None
    entropies_BT: Tensor | None = None

    @classmethod
    def of(cls, inputs: dict[str, Any], global_step: int) -> "MicroBatch | None":
        """Begin with TRL's dict; ``None`` where it is no rollout to train on."""
        rollout = Rollout.read(inputs)
        if rollout is None:
            return None
        micro = cls(inputs, rollout, on_policy=int(rollout.step) == global_step)
        if micro.penalised:  # a copy: the advantages of this micro-batch are needed again by later updates
            micro.inputs = dict(inputs)
        return micro

    @property
    def penalised(self) -> bool:
        """Whether a penalty acts.

        On-policy log pi = log pi_old, so the penalty is 0. It must not be computed: |x| has slope +-1 beside 0, and two
        scoring passes differ by rounding.
        """
        return self.rollout.penalties_BT is not None and "old_per_token_logps" in self.inputs and not self.on_policy

    def leave_out_idle_rows(self) -> None:
        """Set the rows that the loss needs; one without advantage or penalty adds exactly 0 to it and its gradient."""
        rollout, advantages = self.rollout, self.inputs["advantages"]
        active = advantages != 0 if advantages.dim() == 1 else (advantages != 0).any(dim=1)
        if rollout.penalties_BT is not None and not self.on_policy:
            active = active | (rollout.penalties_BT != 0).any(dim=1)
        if not active.any():
            # One row stays, so that every parameter gets its (zero) gradient and no rank waits for another.
            active[self.inputs["completion_mask"].sum(dim=1).argmin()] = True
        known = self.on_policy and rollout.entropies_BT is not None
        self.rows = RowsToScore(
            active=active,
            logps=rollout.logps_BT if known else None,
            entropies=rollout.entropies_BT if known else None,
        )

    def scored(self, logps: Tensor, entropies: Tensor | None, aux_loss: Tensor | None) -> Scores:
        """Take in the policy's scores, and hand them on as the loss has to take them."""
        if not torch.is_grad_enabled():
            return logps, entropies, aux_loss
        penalties = self.rollout.penalties_BT
        if self.penalised and penalties is not None:
            logps = penalise(self.inputs, penalties, logps)
        if entropies is not None:
            self.logps_BT, self.entropies_BT = logps.detach(), entropies.detach()
        return logps, entropies, aux_loss
