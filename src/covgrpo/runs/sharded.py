"""A policy whose parameters are spread over the processes, whole for a while: to be measured, to be saved."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.runs.options import TrainOptions


def check_evaluations(options: TrainOptions, args: Any) -> None:
    """Refuse evaluations where the policy cannot be had whole; ``args`` is the trainer's configuration.

    Raises:
        UserError: ZeRO-3, or FSDP of version 1.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    name = "evaluate" if options.evaluate else "eval_steps"
    if not getattr(options, name):
        return
    kind = "DeepSpeed's ZeRO-3" if is_deepspeed_zero3_enabled() else "FSDP 1" if _by_fsdp_1(args) else None
    if kind is not None:
        raise UserError(
            f"{name} is {getattr(options, name)}; under {kind} no process can forward the policy by itself, so take "
            "FSDP 2, or leave it out and run `covgrpo eval` afterwards."
        )


def _by_fsdp_1(args: Any) -> bool:
    """By TRL's option ``fsdp``, or by what ``accelerate launch`` left in the environment."""
    if args.fsdp_plugin_args is not None:
        return bool(args.fsdp_plugin_args["fsdp_version"] == 1)
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return launched and os.environ.get("FSDP_VERSION", "1") == "1"


@contextmanager
def whole(accelerator: Any, model: Any) -> Iterator[Any]:
    """The policy with all its weights on every process: a forward inside is no collective, so each may make its own.

    Under FSDP 2 the weights are gathered on entry and freed again; elsewhere they are whole already.
    """
    from torch.distributed.fsdp import FSDPModule

    policy = accelerator.unwrap_model(model)
    parts = [part for part in policy.modules() if isinstance(part, FSDPModule)]
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield policy
    finally:
        for part in parts:
            part.set_reshard_after_forward(bool(accelerator.state.fsdp_plugin.reshard_after_forward), recurse=False)
            part.reshard()


def save_whole(trainer: Any, folder: Path) -> None:
    """Save the model as one that transformers loads, also where checkpoints are written shard by shard."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
