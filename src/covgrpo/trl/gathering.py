"""The rows of a batch over all processes."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from covgrpo.trl.rollout import Rollout


def gather_rows(accelerator: Accelerator, rollout: Rollout, ids: Tensor, logps: Tensor) -> dict[str, Tensor]:
    """The rows of all processes, in the order of the processes, padded to one length.

    Args:
        accelerator: of the trainer.
        rollout: this process's rows.
        ids: (B,) group of each row.
        logps: (B, T) what to gather as ``logps``.

    Returns:
        ``logps``, ``mask`` (B', T'), ``advantages``, ``ids`` and ``row`` (B',).

    """
    rows = {"logps": gather_tokens(accelerator, logps), "mask": gather_tokens(accelerator, rollout.mask_BT)}
    of_rows = {"advantages": rollout.advantages_B, "ids": ids, "row": rollout.row_B}
    return rows | {name: accelerator.gather(value) for name, value in of_rows.items()}


def gather_tokens(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Values (B, T) of all processes, padded to one length: (B', T')."""
    gathered: Tensor = accelerator.gather(accelerator.pad_across_processes(values, dim=1))
    return gathered


def local_part(accelerator: Accelerator, values: Tensor, like: Tensor) -> Tensor:
    """This process's rows of gathered (B', T') values, in the shape of ``like`` (B, T)."""
    num_rows, length = like.shape
    start = accelerator.process_index * num_rows
    return values[start : start + num_rows, :length]


def gather_column(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Values (n,) of all processes, one process after the other, on the CPU; n may differ between them."""
    if accelerator.num_processes > 1:
        counts = accelerator.gather(torch.tensor([len(values)], device=values.device)).tolist()
        padded = accelerator.gather(accelerator.pad_across_processes(values, dim=0))
        values = torch.cat([part[:n] for part, n in zip(padded.view(len(counts), -1), counts, strict=True)])
    return values.cpu()


def row_places(trainer: Any, num_rows: int) -> Tensor:
    """Place (B,) of this process's rows of the generation batch under way among all rollouts of the run."""
    args, accelerator = trainer.args, trainer.accelerator
    generation = trainer._step // (args.steps_per_generation * trainer.num_iterations)
    start = generation * args.generation_batch_size + accelerator.process_index * num_rows
    return torch.arange(start, start + num_rows, device=accelerator.device)
