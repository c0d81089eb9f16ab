"""Scoring of completions (log-probs and entropies) without repeated work; falls back to TRL's own path."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOTrainer

from covgrpo.forward import NotShareableError, SharedPrompts, sharing_prompts, why_not_shareable
from covgrpo.trl.vocabulary_head import bind_fused_head, tiled_vocabulary_head

logger = get_logger(__name__)

# Largest mean |difference| of log-probs between the shared path and TRL's, on first use, in nats a token. A wrong
# mask or position shows as 0.1 and more; rounding of weights in bf16 as 0.01 to 0.05.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_TOLERANCE_LOW_PRECISION = 0.1
_TOKENS_TO_CHECK = 64

Scores = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class RowsToScore:
    """Which rows of the micro-batch need a gradient, and what is known already of the others.

    Args:
        active: (B,) bool; rows with a non-zero advantage.
        logps: (B, T) log-probs from sampling, or ``None`` where the policy has moved since.
        entropies: (B, T) likewise.

    """

    active: Tensor
    logps: Tensor | None
    entropies: Tensor | None


class SharedPromptScoring(GRPOTrainer):
    """Overrides TRL's scoring seam: prompts once per group, rows of zero advantage left out of the update."""

    _rows: RowsToScore | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._first_use: dict[int, str | None] = {}  # model -> why the shared path failed its check
        self._said: set[str] = set()
        for model in (self.model, self.ref_model):
            if model is not None:
                bind_fused_head(_causal_lm(self.accelerator.unwrap_model(model)))

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        with self._leaving_out(inputs):
            return super()._compute_loss(model, inputs)

    @contextmanager
    def _leaving_out(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Set the rows that the loss needs; one without advantage or penalty adds exactly 0 to it and its gradient."""
        only_policy_term = self.beta == 0.0 and not self._entropy_bonus_enabled and not self.aux_loss_enabled
        # Where parameters are sharded every forward is a collective, and ranks differ in the rows they could leave out.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        useful = self.args.fast_path and self.model.training and not sharded
        if useful and only_policy_term and self.top_entropy_quantile == 1.0:
            advantages = inputs["advantages"]
            active = advantages != 0 if advantages.dim() == 1 else (advantages != 0).any(dim=1)
            same_policy = int(inputs["rollout_step"]) == self.state.global_step
            if "kl_penalty" in inputs and not same_policy:
                active = active | (inputs["kl_penalty"] != 0).any(dim=1)
            if not active.any():
                # One row stays, so that every parameter gets its (zero) gradient and no rank waits for another.
                active[inputs["completion_mask"].sum(dim=1).argmin()] = True
            on_policy = same_policy and "rollout_entropies" in inputs
            self._rows = RowsToScore(
                active=active,
                logps=inputs["rollout_logps"] if on_policy else None,
                entropies=inputs["rollout_entropies"] if on_policy else None,
            )
        try:
            yield
        finally:
            self._rows = None

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> Scores:
        """Score (B, T) completion tokens; same contract as TRL's method."""
        plain = not compute_aux_loss and all(value is None for value in multimodal.values())
        if not (self.args.fast_path and plain):
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size=batch_size,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                **multimodal,
            )
        share = self._can_share(model, input_ids, attention_mask, logits_to_keep)
        rows = self._rows
        if rows is None or bool(rows.active.all()):
            return *self._score(model, share, input_ids, attention_mask, logits_to_keep, batch_size), None
        known_logps, known_entropies = rows.logps, rows.entropies
        if known_logps is None or known_entropies is None:
            # The policy has moved since sampling: these rows are scored for the metrics alone. Outside the DDP
            # wrapper, whose forward is a collective that a rank without such rows would not join.
            idle, unwrapped = ~rows.active, self.accelerator.unwrap_model(model)
            with torch.no_grad():
                scores = self._score(unwrapped, share, input_ids[idle], attention_mask[idle], logits_to_keep, None)
            zeros = scores[0].new_zeros(idle.shape[0], logits_to_keep)
            known_logps, known_entropies = (zeros.index_put((idle,), score) for score in scores)
        active = rows.active
        logps, entropies = self._score(model, share, input_ids[active], attention_mask[active], logits_to_keep, None)
        return known_logps.index_put((active,), logps), known_entropies.index_put((active,), entropies), None

    def _score(
        self,
        model: nn.Module,
        share: bool,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None,
    ) -> tuple[Tensor, Tensor]:
        size = batch_size or len(input_ids)
        parts = []
        for start in range(0, len(input_ids), size):
            ids, mask = input_ids[start : start + size], attention_mask[start : start + size]
            if share and mask[:, -logits_to_keep:].any():
                parts.append(self._score_shared(model, SharedPrompts.from_rows(ids, mask, logits_to_keep)))
            else:
                parts.append(self._score_stock(model, ids, mask, logits_to_keep))
        return torch.cat([logps for logps, _ in parts]), torch.cat([entropies for _, entropies in parts])

    def _score_stock(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int
    ) -> tuple[Tensor, Tensor]:
        """Score by TRL's own path, with what the reference model's head does not compute filled with 0."""
        has_entropy = self.accelerator.unwrap_model(model) is not self._unwrapped_reference()
        logps, entropies, _ = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, compute_entropy=has_entropy
        )
        return logps, torch.zeros_like(logps) if entropies is None else entropies

    def _score_shared(self, model: nn.Module, batch: SharedPrompts) -> tuple[Tensor, Tensor]:
        valid = batch.completion_mask.bool()
        labels = batch.completion_ids[valid][None]
        backbone = _causal_lm(self.accelerator.unwrap_model(model)).base_model
        with sharing_prompts(backbone), self.accelerator.autocast(), tiled_vocabulary_head(labels.device):
            output = model(shared_prompt=batch, shift_labels=labels, fused_lm_head=True)
        empty = output.log_probs.new_zeros(valid.shape)
        logps = empty.masked_scatter(valid, output.log_probs)
        return logps, empty if output.entropy is None else empty.masked_scatter(valid, output.entropy)

    def _can_share(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int) -> bool:
        unwrapped = self.accelerator.unwrap_model(model)
        reason = self._why_not_shareable(unwrapped)
        if reason is None:
            if id(unwrapped) not in self._first_use:
                found = self._first_use_check(unwrapped, input_ids, attention_mask, logits_to_keep)
                # All ranks must take the same path.
                agree = self.accelerator.gather(torch.tensor([found is None], device=input_ids.device)).all()
                self._first_use[id(unwrapped)] = None if agree else found or "it failed on another rank"
            reason = self._first_use[id(unwrapped)]
        if reason is not None and reason not in self._said:
            self._said.add(reason)
            name = type(_causal_lm(unwrapped)).__name__
            logger.warning(f"{name}: each completion is scored with its own copy of the prompt, as in TRL: {reason}.")
        return reason is None

    def _why_not_shareable(self, model: Any) -> str | None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return "FSDP and DeepSpeed shard the parameters"
        if is_peft_model(model) and model.active_peft_config.is_prompt_learning:
            return "prompt-learning adapters change the prompt"
        return why_not_shareable(_causal_lm(model))

    @torch.no_grad()
    def _first_use_check(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int
    ) -> str | None:
        """Score a few rows on both paths: ``None`` if they agree, else the reason not to share.

        The hidden states of both go through the plain vocabulary head, without autocast, whose rounding would hide what
        is looked for.
        """
        rows = torch.linspace(0, len(input_ids) - 1, min(4, len(input_ids))).long()
        ids, mask = input_ids[rows], attention_mask[rows]
        valid = mask[:, -logits_to_keep:].bool()
        if not valid.any():
            return None
        causal = _causal_lm(model)
        backbone, head = causal.base_model, causal.get_output_embeddings()
        try:
            with sharing_prompts(backbone), torch.autocast(ids.device.type, enabled=False):
                batch = SharedPrompts.from_rows(ids, mask, logits_to_keep)
                shared = backbone(shared_prompt=batch).last_hidden_state[0]
                stock = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                stock = stock[:, -logits_to_keep - 1 : -1][valid]
                chosen = torch.linspace(0, len(stock) - 1, min(_TOKENS_TO_CHECK, len(stock))).long()
                labels = batch.completion_ids[valid][chosen, None]
                scores = [
                    head(hidden[chosen]).float().log_softmax(dim=1).gather(1, labels) for hidden in (shared, stock)
                ]
        except (NotShareableError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
            return f"the shared path failed ({error})"
        difference = (scores[0] - scores[1]).abs().mean().item()
        tolerance = _TOLERANCE.get(next(model.parameters()).dtype, _TOLERANCE_LOW_PRECISION)
        return None if difference <= tolerance else f"its log-probs differ by {difference:.3g} nats a token"

    def _unwrapped_reference(self) -> nn.Module | None:
        return None if self.ref_model is None else self.accelerator.unwrap_model(self.ref_model)


def _causal_lm(model: Any) -> PreTrainedModel:
    """Return the causal language model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if is_peft_model(model) else model
