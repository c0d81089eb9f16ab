"""Rollouts: TRL's sampling seam, served by our sampler where it knows every option that is set."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import nn
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation

from covgrpo.errors import UserError
from covgrpo.forward import NotShareableError
from covgrpo.rollouts import Samples, SamplingSettings, sample, why_not_sampled

logger = get_logger(__name__)

# Largest mean |difference| between the sampler's log-probs and those of a plain forward, on first use, in nats a token.
# A wrong mask or position shows as 0.1 and more.
_TOLERANCE, _TOLERANCE_LOW_PRECISION = 0.01, 0.1
_ROWS_TO_CHECK, _TOKENS_TO_CHECK = 4, 64
# What a model that the sampler does not know may answer with; memory that runs out is none of them.
_FAILURES = (NotShareableError, UserError, TypeError, RuntimeError, AttributeError, NotImplementedError, LookupError)
# What the sampler understands of TRL's generation arguments; anything else is left to transformers' `generate`.
_UNDERSTOOD = {
    "max_new_tokens",
    "do_sample",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "cache_implementation",
}
# Settings of the model's own generation config that `generate` would add.
_OTHER_PROCESSORS = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "guidance_scale",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_h",
    "min_length",
    "min_new_tokens",
    "exponential_decay_length_penalty",
    "watermarking_config",
    "stop_strings",
)
_NEUTRAL: tuple[Any, ...] = (None, 0, 0.0, 1.0, [])


class SharedPromptSampling(GRPOTrainer):
    """Overrides TRL's sampling seam: one prefill a prompt, log-probs and entropies of the sampled tokens returned."""

    # The latest draw of our sampler; None where something else sampled, or at another temperature than the loss's.
    _samples: Samples | None = None
    _sampler_checked = False
    _sampler_refused: str | None = None  # why the sampler does not serve the model

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        self._samples = None
        if self._sampler_serves(images, multimodal_fields):
            self._samples = self._sample(prompt_ids) if self._sampler_checked else self._first_sample(prompt_ids)
        if self._samples is not None:
            token_ids, logps = self._samples.token_ids, self._samples.logps
            if self.generation_kwargs["temperature"] == self.temperature:
                return token_ids, logps
            # Log-probs of another distribution than the loss's serve nobody; what needs the loss's scores anew.
            self._samples = None
            return token_ids, None
        result: tuple[list[list[int]], list[list[float]] | None] = super()._generate_single_turn(
            prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
        )
        return result

    def _first_sample(self, prompt_ids: list[list[int]]) -> Samples | None:
        """Sample, and compare with a plain forward: ``None``, said once, where the sampler does not serve the model."""
        samples, reason = None, why_not_sampled(self.accelerator.unwrap_model(self.model))
        if reason is None:
            try:
                samples = self._sample(prompt_ids)
                reason = self._difference(prompt_ids, samples)
            except torch.OutOfMemoryError:
                raise
            except _FAILURES as error:
                reason = f"it failed ({error})"
        # All ranks must take the same path.
        served = torch.tensor([reason is None], device=self.accelerator.device)
        if not self.accelerator.gather(served).all():
            self._sampler_refused = reason or "it failed on another rank"
            name = type(self.accelerator.unwrap_model(self.model)).__name__
            logger.warning(
                f"{name}: completions are drawn by transformers' generate, as in TRL: {self._sampler_refused}."
            )
            return None
        self._sampler_checked = True
        return samples

    @torch.no_grad()
    def _difference(self, prompt_ids: list[list[int]], samples: Samples) -> str | None:
        """Score the first tokens of a few rows, each alone and without a cache; say so where the log-probs differ."""
        differences, temperature = [], self.generation_kwargs["temperature"]
        rows = torch.linspace(0, len(prompt_ids) - 1, min(_ROWS_TO_CHECK, len(prompt_ids))).long().tolist()
        with self._generating() as model:
            device = next(model.parameters()).device
            for row in rows:
                ids = torch.tensor(samples.token_ids[row][:_TOKENS_TO_CHECK], device=device)
                whole = torch.cat([torch.tensor(prompt_ids[row], device=device), ids])[None]
                output = model(input_ids=whole, use_cache=False, logits_to_keep=len(ids) + 1)
                logits = output.logits[0, -len(ids) - 1 : -1].float()
                expected = (logits / temperature).log_softmax(dim=1)
                drawn = torch.tensor(samples.logps[row][: len(ids)], device=device)
                differences.append((expected.gather(1, ids[:, None])[:, 0] - drawn).abs())
            low = self.accelerator.mixed_precision != "no" or next(model.parameters()).dtype.itemsize < 4
        difference = torch.cat(differences).mean().item()
        # Rounding of the logits is divided by the temperature.
        tolerance = (_TOLERANCE_LOW_PRECISION if low else _TOLERANCE) * max(1.0, 1 / temperature)
        within = difference <= tolerance  # False where it is NaN
        return None if within else f"the sampler's log-probs differ by {difference:.3g} nats a token"

    def _sampler_serves(self, images: Any, multimodal_fields: dict[str, Any]) -> bool:
        if not self.args.fast_path or self.use_vllm or self.use_transformers_continuous_batching:
            return False
        if self._sampler_refused is not None:
            return False
        if images is not None or multimodal_fields or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        options = self.generation_kwargs
        if set(options) - _UNDERSTOOD or options["cache_implementation"] is not None or not options["do_sample"]:
            return False
        if not options["temperature"]:
            return False
        own = self.accelerator.unwrap_model(self.model).generation_config
        return all(getattr(own, name, None) in _NEUTRAL for name in _OTHER_PROCESSORS)

    def _sample(self, prompt_ids: list[list[int]]) -> Samples:
        options = self.generation_kwargs
        settings = SamplingSettings(
            max_new_tokens=options["max_new_tokens"],
            eos_token_ids=tuple(self.eos_token_ids),
            pad_token_id=options["pad_token_id"],
            temperature=options["temperature"],
            top_k=options["top_k"] or 0,
            top_p=1.0 if options["top_p"] is None else options["top_p"],
            min_p=options["min_p"],
            repetition_penalty=options["repetition_penalty"] or 1.0,
        )
        with profiling_context(self, "covgrpo.sample"), self._generating() as model:
            return sample(model, prompt_ids, settings)

    @contextmanager
    def _generating(self) -> Iterator[nn.Module]:
        """The model as TRL generates with it."""
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self.accelerator.autocast(),
        ):
            yield model
