"""Attention of a tree of tokens by torch's fused kernels, for accelerators.

Each row of a level gets a copy of its group's keys and values beside its own, as in stock attention; the copies live as
long as a layer does. On CPUs, where copies cost more than products, :mod:`covgrpo.forward.group_attention` does without
them. What is taken from where is worked out once for all layers, and taken at once for all levels: small models wait
for the kernels' starts, not for the kernels.

Shapes: M tokens of the tree; of a level n rows, t queries and s keys a row; K key heads, H query heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from covgrpo.forward.rows_by_prompt import for_rows


@dataclass(frozen=True)
class RowLevel:
    """Rows that attend to what they share and, causally, to themselves.

    Args:
        queries: (n, t) place of each own token in the packed row.
        valid: (n, t) which of them are tokens, not padding at the end.
        shared: (n, s-t) places of the tokens before them.
        shared_valid: (n, s-t) which of those are tokens; ``None``: all.

    """

    queries: Tensor
    valid: Tensor
    shared: Tensor
    shared_valid: Tensor | None

    def keys(self) -> Tensor:
        """(n, s) places of [shared | own] tokens."""
        return torch.cat([self.shared, self.queries], dim=1)

    def seen(self) -> Tensor | None:
        """Say which keys a query sees: (n, 1, t, s) bool; ``None`` where no shared token is padding."""
        if self.shared_valid is None:
            return None
        (num_rows, length), own = self.queries.shape, self.shared.shape[1]
        causal = torch.ones(length, own + length, dtype=torch.bool, device=self.valid.device).tril(own)
        seen = torch.cat([self.shared_valid, self.valid.new_ones(num_rows, length)], dim=1)
        return causal & seen[:, None, None]


@dataclass(frozen=True)
class FusedRows:
    """Where the rows of all levels take their queries, keys and values, and where their outputs go.

    Args:
        levels: shapes (n, t, s) and mask of each.
        queries: (sum n*t,) places; ``None`` where they are the packed row as it lies.
        keys: (sum n*s,) places.
        kept: (M,) which of the queries are tokens, in packed order; ``None``: all.

    """

    levels: Sequence[tuple[tuple[int, int, int], Tensor | None]]
    queries: Tensor | None
    keys: Tensor
    kept: Tensor | None

    @classmethod
    def of(cls, levels: Sequence[RowLevel]) -> "FusedRows":
        """Join levels, whose own tokens follow each other in the packed row, level by level and row by row."""
        keys = [level.keys() for level in levels]
        shapes = [(*level.queries.shape, places.shape[1]) for level, places in zip(levels, keys, strict=True)]
        kept = torch.cat([level.valid.flatten() for level in levels])
        full = bool(kept.all())
        return cls(
            levels=[(shape, level.seen()) for shape, level in zip(shapes, levels, strict=True)],
            queries=None if full else torch.cat([level.queries.flatten() for level in levels]),
            keys=torch.cat([places.flatten() for places in keys]),
            kept=None if full else kept.nonzero()[:, 0],
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """softmax(s q k^T) v in every row: (M, H, D) on (M, K, D) -> (M, H, D); differentiable."""
        queries = q.to(k.dtype) if self.queries is None else q.to(k.dtype).index_select(0, self.queries)
        pairs = for_rows(torch.stack([k, v], dim=1), self.keys)  # (sum n*s, 2, K, D)
        shapes = [shape for shape, _ in self.levels]
        q_parts = queries.split([n * t for n, t, _ in shapes])
        kv_parts = pairs.split([n * s for n, _, s in shapes])
        outputs = []
        for ((n, t, s), seen), q_part, kv_part in zip(self.levels, q_parts, kv_parts, strict=True):
            q_rows = q_part.view(n, t, *q_part.shape[1:]).transpose(1, 2)
            kv_rows = kv_part.view(n, s, *kv_part.shape[1:]).permute(2, 0, 3, 1, 4)
            outputs.append(_attend(q_rows, kv_rows[0], kv_rows[1], seen, scaling).transpose(1, 2).flatten(0, 1))
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return out if self.kept is None else out.index_select(0, self.kept)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scaling: float) -> Tensor:
    """(n, H, t, D) on (n, K, s, D); without a mask the last query sees all keys, the one before it one less."""
    # Kernels that take a mask, and those of float32, want as many key heads as query heads.
    repeated = seen is not None or q.dtype == torch.float32
    if repeated:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    if seen is None and q.shape[2] == k.shape[2]:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=not repeated)
    mask = causal_lower_right(q.shape[2], k.shape[2]) if seen is None else seen
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=not repeated)
