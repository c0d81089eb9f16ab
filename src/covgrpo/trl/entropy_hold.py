"""A scheme that holds the entropy, in the TRL trainer: measured over all processes, one kappa on all of them."""

from typing import Any

import torch
from accelerate.utils import broadcast

from covgrpo.core import token_covariance
from covgrpo.engines.entropy import EntropyHold, measure_entropy
from covgrpo.trl.gathering import gather_rows


class TrainerEntropyHold(EntropyHold):
    """:class:`EntropyHold` for a trainer whose processes each hold some rows of the rollout batch."""

    def __init__(self, trainer: Any, scheme: Any):
        super().__init__(scheme)
        self.trainer = trainer

    def observe_batch(self, batch: dict[str, Any]) -> None:
        """Take in a rollout batch, (B, ...) on each process: with ``rollout_logps`` and ``row_key``.

        Our sampler has measured the entropies. Where something else sampled, -log-probs stand for them.
        """
        trainer, logps = self.trainer, batch["rollout_logps"]
        group = batch["row_key"] // trainer.num_generations
        rows = gather_rows(trainer.accelerator, batch, logps, group)
        entropies = gather_rows(trainer.accelerator, batch, batch.get("rollout_entropies", -logps), group)["logps"]
        ids = rows["ids"] if trainer.args.weighting_scope == "group" else torch.zeros_like(rows["ids"])
        c = token_covariance(rows["logps"], rows["advantages"], rows["mask"], ids).double()
        H, variance = measure_entropy(entropies, rows["mask"], rows["ids"])
        mean_c = (c.sum() / rows["mask"].sum().clamp(min=1)).item()
        numbers = torch.tensor([H, variance, mean_c, self.reached], dtype=torch.float64, device=logps.device)
        if trainer.accelerator.num_processes > 1:  # sums may differ in the last bit between devices; kappa must not
            numbers = broadcast(numbers)
        self.observe(*numbers.tolist())
