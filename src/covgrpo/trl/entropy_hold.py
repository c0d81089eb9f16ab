"""Runs the controller of a scheme that holds the entropy, and tells how it does."""

import dataclasses
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor

from covgrpo.core import Weighting, token_covariance
from covgrpo.core.entropy_controller import EntropyController
from covgrpo.engines.entropy import measure_entropy
from covgrpo.trl.gathering import gather_rows


class EntropyHold:
    """Keeps kappa for a scheme with a method ``controller``: one rollout batch, one kappa, on every process the same.

    Args:
        trainer: whose processes share the batch.
        scheme: a frozen dataclass with a field ``kappa``.

    """

    def __init__(self, trainer: Any, scheme: Any):
        self.trainer, self.scheme = trainer, scheme
        self.controller: EntropyController = scheme.controller()
        self._reached: list[tuple[float, float]] = []  # mean(w c) and tokens of the rollout batch's parts

    @property
    def weighting(self) -> Weighting:
        """The scheme with the kappa of the latest rollout batch."""
        weighting: Weighting = dataclasses.replace(self.scheme, kappa=self.controller.kappa)
        return weighting

    def observe(self, batch: dict[str, Any]) -> None:
        """Take in a rollout batch, (B, ...) on each process: with ``rollout_logps`` and ``row_key``.

        The sampler has measured the entropies. Where something else sampled, -log-probs stand for them.
        """
        trainer, logps = self.trainer, batch["rollout_logps"]
        self._advance()
        group = batch["row_key"] // trainer.num_generations
        rows = gather_rows(trainer.accelerator, batch, logps, group)
        entropies = gather_rows(trainer.accelerator, batch, batch.get("rollout_entropies", -logps), group)["logps"]
        ids = rows["ids"] if trainer.args.weighting_scope == "group" else torch.zeros_like(rows["ids"])
        c = token_covariance(rows["logps"], rows["advantages"], rows["mask"], ids).double()
        H, variance = measure_entropy(entropies, rows["mask"], rows["ids"])
        tokens = rows["mask"].sum().clamp(min=1)
        measured = torch.tensor([H, variance, (c.sum() / tokens).item()], dtype=torch.float64)
        # Sums may differ in the last bit between devices; kappa must not.
        measured = broadcast(measured.to(logps.device)) if trainer.accelerator.num_processes > 1 else measured
        self.controller.observe(*measured.tolist())

    def weighed(self, c: Tensor, weights: Tensor, mask: Tensor) -> None:
        """Note what the weights (B', T') of a part of the rollout batch, of all processes, reach."""
        tokens = float(mask.sum())
        if tokens:
            self._reached.append(((c.double() * weights.double()).sum().item() / tokens, tokens))

    def metrics(self) -> dict[str, float]:
        """``hold/*`` of docs/metrics.md."""
        controller = self.controller
        found = {"hold/kappa": controller.kappa, "hold/entropy": controller.entropy}
        if controller.target is not None:
            found["hold/target"] = controller.target
        if self._reached:
            found["hold/reached"] = self._mean_reached()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return JSON's types; includes what the next observation needs of this batch."""
        return {"controller": self.controller.state_dict(), "reached": self._reached}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is another version's.

        """
        self.controller = EntropyController.from_state(state["controller"])
        self._reached = [(mean, tokens) for mean, tokens in state["reached"]]

    def _advance(self) -> None:
        """Tell the controller what the updates since the last rollout batch were weighted to."""
        if self._reached:
            reached = torch.tensor([self._mean_reached()], dtype=torch.float64, device=self.trainer.accelerator.device)
            reached = broadcast(reached) if self.trainer.accelerator.num_processes > 1 else reached
            self.controller.advance(reached.item())
        self._reached = []

    def _mean_reached(self) -> float:
        return sum(mean * tokens for mean, tokens in self._reached) / sum(tokens for _, tokens in self._reached)
