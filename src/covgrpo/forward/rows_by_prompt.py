"""Which rows belong to which prompt, and moving tensors between a row layout and a prompt layout."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowGroups:
    """N rows over P prompts; R is the largest number of rows of a prompt.

    Args:
        prompt_of_row: (N,) each row's prompt.
        slot_of_row: (N,) place of each row among P x R slots, prompt after prompt.
        num_prompts: P.
        size: R.
        prompt_mask: (P, L) bool, which prompt tokens are no padding; ``None``: all of them.
        aligned: rows and slots are the same: every prompt has R rows, and they lie in order.

    """

    prompt_of_row: Tensor
    slot_of_row: Tensor
    num_prompts: int
    size: int
    prompt_mask: Tensor | None
    aligned: bool

    @classmethod
    def of(cls, prompt_of_row: Tensor, prompt_mask: Tensor) -> "RowGroups":
        """Group rows by ``prompt_of_row`` (N,), which indexes ``prompt_mask`` (P, L)."""
        num_prompts = len(prompt_mask)
        counts = torch.bincount(prompt_of_row, minlength=num_prompts)
        size = int(counts.max())
        order = prompt_of_row.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[prompt_of_row[order]]
        mask = prompt_mask.bool()
        slot_of_row = prompt_of_row * size + rank
        aligned = bool((slot_of_row.diff() == 1).all()) and len(slot_of_row) == num_prompts * size
        return cls(prompt_of_row, slot_of_row, num_prompts, size, None if bool(mask.all()) else mask, aligned)

    def by_prompt(self, values: Tensor) -> Tensor:
        """(N, ...) -> (P, R, ...); slots without a row are 0."""
        slots = values
        if not self.aligned:
            slots = values.new_zeros(self.num_prompts * self.size, *values.shape[1:])
            slots.index_copy_(0, self.slot_of_row, values)
        return slots.unflatten(0, (self.num_prompts, self.size))

    def by_row(self, values: Tensor) -> Tensor:
        """(P, R, ...) -> (N, ...)."""
        slots = values.flatten(0, 1)
        return slots if self.aligned else slots.index_select(0, self.slot_of_row)


def for_rows(of_prompts: Tensor, prompt_of_row: Tensor) -> Tensor:
    """Index (P, ...) for every row: (N, ...)."""
    return _ForRows.apply(of_prompts, prompt_of_row)


class _ForRows(torch.autograd.Function):
    """Indexing whose backward adds the rows of a prompt in float32 and in order.

    The backward of plain indexing adds in the tensor's own dtype, by atomic operations whose order changes from run to
    run: sixteen bf16 gradients added so lose digits, and the same seed would not give the same weights.
    """

    @staticmethod
    def forward(ctx: Any, of_prompts: Tensor, prompt_of_row: Tensor) -> Tensor:
        ctx.save_for_backward(prompt_of_row)
        ctx.num_prompts = len(of_prompts)
        return of_prompts.index_select(0, prompt_of_row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (prompt_of_row,) = ctx.saved_tensors
        dtype = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros(ctx.num_prompts, *grad.shape[1:], dtype=dtype, device=grad.device)
        return total.index_add_(0, prompt_of_row, grad.to(dtype)).to(grad.dtype), None
