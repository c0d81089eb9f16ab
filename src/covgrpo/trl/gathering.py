"""The rows of a batch over all processes."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

# What TRL hands on to a model that sees more than text.
_MULTIMODAL = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


def multimodal_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Images and what belongs to them, as keyword arguments of TRL's scoring; empty where there is only text."""
    return {name: batch[name] for name in _MULTIMODAL if name in batch}


def valid_tokens(batch: dict[str, Any]) -> Tensor:
    """Mask (B, T) of the completion tokens that the loss counts: no padding, no tool output."""
    mask: Tensor = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def gather_rows(accelerator: Accelerator, batch: dict[str, Any], logps: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """The rows of all processes, in the order of the processes, padded to one length.

    Args:
        accelerator: of the trainer.
        batch: with ``advantages`` (B,), ``completion_mask`` and perhaps ``tool_mask``, ``row_key``.
        logps: (B, T).
        ids: (B,) group of each row.

    Returns:
        ``logps``, ``mask`` (B', T'), ``advantages``, ``ids`` and perhaps ``row_key`` (B',).

    """
    gather, pad = accelerator.gather, accelerator.pad_across_processes
    rows = {"logps": pad(logps, dim=1), "mask": pad(valid_tokens(batch), dim=1)}
    rows.update(advantages=batch["advantages"], ids=ids)
    if "row_key" in batch:
        rows["row_key"] = batch["row_key"]
    return {name: gather(value) for name, value in rows.items()}


def local_part(accelerator: Accelerator, values: Tensor, like: Tensor) -> Tensor:
    """This process's rows of gathered (B', T') values, in the shape of ``like`` (B, T)."""
    num_rows, length = like.shape
    start = accelerator.process_index * num_rows
    return values[start : start + num_rows, :length]


def row_keys(trainer: Any, num_rows: int) -> Tensor:
    """Place (B,) of this process's rows of a generation batch among all rollouts of the run.

    Rows of one group are neighbours: ``row_keys // num_generations`` numbers the groups.
    """
    generation = trainer._step // (trainer.args.steps_per_generation * trainer.num_iterations)
    start = generation * trainer.args.generation_batch_size + trainer.accelerator.process_index * num_rows
    return torch.arange(start, start + num_rows, device=trainer.accelerator.device)


def gather_column(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Values (n,) of all processes, one process after the other, on the CPU; n may differ between them."""
    if accelerator.num_processes > 1:
        counts = accelerator.gather(torch.tensor([len(values)], device=values.device)).tolist()
        padded = accelerator.gather(accelerator.pad_across_processes(values, dim=0))
        values = torch.cat([part[:n] for part, n in zip(padded.view(len(counts), -1), counts, strict=True)])
    return values.cpu()
