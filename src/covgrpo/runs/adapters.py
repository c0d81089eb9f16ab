"""LoRA adapters of a run: what is trained in place of the model's own weights."""

from typing import Any

from covgrpo.errors import UserError
from covgrpo.models.resolve import is_adapter
from covgrpo.runs.options import TrainOptions


def check_base(options: TrainOptions) -> None:
    """Check that what a run adds to, or measures its KL from, is the model that it was given.

    Raises:
        UserError: it is an adapter, in whose place peft and TRL would take its base model.
    """
    if is_adapter(options.model) and (options.lora_r or options.beta):
        raise UserError(
            f"model {options.model} is an adapter: its base model alone would be what lora_r adds to, or beta's "
            "reference; merge it first (peft: merge_and_unload) and train the merged model's folder."
        )


def adapter_config(options: TrainOptions) -> Any:
    """Return peft's configuration; ``None`` where all weights are trained.

    Raises:
        UserError: peft is not installed.
    """
    if not options.lora_r:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError("lora_r needs peft: pip install covgrpo[peft].") from error
    return LoraConfig(
        r=options.lora_r, lora_alpha=options.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
