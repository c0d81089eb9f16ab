"""Where the method enters TRL: the advantages of a generation batch, (B,), become (B, T), weighted token by token.

TRL's `_compute_loss` takes advantages of shape (B, T) as they are, so clipping, KL penalty and loss normalisation stay
its own. The statistics are taken before the batch is shuffled and split, over the rows of all processes: they do not
depend on micro-batch size, gradient accumulation, shuffling or number of processes.
"""

from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from covgrpo.core import get_weighting, token_covariance
from covgrpo.core.summary import summarise
from covgrpo.core.weighting import NoWeighting
from covgrpo.trl.rollouts import SharedPromptSampling

# Rewards of one group that differ by no more than this fraction of the largest are equal (sums in float32).
REWARD_NOISE = 1e-6

_MULTIMODAL = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


class TokenWeightedAdvantages(SharedPromptSampling, GRPOTrainer):
    """Multiplies the advantages by the token weights, once per rollout batch."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.weighting = get_weighting(self.args.weighting, **(self.args.weighting_kwargs or {}))
        window = self.args.gradient_accumulation_steps
        if self.args.weighting_scope == "batch" and self.args.steps_per_generation % window:
            raise ValueError(
                f"weighting_scope='batch' needs all rollouts of an optimizer step at once: steps_per_generation "
                f"({self.args.steps_per_generation}) must be a multiple of gradient_accumulation_steps ({window})."
            )

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards_per_func: Tensor = super()._calculate_rewards(*args, **kwargs)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._samples = None
        batch = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return batch
        self._attach_rollout_scores(batch)
        if self._weighs:
            batch["advantages"] = batch["advantages"].masked_fill(self._constant_reward_rows(len(inputs)), 0.0)
        if self.args.weighting_scope == "group":
            rows = len(batch["advantages"])
            start = self.accelerator.process_index * rows
            group_ids = torch.arange(start, start + rows, device=batch["advantages"].device) // self.num_generations
            self._weigh(batch, group_ids)
        elif self._weighs:
            batch["rollout_logps"] = self._rollout_logps(batch)
        return batch

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self.args.weighting_scope == "batch" and self._buffered_inputs is not before:
            self._weigh_optimizer_steps(self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    @property
    def _weighs(self) -> bool:
        return not isinstance(self.weighting, NoWeighting)

    def _attach_rollout_scores(self, batch: dict[str, Any]) -> None:
        """Let the sampler's log-probs and entropies travel with the rows; the loss and the weights reuse them."""
        if self._samples is None:
            return
        batch["rollout_logps"] = batch["sampling_per_token_logps"]
        if not self.tools:  # with tools a completion is made in several turns
            entropies = torch.zeros_like(batch["rollout_logps"])
            for row, values in enumerate(self._samples.entropies):
                entropies[row, : len(values)] = torch.tensor(values)
            batch["rollout_entropies"] = entropies

    def _constant_reward_rows(self, num_rows: int) -> Tensor:
        """Rows (B,) of groups whose rewards are all equal: their advantage is 0, also where rounding made it 1e-5."""
        rewards = self._rewards_per_func
        if self.multi_objective_aggregation != "sum_then_normalize":
            return torch.zeros(num_rows, dtype=torch.bool, device=rewards.device)
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        unscorable = rewards.isnan().all(dim=1)
        shape = (-1, self.num_generations)
        highest = total.masked_fill(unscorable, -torch.inf).view(shape).amax(dim=1)
        lowest = total.masked_fill(unscorable, torch.inf).view(shape).amin(dim=1)
        constant = highest - lowest <= REWARD_NOISE * torch.maximum(highest.abs(), lowest.abs())
        start = self.accelerator.process_index * num_rows
        return constant.repeat_interleave(self.num_generations)[start : start + num_rows]

    def _rollout_logps(self, batch: dict[str, Any]) -> Tensor:
        """Log-probs (B, T) of the policy that sampled the batch, in the trainer's numerics (not vLLM's)."""
        if "old_per_token_logps" in batch:
            return batch["old_per_token_logps"]
        if "rollout_logps" in batch:
            return batch["rollout_logps"]
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
                **{name: batch[name] for name in _MULTIMODAL if name in batch},
            )
        return logps

    def _weigh(self, batch: dict[str, Any], ids: Tensor) -> None:
        """Weigh ``batch["advantages"]`` (B,) -> (B, T); rows with equal ``ids``, on any process, share statistics."""
        if not self._weighs and "rollout_logps" not in batch and "old_per_token_logps" not in batch:
            return  # nothing to weigh, and no log-probs at hand for the metrics
        mask = batch["completion_mask"]
        mask = mask * batch["tool_mask"] if "tool_mask" in batch else mask
        weights = self._global_weights(self._rollout_logps(batch), batch["advantages"], mask, ids)
        if self._weighs:
            batch["advantages"] = batch["advantages"][:, None] * weights

    def _global_weights(self, logps: Tensor, advantages: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        """Take the weights over the rows of all processes and return those of this one: (B, T)."""
        num_rows, length = logps.shape
        start = self.accelerator.process_index * num_rows
        gather, pad = self.accelerator.gather, self.accelerator.pad_across_processes
        logps, mask = gather(pad(logps, dim=1)), gather(pad(mask, dim=1))
        advantages, ids = gather(advantages), gather(ids)
        weights = self.weighting(logps, advantages, mask, ids)
        for name, value in summarise(token_covariance(logps, advantages, mask, ids), weights, mask).items():
            self._metrics["train"][name].append(value)
        return weights[start : start + num_rows, :length]

    def _weigh_optimizer_steps(self, micro_batches: list[dict[str, Any]]) -> None:
        """Scope ``batch``: the micro-batches of one optimizer step, on all processes, share statistics."""
        names = ("rollout_logps", "old_per_token_logps", "advantages", "completion_mask", "tool_mask")
        whole = {n: torch.cat([micro[n] for micro in micro_batches]) for n in names if n in micro_batches[0]}
        sizes = [len(micro["advantages"]) for micro in micro_batches]
        step_of_micro = torch.arange(len(sizes)) // self.args.gradient_accumulation_steps
        ids = step_of_micro.repeat_interleave(torch.tensor(sizes)).to(whole["advantages"].device)
        self._weigh(whole, ids)
        for micro, advantages in zip(micro_batches, whole["advantages"].split(sizes), strict=True):
            micro["advantages"] = advantages
