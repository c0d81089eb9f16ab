"""Which rows belong to which prompt, and moving tensors between a row layout and a prompt layout."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowGroups:
    """N rows over P prompts; R is the largest number of rows of a prompt.

    Args:
        slot_of_row: (N,) place of each row among P x R slots, prompt after prompt.
        num_prompts: P.
        size: R.
        prompt_mask: (P, L) bool, which prompt tokens are no padding; ``None``: all of them.
        aligned: rows and slots are the same: every prompt has R rows, and they lie in order.

    """

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
        return cls(slot_of_row, num_prompts, size, None if bool(mask.all()) else mask, aligned)

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
