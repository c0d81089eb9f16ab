"""Scope ``batch``: statistics over all valid tokens of one optimizer step, over its micro-batches and all processes.

An optimizer step may use part of a generation batch, one, or several, so its micro-batches are prepared before the
first of them is trained on. The policy does not change in between: the rollouts are those that TRL would draw.
"""

from typing import Any

import torch
from trl import GRPOTrainer

from covgrpo.trl.weighting import TokenWeightedAdvantages

_NEEDED = ("rollout_logps", "advantages", "completion_mask", "tool_mask", "row_key")
_RESULTS = ("advantages", "token_weights", "token_cov", "kl_penalty")


class OptimizerStepWindows(TokenWeightedAdvantages, GRPOTrainer):
    """Looks at a whole optimizer step at once where the weighting's scope asks for it."""

    _window: list[Any]  # the dataloader's batches of the optimizer step
    _window_start: int  # TRL's count of micro-batches at its beginning
    _planned: list[dict[str, Any]] | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Fetch the batches of an optimizer step, and remember them."""
        samples, num_items = super().get_batch_samples(*args, **kwargs)
        self._window, self._window_start, self._planned = list(samples), self._step, None
        return samples, num_items

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if not (self.model.training and self._weighs and self.args.weighting_scope == "batch"):
            return super()._prepare_inputs(generation_batch)
        if self._planned is None:
            self._planned = self._plan()
        return self._planned[self._step - self._window_start]

    def _plan(self) -> list[dict[str, Any]]:
        """Prepare the micro-batches of this optimizer step and weigh those that no earlier step has weighed."""
        planned = []
        try:
            for offset, generation_batch in enumerate(self._window):
                self._step = self._window_start + offset
                planned.append(super()._prepare_inputs(generation_batch))
        finally:
            self._step = self._window_start
        # A micro-batch comes again with `num_iterations` above 1; its weights stay those of its first step.
        distinct = list({id(micro): micro for micro in planned}.values())
        if any("token_weights" not in micro for micro in distinct):
            self._weigh_together(distinct)
        return planned

    def _weigh_together(self, micro_batches: list[dict[str, Any]]) -> None:
        for micro in micro_batches:
            micro.setdefault("unweighted", micro["advantages"])
        names = [name for name in _NEEDED if name in micro_batches[0]]
        length = max(micro["rollout_logps"].shape[1] for micro in micro_batches)
        whole = {name: torch.cat([_padded(micro[name], length) for micro in micro_batches]) for name in names}
        whole["advantages"] = torch.cat([micro["unweighted"] for micro in micro_batches])
        self._weigh(whole, torch.zeros_like(whole["row_key"]))
        parts = {
            name: whole[name].split([len(micro["unweighted"]) for micro in micro_batches])
            for name in _RESULTS
            if name in whole
        }
        for index, micro in enumerate(micro_batches):
            if "token_weights" not in micro:  # else its first step has decided
                width = micro["rollout_logps"].shape[1]
                micro.update({name: rows[index][:, :width] for name, rows in parts.items()})


def _padded(values: torch.Tensor, length: int) -> torch.Tensor:
    """Pad (B, T) on the right to ``length``; (B,) stays."""
    return values if values.dim() == 1 else torch.nn.functional.pad(values, (0, length - values.shape[1]))
