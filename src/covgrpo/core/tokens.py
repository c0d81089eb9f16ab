"""The valid tokens of a batch as flat columns, with sums over completions and groups, in float64.

Legend of the dimension suffixes used throughout:
    B  sequences (completions), in any order
    T  token positions of a completion, padded
    N  valid tokens, completion after completion
    K  groups (the G completions of one prompt form one group)

A masked position is in no column, so whatever is stored there touches nothing. Nothing loops over groups: a sum runs
over each completion's tokens first, and over the completions of each group then. A large batch is taken a few groups at
a time (:func:`evaluate`): no number reaches from one group to another, and the columns stay small.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_NO_FLOAT64 = {"mps"}
_PART_TOKENS = {"cpu": 1 << 18, "accelerator": 1 << 24}  # positions of a part: few enough for the cache of a CPU


class Tokens:
    """The valid tokens of a batch, by group.

    Args:
        logps: (B, T) floating; log pi of each sampled token.
        advantages: (B,) or (B, T) floating.
        mask: (B, T) bool or 0/1; which tokens are valid.
        group_ids: (B,) integer, any values in any order; ``None``: one group.
        rows: which rows of a larger batch these are.

    Raises:
        ValueError: a wrong shape or dtype, or a mask value other than 0 and 1; names the argument.

    """

    def __init__(
        self,
        logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        group_ids: Tensor | None = None,
        rows: slice | Tensor = slice(None),
    ):
        _check(logps, advantages, mask, group_ids)
        self.rows = rows
        self._logps, self._advantages, self.mask = logps.detach(), advantages.detach(), mask.detach().bool()
        self.dtype = torch.float32 if logps.device.type in _NO_FLOAT64 else torch.float64
        self.eps_A = torch.finfo(advantages.dtype).eps  # rounding of the advantages as given
        self.result_dtype = _result_dtype(logps)
        if group_ids is None:
            self.group_B, self.num_groups = logps.new_zeros(len(logps), dtype=torch.long), 1
        else:
            values, self.group_B = torch.unique(group_ids, return_inverse=True)
            self.num_groups = len(values)
        self._place = self.mask.flatten().nonzero()[:, 0]  # (N,) of each token among the B*T
        self._num_valid_B = self.mask.sum(dim=1)
        num_rows = torch.arange(len(logps), dtype=torch.int32, device=logps.device)
        self.row = torch.repeat_interleave(num_rows, self._num_valid_B)  # (N,) the completion of each token
        self.num_tokens_B = self._num_valid_B.to(self.dtype)
        # At least 1, so that an empty group divides cleanly.
        self.num_tokens_K = self.sum_rows(self.num_tokens_B).clamp(min=1)

    @property
    def l(self) -> Tensor:  # noqa: E743 (as in the formulas)
        """Log-probs (N,)."""
        return self.column(self._logps)

    @property
    def A(self) -> Tensor:
        """Advantages (N,)."""
        if self._advantages.dim() == 2:
            return self.column(self._advantages)
        return self.each_row(self._advantages.to(self.dtype))

    @property
    def group(self) -> Tensor:
        """The group of each token, in 0..K-1: (N,) int64."""
        return self.each_row(self.group_B)

    def column(self, values_BT: Tensor) -> Tensor:
        """Take the values at the valid positions: (N,)."""
        return values_BT.flatten().index_select(0, self._place).to(self.dtype)

    def fill(self, values: Tensor) -> Tensor:
        """Put a column back in its places: (B, T), float32 (float64 for float64 logps), 0 where masked."""
        result = torch.zeros(self.mask.shape, dtype=self.result_dtype, device=self.mask.device)
        return result.masked_scatter_(self.mask, values.to(self.result_dtype))

    def row_sum(self, x: Tensor) -> Tensor:
        """Sum over each completion's tokens: (B,)."""
        return self._over_rows(x, "sum", 0.0)

    def row_mean(self, x: Tensor) -> Tensor:
        """Mean over each completion's tokens: (B,); 0 for one without any."""
        return self.row_sum(x) / self.num_tokens_B.clamp(min=1)

    def sum_rows(self, x_B: Tensor) -> Tensor:
        """Sum a number of each completion over its group: (B,) -> (K,)."""
        return x_B.new_zeros(self.num_groups).index_add_(0, self.group_B, x_B)

    def sum_K(self, x: Tensor) -> Tensor:
        """Sum over each group's tokens: (K,)."""
        return self.sum_rows(self.row_sum(x))

    def mean_K(self, x: Tensor) -> Tensor:
        """Mean over each group's tokens: (K,); 0 for a group without any."""
        return self.sum_K(x) / self.num_tokens_K

    def max_K(self, x: Tensor) -> Tensor:
        """Return the maximum over each group's tokens: (K,); -inf for a group without any."""
        top_K = x.new_full((self.num_groups,), -torch.inf)
        return top_K.scatter_reduce_(0, self.group_B, self._over_rows(x, "max", -torch.inf), "amax")

    def median_K(self, x: Tensor) -> Tensor:
        """Median over each group's tokens: (K,); 0 for a group without any. O(N log N)."""
        order = _lexsort(self.group, x)
        size_K = self.sum_rows(self._num_valid_B)
        first_K = size_K.cumsum(0) - size_K
        padded = torch.cat([x[order], x.new_zeros(1)])
        lower, upper = (first_K + ((size_K - 1) // 2).clamp(min=0), first_K + size_K // 2)
        median_K = (padded[lower.clamp(max=len(x))] + padded[upper.clamp(max=len(x))]) / 2
        return torch.where(size_K > 0, median_K, 0)

    def each(self, x_K: Tensor) -> Tensor:
        """Hand each token its group's value: (K,) -> (N,), or (1,) where there is one group."""
        return x_K if self.num_groups == 1 else self.each_row(x_K[self.group_B])

    def each_row(self, x_B: Tensor) -> Tensor:
        """Hand each token its completion's value: (B,) -> (N,)."""
        return x_B.index_select(0, self.row)

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the token's group, at every token: (N,), or (1,) where there is one group."""
        return self.each(self.mean_K(x))

    def variance_K(self, x: Tensor) -> Tensor:
        """mean((x - mean(x))^2) over each group's tokens: (K,)."""
        return self.mean_K((x - self.mean(x)).square_())

    def row_in_batch(self, row: int) -> int:
        """Return the place of completion ``row`` in the batch that this is a part of."""
        if isinstance(self.rows, slice):
            return (self.rows.start or 0) + row
        return int(self.rows[row])

    def first(self, count_K: Tensor, candidates: Tensor, *keys: Tensor) -> Tensor:
        """Mark, in each group, the first ``count_K`` candidates in ascending order of ``keys``.

        Args:
            count_K: (K,) how many to mark at most.
            candidates: (N,) bool.
            keys: (N,) each, the most significant first.

        Returns:
            (N,) bool.

        """
        place = candidates.nonzero()[:, 0]
        group = self.group[place]
        order = _lexsort(group, *(key[place] for key in keys))
        size_K = torch.bincount(group, minlength=self.num_groups)
        first_K = size_K.cumsum(0) - size_K
        rank = torch.arange(len(order), device=order.device) - first_K[group[order]]
        marked = torch.zeros_like(candidates)
        marked[place[order[rank < count_K[group[order]]]]] = True
        return marked

    def _over_rows(self, x: Tensor, how: str, empty: float) -> Tensor:
        if len(x) == 0:
            return x.new_full((len(self.mask),), empty)
        if x.device.type in _NO_FLOAT64:  # which lack segment_reduce as well
            result = x.new_full((len(self.mask),), empty)
            return result.scatter_reduce_(0, self.row.long(), x, "amax" if how == "max" else how)
        return torch.segment_reduce(x, how, lengths=self._num_valid_B, initial=empty, unsafe=True)


def evaluate(
    function: Callable[[Tokens], Tensor],
    logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    group_ids: Tensor | None = None,
) -> Tensor:
    """Evaluate a function of tokens, (N,), in which no group knows of another: (B, T), 0 where masked.

    A large batch is taken a few whole groups at a time, in ascending order of the groups' ids.

    Raises:
        ValueError: as :class:`Tokens`.

    """
    _check(logps, advantages, mask, group_ids)
    mask = mask.bool()  # so that no part looks through it again
    num_rows, length = logps.shape
    most = _PART_TOKENS["cpu" if logps.device.type == "cpu" else "accelerator"]
    if group_ids is None or num_rows * length <= most:
        tokens = Tokens(logps, advantages, mask, group_ids)
        return tokens.fill(function(tokens))
    # Compared, not subtracted: differences of unsigned or far ids would wrap.
    order = None if (group_ids[1:] >= group_ids[:-1]).all() else group_ids.argsort(stable=True)
    sizes = torch.unique(group_ids, return_counts=True)[1].tolist()
    result = torch.empty(logps.shape, dtype=_result_dtype(logps), device=logps.device)
    for start, end in _runs(sizes, max(1, most // length)):
        rows = slice(start, end) if order is None else order[start:end]
        tokens = Tokens(logps[rows], advantages[rows], mask[rows], group_ids[rows], rows)
        result[rows] = tokens.fill(function(tokens))
    return result


def _result_dtype(logps: Tensor) -> torch.dtype:
    return torch.float64 if logps.dtype == torch.float64 else torch.float32


def _runs(sizes: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Cut items of these sizes into runs of at most ``most`` (or of one item that is larger): start and end."""
    start = end = 0
    for size in sizes:
        if end > start and end + size - start > most:
            yield start, end
            start = end
        end += size
    yield start, end


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
