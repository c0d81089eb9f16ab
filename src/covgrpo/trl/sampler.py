"""Completions for TRL, drawn by our sampler where it knows every option that is set."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import nn
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation

from covgrpo.errors import UserError
from covgrpo.forward import NotShareableError
from covgrpo.hardware import float32_is_exact
from covgrpo.rollouts import Samples, SamplingSettings, sample, why_not_sampled
from covgrpo.trl.rollout import Rollout

logger = get_logger(__name__)

# Largest mean |difference| between the sampler's log-probs and those of a plain forward, on first use, in nats a token.
# A wrong mask or position shows as 0.1 and more.
_TOLERANCE, _TOLERANCE_LOW_PRECISION = 0.01, 0.1
_ROWS_TO_CHECK, _TOKENS_TO_CHECK = 4, 64
# What a model that the sampler does not know may answer with; memory that runs out is none of them.
_FAILURES = (NotShareableError, UserError, TypeError, RuntimeError, AttributeError, NotImplementedError, LookupError)
# What the sampler understands of TRL's generation arguments; anything else is left to transformers' `generate`.
_OUTSIDE_SETTINGS = {"do_sample", "bos_token_id", "eos_token_id", "cache_implementation"}
_UNDERSTOOD = {setting.name for setting in dataclasses.fields(SamplingSettings)} | _OUTSIDE_SETTINGS
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
# Left at None they are the model's own in `generate`, and 50 for `top_k` where it has none.
_THE_MODELS_OWN = ("top_p", "min_p", "repetition_penalty")


class Sampler:
    """Draws the completions of a batch: one prefill a prompt, with the log-probs and entropies of the sampled tokens.

    Args:
        accelerator: of the trainer.
        model: the unwrapped policy.
        generating: a context that yields the model as TRL generates with it.
        options: TRL's generation arguments.
        eos_token_ids: ids that end a completion.
        allowed: False where something else samples, or parameters are sharded.

    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: Any,
        generating: Callable[[], AbstractContextManager[nn.Module]],
        options: dict[str, Any],
        eos_token_ids: Sequence[int],
        allowed: bool,
    ):
        self.accelerator, self.model, self.generating = accelerator, model, generating
        self.options, self.eos_token_ids, self.allowed = options, eos_token_ids, allowed
        # The latest draw; None where something else sampled, or at another temperature than the loss's.
        self.latest: Samples | None = None
        self.checked = False
        self.refused: str | None = None  # why the model is not served

    def draw(
        self, prompt_ids: list[list[int]], more_than_text: bool, loss_temperature: float
    ) -> tuple[list[list[int]], list[list[float]] | None] | None:
        """Return completions and their log-probs, as TRL's sampling seam does; ``None`` where TRL has to sample.

        Log-probs of another distribution than the loss's serve nobody: there are none then, and what needs the loss's
        scores anew.
        """
        self.latest = None
        if more_than_text or not self.serves():
            return None
        samples = self.sample(prompt_ids) if self.checked else self._first_sample(prompt_ids)
        if samples is None:
            return None
        if self.options["temperature"] != loss_temperature:
            return samples.token_ids, None
        self.latest = samples
        return samples.token_ids, samples.logps

    def serves(self) -> bool:
        """Whether every option that is set is understood."""
        options = self.options
        if not self.allowed or self.refused is not None:
            return False
        if set(options) - _UNDERSTOOD or options["cache_implementation"] is not None or not options["do_sample"]:
            return False
        if not options["temperature"]:
            return False
        given = options["eos_token_id"]
        if ({given} if isinstance(given, int) else set(given or ())) != set(self.eos_token_ids):
            return False  # TRL cuts and pads by its own ids
        own = self.model.generation_config
        filled = (name for name in _THE_MODELS_OWN if options[name] is None)
        if options["top_k"] is None or any(getattr(own, name, None) is not None for name in filled):
            return False
        return all(getattr(own, name, None) in _NEUTRAL for name in _OTHER_PROCESSORS)

    def sample(self, prompt_ids: list[list[int]]) -> Samples:
        """Sample a completion for each prompt."""
        options = self.options
        settings = SamplingSettings(
            max_new_tokens=options["max_new_tokens"],
            eos_token_ids=tuple(self.eos_token_ids),
            pad_token_id=options["pad_token_id"],
            temperature=options["temperature"],
            top_k=options["top_k"],
            top_p=1.0 if options["top_p"] is None else options["top_p"],
            min_p=options["min_p"],
            repetition_penalty=options["repetition_penalty"] or 1.0,
        )
        with self.generating() as model:
            return sample(model, prompt_ids, settings)

    def lend_scores(self, rollout: Rollout, batch: dict[str, Any], one_turn: bool) -> None:
        """Let log-probs and entropies of the latest draw travel with the rows; the loss and the weights reuse them.

        Args:
            rollout: of the draw; log-probs that it has already stay.
            batch: TRL's dict of the same rows.
            one_turn: no tools; with them a completion is drawn in several turns, of which the last one is known.

        """
        if self.latest is None:
            return
        logps_BT = batch["sampling_per_token_logps"]
        if rollout.logps_BT is None:
            rollout.logps_BT = logps_BT
        if one_turn:
            rollout.entropies_BT = torch.zeros_like(logps_BT)
            for row, values in enumerate(self.latest.entropies):
                rollout.entropies_BT[row, : len(values)] = torch.tensor(values)

    def _first_sample(self, prompt_ids: list[list[int]]) -> Samples | None:
        """Sample, and compare with a plain forward: ``None``, said once, where the sampler does not serve the model."""
        samples, reason = None, why_not_sampled(self.model)
        if reason is None:
            try:
                samples = self.sample(prompt_ids)
                reason = self._difference(prompt_ids, samples)
            except torch.OutOfMemoryError:
                raise
            except _FAILURES as error:
                reason = f"it failed ({error})"
        # All ranks must take the same path.
        served = torch.tensor([reason is None], device=self.accelerator.device)
        if not self.accelerator.gather(served).all():
            self.refused = reason or "it failed on another rank"
            name = type(self.model).__name__
            logger.warning(f"{name}: completions are drawn by transformers' generate, as in TRL: {self.refused}.")
            return None
        self.checked = True
        return samples

    @torch.no_grad()
    def _difference(self, prompt_ids: list[list[int]], samples: Samples) -> str | None:
        """Score the first tokens of a few rows, each alone and without a cache; say so where the log-probs differ."""
        differences, temperature = [], self.options["temperature"]
        rows = torch.linspace(0, len(prompt_ids) - 1, min(_ROWS_TO_CHECK, len(prompt_ids))).long().tolist()
        with self.generating() as model:
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
            low = low or not float32_is_exact(device)
        difference = torch.cat(differences).mean().item()
        # Rounding of the logits is divided by the temperature.
        tolerance = (_TOLERANCE_LOW_PRECISION if low else _TOLERANCE) * max(1.0, 1 / temperature)
        within = difference <= tolerance  # False where it is NaN
        return None if within else f"the sampler's log-probs differ by {difference:.3g} nats a token"


def sampler_of(trainer: Any, allowed: bool) -> Sampler:
    """Return the sampler for a ``GRPOTrainer``; where vLLM or continuous batching samples, one that serves nothing."""

    @contextmanager
    def generating() -> Iterator[nn.Module]:
        checkpointing = trainer.args.gradient_checkpointing_kwargs
        unwrapped = unwrap_model_for_generation(
            trainer.model_wrapped, trainer.accelerator, gradient_checkpointing_kwargs=checkpointing
        )
        timed = profiling_context(trainer, "covgrpo.sample")
        with timed, unwrapped as model, torch.no_grad(), trainer.accelerator.autocast():
            # What torch_compile wraps is not compiled itself: a compiled one would be compiled anew at every length.
            yield getattr(model, "_orig_mod", model)

    elsewhere = trainer.use_vllm or trainer.use_transformers_continuous_batching
    policy = trainer.accelerator.unwrap_model(trainer.model)
    options = {} if elsewhere else trainer.generation_kwargs  # vLLM has its own
    return Sampler(trainer.accelerator, policy, generating, options, trainer.eos_token_ids, allowed and not elsewhere)
