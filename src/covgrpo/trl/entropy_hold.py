"""A scheme that holds the entropy, in the TRL trainer: measured over all processes, one kappa on all of them."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from covgrpo.core import token_covariance
from covgrpo.engines.entropy import EntropyHold, measure_entropy
from covgrpo.trl.gathering import gather_rows, gather_tokens
from covgrpo.trl.rollout import Rollout


class TrainerEntropyHold(EntropyHold):
    """:class:`EntropyHold` for a trainer whose processes each hold some rows of the rollout batch.

    Args:
        accelerator: of the trainer.
        scheme: see :class:`EntropyHold`.
        scope: the weighting's, ``group`` or ``batch``.

    """

    def __init__(self, accelerator: Accelerator, scheme: Any, scope: str):
        super().__init__(scheme)
        self.accelerator, self.scope = accelerator, scope

    def observe_rollout(self, rollout: Rollout) -> None:
        """Take in a rollout batch, this process's rows, with their log-probs and entropies."""
        rows = gather_rows(self.accelerator, rollout, rollout.group_B, rollout.centred_logps_BT)
        entropies = gather_tokens(self.accelerator, rollout.known_entropies_BT)
        ids = rows["ids"] if self.scope == "group" else torch.zeros_like(rows["ids"])
        c = token_covariance(rows["logps"], rows["advantages"], rows["mask"], ids).cpu().double()
        H, variance = measure_entropy(entropies, rows["mask"], rows["ids"])
        mean_c = (c.sum() / rows["mask"].sum().clamp(min=1).cpu()).item()
        numbers = torch.tensor([H, variance, mean_c, self.reached], dtype=torch.float64)
        if self.accelerator.num_processes > 1:  # sums may differ in the last bit between devices; kappa must not
            numbers = broadcast(numbers.to(rollout.mask_BT.device))
        self.observe(*numbers.tolist())
