"""``CovGRPOConfig``: TRL's ``GRPOConfig`` with the weighting, and with defaults that follow the machine."""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig

from covgrpo.hardware import cpu_has_bf16
from covgrpo.trl.choice import choose_weighting
from covgrpo.trl.penalty import inert_penalty

WEIGHTING_SCOPES = ("group", "batch")


@dataclass
class CovGRPOConfig(GRPOConfig):
    """Every option of :class:`trl.GRPOConfig` with its meaning unchanged, and these.

    Parameters:
        weighting (`str`, defaults to `"gaussian"`):
            Token weighting: a name in `covgrpo.WEIGHTINGS` (`"gaussian"`, `"none"` = plain GRPO, ...) or the import
            path `module:Class` of your own.
        weighting_kwargs (`dict`, *optional*):
            Hyperparameters of the weighting. On a command line, and as text, a JSON object:
            `--weighting_kwargs '{"ratio": 0.001}'`.
        weighting_scope (`str`, defaults to `"group"`):
            Tokens over which the weighting takes its statistics: `"group"` (the completions of one prompt, as in the
            paper) or `"batch"` (all valid tokens of one optimizer step, over micro-batches and processes). Both are
            exact whatever the micro-batch size, shuffling and number of processes.
        fast_path (`bool`, defaults to `True`):
            Forward each prompt once per group in sampling and update, and leave completions of zero advantage out of
            the update. Exact; falls back to TRL's own path, and says so, where it cannot be used. `False` restores
            TRL's path everywhere: with `weighting="none"` the loss is then TRL's to the last bit.

        entropy_probe_steps (`int`, defaults to `0`):
            Above 0: every so many optimizer steps, measure what the update did to the entropy of its own tokens, at
            the cost of two forward passes without gradient and a copy of the weights on that step.

    Defaults that follow the machine, each only where it is not given:
        `use_cpu` is `True` without an accelerator; `bf16` is `True` where the GPU, or the CPU (AVX512-BF16, AMX), has
        bfloat16 arithmetic; `gradient_checkpointing` is `False` on a CPU and TRL's `True` elsewhere (where it
        excludes the shared prompt in the update, as no cache is kept).

    Raises:
        ValueError: an unknown weighting, hyperparameter or scope, hyperparameters as text that is no JSON object, a
            loss that the weighting does not fit, a negative number of steps; or what TRL's config raises.
    """

    use_cpu: bool | None = field(
        default=None, metadata={"help": "Train on the CPU. Default: only where there is no accelerator."}
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={"help": "Recompute activations in the backward pass. Default: not on a CPU, TRL's (yes) elsewhere."},
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast. Default: where the hardware multiplies in bfloat16."}
    )
    weighting: str = field(
        default="gaussian", metadata={"help": "Token weighting: a registered name, or module:Class of your own."}
    )
    weighting_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Hyperparameters of the weighting; on a command line a JSON object."}
    )
    weighting_scope: str = field(
        default="group",
        metadata={"help": "Tokens that share statistics: group (one prompt's completions) or batch (optimizer step)."},
    )
    fast_path: bool = field(
        default=True,
        metadata={"help": "Prompts once per group, zero-advantage completions left out of the update; exact."},
    )
    entropy_probe_steps: int = field(
        default=0,
        metadata={"help": "Steps between measurements of what an update does to the entropy; 0: none. Costs 2 passes."},
    )

    def __post_init__(self) -> None:
        """Fill in what follows the machine, check the new options, then let TRL check the rest."""
        if self.use_cpu is None:
            self.use_cpu = not torch.accelerator.is_available()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and (cpu_has_bf16() if self.use_cpu else is_torch_bf16_gpu_available())
        self._decide_checkpointing()
        self.weighting_kwargs = _mapping("weighting_kwargs", self.weighting_kwargs)
        super().__post_init__()
        if self.weighting_scope not in WEIGHTING_SCOPES:
            known = ", ".join(WEIGHTING_SCOPES)
            raise ValueError(f"unknown weighting_scope {self.weighting_scope!r}; known: {known}.")
        if self.entropy_probe_steps < 0:
            raise ValueError(f"entropy_probe_steps is {self.entropy_probe_steps}; it must be at least 0.")
        if hasattr(choose_weighting(self), "penalties") and self.process_index == 0:
            inert = inert_penalty(self)
            if inert is not None:
                logging.getLogger(__name__).warning(inert)

    def _decide_checkpointing(self) -> None:
        """Where nothing is given: not on a CPU; under the new name where transformers (5.23) calls TRL's old."""
        if self.gradient_checkpointing is not None or getattr(self, "activation_checkpointing", None) is not None:
            return
        name = "activation_checkpointing" if hasattr(self, "activation_checkpointing") else "gradient_checkpointing"
        setattr(self, name, not self.use_cpu)


def _mapping(name: str, value: Any) -> dict[str, Any] | None:
    """A mapping as it is; from text, as command lines have it, the JSON object that it holds.

    Raises:
        ValueError: neither; one sentence.
    """
    found = value
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            found = json.loads(value)
    if found is not None and not isinstance(found, dict):
        raise ValueError(
            f'{name} is {value!r:.80}; it must be a mapping, or as text a JSON object such as {{"ratio": 0.001}}.'
        )
    return found
