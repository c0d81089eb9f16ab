"""Where the method enters TRL: the advantages of a batch, (B,), become (B, T), weighted token by token.

TRL's `_compute_loss` takes advantages of shape (B, T) as they are, so clipping, KL penalty and loss normalisation stay
its own. The statistics are taken over the rows of all processes and before anything depends on the micro-batch: group
statistics on the generation batch before it is shuffled and split, batch statistics on all micro-batches of the
optimizer step before the first of them is used (see `windows.py`).
"""

from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from covgrpo.core import token_covariance
from covgrpo.core.noise import token_noise
from covgrpo.core.weighting.none import NoWeighting
from covgrpo.trl.choice import choose_weighting
from covgrpo.trl.entropy_hold import TrainerEntropyHold
from covgrpo.trl.gathering import gather_rows, local_part, multimodal_inputs, row_keys
from covgrpo.trl.rollouts import SharedPromptSampling

# Rewards of one group that differ by no more than this fraction of the largest are equal (sums in float32).
REWARD_NOISE = 1e-6


class TokenWeightedAdvantages(SharedPromptSampling, GRPOTrainer):
    """Multiplies the advantages by the token weights, once per rollout batch."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.weighting = choose_weighting(self.args)
        self._weighs = not isinstance(self.weighting, NoWeighting)
        self._penalises = hasattr(self.weighting, "penalties")
        steered = hasattr(self.weighting, "controller")
        self.entropy_hold = TrainerEntropyHold(self, self.weighting) if steered else None

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards_per_func: Tensor = super()._calculate_rewards(*args, **kwargs)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._samples = None
        batch = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return batch
        # The policy that sampled: the loss asks whether it has been updated since.
        batch["rollout_step"] = torch.tensor(self.state.global_step)
        self._attach_rollout_scores(batch)
        if self._weighs:
            # What the rows need to know of themselves once they are shuffled and split.
            batch["rollout_logps"] = self._rollout_logps(batch)
            batch["row_key"] = row_keys(self, len(inputs))
            batch["advantages"] = batch["advantages"].masked_fill(self._constant_reward_rows(len(inputs)), 0.0)
            if self.entropy_hold is not None:
                self.entropy_hold.observe_batch(batch)
                self.weighting = self.entropy_hold.weighting
            if self.args.weighting_scope == "group":
                self._weigh(batch, batch["row_key"] // self.num_generations)
        return batch

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
                **multimodal_inputs(batch),
            )
        return logps

    def _weigh(self, batch: dict[str, Any], ids: Tensor) -> None:
        """Weigh ``batch["advantages"]`` (B,) -> (B, T); rows with equal ``ids``, on any process, share statistics.

        What was weighted stays in ``unweighted`` (B,), the weights in ``token_weights`` and the covariances in
        ``token_cov`` (B, T); a penalising scheme also leaves its coefficients in ``kl_penalty`` (B, T).
        """
        logps = batch["rollout_logps"]
        rows = gather_rows(self.accelerator, batch, logps, ids)
        arguments = [rows[name] for name in ("logps", "advantages", "mask", "ids")]
        c = token_covariance(*arguments)
        batch["token_cov"] = local_part(self.accelerator, c, logps)
        if getattr(self.weighting, "needs_noise", False):
            arguments.append(token_noise(self.args.seed, rows["row_key"], rows["mask"].shape[1]))
        weights = self.weighting(*arguments)
        if self.entropy_hold is not None:
            self.entropy_hold.weighed(c, weights, rows["mask"])
        batch["token_weights"] = local_part(self.accelerator, weights, logps)
        batch["unweighted"] = batch["advantages"]
        batch["advantages"] = batch["advantages"][:, None] * batch["token_weights"]
        if self._penalises:
            penalties = self.weighting.penalties(*arguments)  # type: ignore[attr-defined]
            batch["kl_penalty"] = local_part(self.accelerator, penalties, logps)
