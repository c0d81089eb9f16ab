"""Grouped token statistics: sums over the valid tokens of each group, in float64, in O(block) extra memory.

Legend of the dimension suffixes used throughout the core:
    B  sequences (completions), in any order
    T  token positions of a completion, padded
    K  groups (the G completions of one prompt form one group)

Nothing here loops over groups. The tensors are walked in blocks of rows, so that the float64 temporaries stay small
however many tokens there are; sums are taken per row and then scattered to the row's group.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_TOKENS = {"cpu": 1 << 18, "accelerator": 1 << 24}
_NO_FLOAT64 = {"mps"}


@dataclass(frozen=True)
class Block:
    """A slice of rows: float64 values with 0 at masked positions, whatever was stored there."""

    logps: Tensor  # (b, T) l_{i,t}
    advantages: Tensor  # (b, T) A_{i,t}
    mask: Tensor  # (b, T) bool
    group: Tensor  # (b,) index of each row's group, in 0..K-1
    rows: slice  # where the rows lie in the batch


TokenFunction = Callable[[Block], Tensor]  # Block -> (b, T); values at masked positions are ignored


class GroupedTokens:
    """The valid tokens of a batch, by group.

    Args:
        logps: (B, T) floating; log pi of each sampled token.
        advantages: (B,) or (B, T) floating.
        mask: (B, T) bool or 0/1; which tokens are valid.
        group_ids: (B,) integer, any values in any order; ``None``: one group.

    Raises:
        ValueError: a wrong shape or dtype, or a mask value other than 0 and 1; names the argument.

    """

    def __init__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None):
        _check(logps, advantages, mask, group_ids)
        self.logps, self.mask = logps.detach(), mask.detach().bool()
        self.advantages = advantages.detach() if advantages.dim() == 2 else advantages.detach()[:, None]
        self.dtype = torch.float32 if logps.device.type in _NO_FLOAT64 else torch.float64
        self.result_dtype = torch.float64 if logps.dtype == torch.float64 else torch.float32
        if group_ids is None:
            self.group, self.num_groups = logps.new_zeros(len(logps), dtype=torch.long), 1
        else:
            values, self.group = torch.unique(group_ids, return_inverse=True)
            self.num_groups = len(values)
        self.num_tokens_B = self.mask.sum(dim=1)
        # N, the number of valid tokens of each group; at least 1 so that an empty group divides cleanly.
        self.num_tokens_K = self.sum_rows(self.num_tokens_B.to(self.dtype)).clamp(min=1)

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """Yield consecutive row blocks and where they lie."""
        num_rows, num_cols = self.logps.shape
        size = _BLOCK_TOKENS["cpu" if self.logps.device.type == "cpu" else "accelerator"]
        step = max(1, size // max(1, num_cols))
        for start in range(0, num_rows, step):
            rows = slice(start, min(start + step, num_rows))
            mask = self.mask[rows]
            zero = torch.zeros((), dtype=self.dtype, device=mask.device)
            yield (
                rows,
                Block(
                    logps=torch.where(mask, self.logps[rows].to(self.dtype), zero),
                    advantages=torch.where(mask, self.advantages[rows].to(self.dtype), zero),
                    mask=mask,
                    group=self.group[rows],
                    rows=rows,
                ),
            )

    def sum(self, function: TokenFunction) -> Tensor:
        """Sum ``function`` over each group's valid tokens: (K,)."""
        return self.sum_rows(self._row_sum(function))

    def sum_rows(self, values_B: Tensor) -> Tensor:
        """Sum a number of each completion over its group: (B,) -> (K,)."""
        total = torch.zeros(self.num_groups, dtype=self.dtype, device=self.logps.device)
        return total.index_add_(0, self.group, values_B)

    def row_mean(self, function: TokenFunction) -> Tensor:
        """Mean of ``function`` over each completion's valid tokens: (B,); 0 for one without any."""
        return self._row_sum(function) / self.num_tokens_B.clamp(min=1)

    def _row_sum(self, function: TokenFunction) -> Tensor:
        total = torch.zeros(len(self.logps), dtype=self.dtype, device=self.logps.device)
        for rows, block in self.blocks():
            total[rows] = function(block).to(self.dtype).masked_fill(~block.mask, 0).sum(dim=1)
        return total

    def mean(self, function: TokenFunction) -> Tensor:
        """Mean of ``function`` over each group's valid tokens: (K,); 0 for a group without any."""
        return self.sum(function) / self.num_tokens_K

    def max(self, function: TokenFunction) -> Tensor:
        """Return the maximum of ``function`` over each group's valid tokens: (K,); -inf for a group without any."""
        top = torch.full((self.num_groups,), -torch.inf, dtype=self.dtype, device=self.logps.device)
        for _, block in self.blocks():
            values = function(block).masked_fill(~block.mask, -torch.inf)
            if values.shape[1]:
                top.scatter_reduce_(0, block.group, values.amax(dim=1), "amax")
        return top

    def median(self, function: TokenFunction) -> Tensor:
        """Median of ``function`` over each group's valid tokens: (K,); 0 for a group without any. O(N log N)."""
        values, group = self.flat(function)
        order = _lexsort(group, values)
        size_K = torch.bincount(group, minlength=self.num_groups)
        first_K = size_K.cumsum(0) - size_K
        padded = torch.cat([values[order], values.new_zeros(1)])
        lower, upper = (first_K + ((size_K - 1) // 2).clamp(min=0), first_K + size_K // 2)
        median_K = (padded[lower.clamp(max=len(values))] + padded[upper.clamp(max=len(values))]) / 2
        return torch.where(size_K > 0, median_K, 0)

    def first(self, count_K: Tensor, candidates: Tensor, *keys: Tensor) -> Tensor:
        """Mark, in each group, the first ``count_K`` candidates in ascending order of ``keys``.

        Args:
            count_K: (K,) how many to mark at most.
            candidates: (B, T) bool; only valid ones count.
            keys: (B, T) each, the most significant first.

        Returns:
            (B, T) bool.

        """
        row, column = (candidates & self.mask).nonzero(as_tuple=True)
        group = self.group[row]
        order = _lexsort(group, *(key[row, column] for key in keys))
        size_K = torch.bincount(group, minlength=self.num_groups)
        first_K = size_K.cumsum(0) - size_K
        rank = torch.arange(len(order), device=order.device) - first_K[group[order]]
        chosen = order[rank < count_K[group[order]]]
        marked = torch.zeros_like(self.mask)
        marked[row[chosen], column[chosen]] = True
        return marked

    def flat(self, function: TokenFunction) -> tuple[Tensor, Tensor]:
        """Return the values at all valid tokens, (N,), and their groups, (N,)."""
        parts = [(function(block)[block.mask], block) for _, block in self.blocks()]
        if not parts:
            return self.logps.new_zeros(0, dtype=self.dtype), self.group[:0]
        groups = [block.group[:, None].expand_as(block.mask)[block.mask] for _, block in parts]
        return torch.cat([values for values, _ in parts]), torch.cat(groups)

    def map(self, function: TokenFunction) -> Tensor:
        """Evaluate ``function`` at every valid token: (B, T), float32 (float64 for float64 logps), 0 where masked."""
        result = torch.zeros(self.logps.shape, dtype=self.result_dtype, device=self.logps.device)
        for rows, block in self.blocks():
            result[rows] = function(block).masked_fill(~block.mask, 0).to(self.result_dtype)
        return result


def _lexsort(*keys: Tensor) -> Tensor:
    """Order (N,) by the first key, ties by the second, and so on."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


def _check(logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None) -> None:
    for name, value in (("logps", logps), ("advantages", advantages)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = f"{value.dtype}, shape " if isinstance(value, Tensor) else ""
            raise ValueError(f"{name} must be a floating-point tensor, got {found}{_shape(value)}.")
    if logps.dim() != 2:
        raise ValueError(f"logps must have shape (B, T), got {tuple(logps.shape)}.")
    shape = tuple(logps.shape)
    if tuple(advantages.shape) not in (shape, shape[:1]):
        raise ValueError(
            f"advantages must have shape (B,) or (B, T) = {shape[:1]} or {shape}, got {tuple(advantages.shape)}."
        )
    if not isinstance(mask, Tensor) or tuple(mask.shape) != shape:
        raise ValueError(f"mask must be a tensor of shape (B, T) = {shape}, got {_shape(mask)}.")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"mask (shape {shape}, {mask.dtype}) must hold only 0 and 1.")
    if group_ids is None:
        return
    if not isinstance(group_ids, Tensor) or tuple(group_ids.shape) != shape[:1]:
        raise ValueError(f"group_ids must be a tensor of shape (B,) = {shape[:1]}, got {_shape(group_ids)}.")
    if group_ids.is_floating_point() or group_ids.is_complex() or group_ids.dtype == torch.bool:
        raise ValueError(f"group_ids must be integers, got {group_ids.dtype}, shape {tuple(group_ids.shape)}.")


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
