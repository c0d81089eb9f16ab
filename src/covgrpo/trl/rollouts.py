"""Rollouts: TRL's sampling seam, served by our sampler where it knows every option that is set."""

from typing import Any

import torch
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation

from covgrpo.rollouts import Samples, SamplingSettings, sample

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

    _samples: Samples | None = None  # the latest draw of our sampler, None where something else sampled

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        if self._sampler_serves(images, multimodal_fields):
            self._samples = self._sample(prompt_ids)
            return self._samples.token_ids, self._samples.logps
        self._samples = None
        result: tuple[list[list[int]], list[list[float]] | None] = super()._generate_single_turn(
            prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
        )
        return result

    def _sampler_serves(self, images: Any, multimodal_fields: dict[str, Any]) -> bool:
        if not self.args.fast_path or self.use_vllm or self.use_transformers_continuous_batching:
            return False
        if images is not None or multimodal_fields or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        options = self.generation_kwargs
        if set(options) - _UNDERSTOOD or options["cache_implementation"] is not None or not options["do_sample"]:
            return False
        model = self.accelerator.unwrap_model(self.model)
        own = model.generation_config
        return not model.config.is_encoder_decoder and all(
            getattr(own, name, None) in _NEUTRAL for name in _OTHER_PROCESSORS
        )

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
        with (
            profiling_context(self, "covgrpo.sample"),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self.accelerator.autocast(),
        ):
            return sample(model, prompt_ids, settings)
