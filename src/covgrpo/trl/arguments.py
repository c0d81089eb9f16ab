"""The arguments of TRL's ``GRPOTrainer``: their types, and the configuration that is ours."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc

from covgrpo.trl.config import CovGRPOConfig

if TYPE_CHECKING:  # peft and bitsandbytes need not be installed
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig

Model: TypeAlias = "str | PreTrainedModel | PeftModel"
RewardFuncs: TypeAlias = RewardFunc | list[RewardFunc]
TrainData: TypeAlias = Dataset | IterableDataset
EvalData: TypeAlias = TrainData | DatasetDict | IterableDatasetDict | dict[str, TrainData]
Processing: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin
RewardTokenizers: TypeAlias = PreTrainedTokenizerBase | list[PreTrainedTokenizerBase]
Callbacks: TypeAlias = list[TrainerCallback]
Optimizers: TypeAlias = tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None]
Quantization: TypeAlias = "BitsAndBytesConfig | None"
Adapters: TypeAlias = "PeftConfig | None"
Tools: TypeAlias = list[Callable[..., Any]]
Rollouts: TypeAlias = RolloutFunc
Environments: TypeAlias = EnvironmentFactory | dict[str, EnvironmentFactory]


def config_for(model: Any, args: Any) -> CovGRPOConfig:
    """``args``; where there are none, the defaults with a folder named after the model.

    Raises:
        TypeError: another trainer's configuration.
    """
    if args is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        return CovGRPOConfig(f"{name.split('/')[-1]}-CovGRPO")
    if not isinstance(args, CovGRPOConfig):
        raise TypeError(f"args must be a CovGRPOConfig, got {type(args).__name__}: swap that name as well.")
    return args
