"""What the processes of a run tell each other: Python objects, over torch's default process group."""

from typing import Any, TypeVar

import torch

_T = TypeVar("_T")


def gathered(value: _T) -> list[_T]:
    """What each process has, in their order, on all of them; a collective where there are several."""
    if _count() == 1:
        return [value]
    values: list[Any] = [None] * _count()
    torch.distributed.all_gather_object(values, value)
    return values


def from_first(value: _T) -> _T:
    """What the first process has, on all of them; a collective where there are several."""
    values = [value]
    if _count() > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def _count() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1
