"""Scoring of completions (log-probs and entropies) without repeated work; falls back to TRL's own path."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import Tensor, nn

from covgrpo.forward import NotShareableError, SharedPrompts, saves_enough, sharing_prompts, why_not_shareable
from covgrpo.hardware import float32_is_exact
from covgrpo.rollouts.gate import causal_lm
from covgrpo.trl.fused_head import bind_fused_head, tiled_vocabulary_head

logger = get_logger(__name__)

# Largest mean |difference| of log-probs between the shared path and TRL's, on first use, in nats a token. A wrong
# mask or position shows as 0.1 and more; rounding of weights in bf16 as 0.01 to 0.05, of TF32's products as less.
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


@dataclass(frozen=True)
class _Batch:
    """Rows to score: ids (B, L+T) and mask, of which the last ``length`` are the completion's."""

    model: nn.Module
    stock: Callable[..., Scores]
    share: bool
    ids: Tensor
    mask: Tensor
    length: int

    def rows(self, index: Any, model: nn.Module | None = None) -> "_Batch":
        """The rows at an index."""
        model = self.model if model is None else model
        return dataclasses.replace(self, model=model, ids=self.ids[index], mask=self.mask[index])


class Scorer:
    """Scores completions: prompts once per group, rows that the update does not need left out.

    Args:
        accelerator: of the trainer.
        policy: the model that is trained, perhaps wrapped.
        reference: the reference model, if any.
        enabled: False: by TRL's own path always.
        sharded: FSDP or DeepSpeed shard the parameters.

    """

    def __init__(
        self, accelerator: Accelerator, policy: nn.Module, reference: nn.Module | None, enabled: bool, sharded: bool
    ):
        self.accelerator, self.enabled, self.sharded = accelerator, enabled, sharded
        self.reference = None if reference is None else accelerator.unwrap_model(reference)
        self.first_use: dict[int, str | None] = {}  # model -> why the shared path failed its check
        self._warned: set[str] = set()
        for model in (policy, reference):
            if model is not None:
                bind_fused_head(causal_lm(accelerator.unwrap_model(model)))

    def score(
        self,
        stock: Callable[..., Scores],
        rows: RowsToScore | None,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> Scores:
        """Score (B, T) completion tokens: the contract of TRL's method, which is ``stock``."""
        # others: images, and whether a mixture of experts' loss is wanted
        if not self.enabled or any(value is not None and value is not False for value in others.values()):
            text = (input_ids, attention_mask, logits_to_keep)
            return stock(model, *text, batch_size=batch_size, compute_entropy=compute_entropy, **others)
        share = self._can_share(model, input_ids, attention_mask, logits_to_keep)
        batch = _Batch(model, stock, share, input_ids, attention_mask, logits_to_keep)
        if rows is None or bool(rows.active.all()):
            return *self._score(batch, batch_size), None
        return *self._score_active(batch, rows), None

    def _score_active(self, batch: _Batch, rows: RowsToScore) -> tuple[Tensor, Tensor]:
        """Score the rows that need a gradient; the others by what is known of them."""
        active, known_logps, known_entropies = rows.active, rows.logps, rows.entropies
        if known_logps is None or known_entropies is None:
            # The policy has moved since sampling: these rows are scored for the metrics alone. Outside the DDP
            # wrapper, whose forward is a collective that a rank without such rows would not join.
            with torch.no_grad():
                scores = self._score(batch.rows(~active, self.accelerator.unwrap_model(batch.model)), None)
            zeros = scores[0].new_zeros(len(active), batch.length)
            known_logps, known_entropies = (zeros.index_put((~active,), score) for score in scores)
        logps, entropies = self._score(batch.rows(active), None)
        # The sampler's are float32; a float64 model scores in its own.
        known_logps, known_entropies = known_logps.to(logps.dtype), known_entropies.to(entropies.dtype)
        return known_logps.index_put((active,), logps), known_entropies.index_put((active,), entropies)

    def _score(self, batch: _Batch, batch_size: int | None) -> tuple[Tensor, Tensor]:
        size = batch_size or len(batch.ids)
        parts = []
        for start in range(0, len(batch.ids), size):
            part = batch.rows(slice(start, start + size))
            shared = self._shared(part)
            parts.append(self._score_stock(part) if shared is None else self._score_shared(part.model, shared))
        return torch.cat([logps for logps, _ in parts]), torch.cat([entropies for _, entropies in parts])

    def _shared(self, batch: _Batch) -> SharedPrompts | None:
        """Rows with their prompts once; ``None`` where that cannot be, or does not pay."""
        if not batch.share or not batch.mask[:, -batch.length :].any():
            return None
        shared = SharedPrompts.from_rows(batch.ids, batch.mask, batch.length)
        backbone = causal_lm(self.accelerator.unwrap_model(batch.model)).base_model
        pays = saves_enough(backbone, batch.mask, shared.prompt_mask, shared.completion_mask)
        return shared if pays else None

    def _score_stock(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Score by TRL's own path, with what the reference model's head does not compute filled with 0."""
        has_entropy = self.accelerator.unwrap_model(batch.model) is not self.reference
        logps, entropies, _ = batch.stock(batch.model, batch.ids, batch.mask, batch.length, compute_entropy=has_entropy)
        return logps, torch.zeros_like(logps) if entropies is None else entropies

    def _score_shared(self, model: nn.Module, batch: SharedPrompts) -> tuple[Tensor, Tensor]:
        valid = batch.completion_mask.bool()
        labels = batch.completion_ids[valid][None]
        backbone = causal_lm(self.accelerator.unwrap_model(model)).base_model
        with sharing_prompts(backbone), self.accelerator.autocast(), tiled_vocabulary_head(labels.device):
            output = model(shared_prompt=batch, shift_labels=labels, fused_lm_head=True)
        empty = output.log_probs.new_zeros(valid.shape)
        logps = empty.masked_scatter(valid, output.log_probs)
        return logps, empty if output.entropy is None else empty.masked_scatter(valid, output.entropy)

    def _can_share(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int) -> bool:
        unwrapped = self.accelerator.unwrap_model(model)
        reason = self.why_not_shareable(unwrapped)
        if reason is None:
            if id(unwrapped) not in self.first_use:
                found = self._first_use_check(unwrapped, input_ids, attention_mask, logits_to_keep)
                # All ranks must take the same path.
                agree = self.accelerator.gather(torch.tensor([found is None], device=input_ids.device)).all()
                self.first_use[id(unwrapped)] = None if agree else found or "it failed on another rank"
            reason = self.first_use[id(unwrapped)]
        if reason is not None and reason not in self._warned:
            self._warned.add(reason)
            name = type(causal_lm(unwrapped)).__name__
            logger.warning(f"{name}: each completion is scored with its own copy of the prompt, as in TRL: {reason}.")
        return reason is None

    def why_not_shareable(self, model: Any) -> str | None:
        """Say why this (unwrapped) model's prompts are not shared; ``None`` where they are."""
        if self.sharded:
            return "FSDP and DeepSpeed shard the parameters"
        if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
            return "it is compiled, and the shared path would be traced anew for every step's lengths"
        if hasattr(model, "active_peft_config") and model.active_peft_config.is_prompt_learning:
            return "prompt-learning adapters change the prompt"
        return why_not_shareable(causal_lm(model))

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
        causal = causal_lm(model)
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
        tolerance = _tolerance(next(model.parameters()))
        return None if difference <= tolerance else f"its log-probs differ by {difference:.3g} nats a token"


def _tolerance(weight: Tensor) -> float:
    if weight.dtype == torch.float32 and not float32_is_exact(weight.device):
        return _TOLERANCE_LOW_PRECISION
    return _TOLERANCE.get(weight.dtype, _TOLERANCE_LOW_PRECISION)
