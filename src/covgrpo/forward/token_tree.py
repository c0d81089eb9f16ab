"""A batch of completions as a tree of tokens, each forwarded once, in one packed row.

    [what all prompts begin with | the rest of each prompt | the fed tokens of each completion]

A completion attends to its prompt and itself, a prompt's rest to the prefix and itself. All else in a transformer
works token by token, so nothing is padded and every weight meets all tokens in one matrix product.

Shapes: M tokens of the tree, S of the prefix, P prompts, R tokens of a prompt's rest at most, N completions, T fed
tokens of a completion at most, K key heads, H query heads, D head size.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from covgrpo.forward.attention_interface import lowered
from covgrpo.forward.fused_rows import FusedRows, RowLevel
from covgrpo.forward.group_attention import attend, attend_backward
from covgrpo.forward.rows_by_prompt import RowGroups


@dataclass(frozen=True)
class Branches:
    """Rows of the tree that begin behind shared tokens.

    Args:
        places: (n, t) index of each token in the packed row; 0 where padding follows a row's last token.
        valid: (n, t) which are tokens.
        groups: the shared tokens of each row.

    """

    places: Tensor
    valid: Tensor
    groups: RowGroups

    @classmethod
    def only(cls, length: int, device: torch.device) -> "Branches":
        """One row of the first ``length`` tokens, behind nothing."""
        places = torch.arange(length, device=device)[None]
        root = RowGroups.of(places.new_zeros(1), places.new_ones(1, 0, dtype=torch.bool))
        return cls(places, torch.ones_like(places, dtype=torch.bool), root)

    def take(self, packed: Tensor) -> Tensor:
        """(M, heads, D) -> (n, heads, t, D)."""
        return packed.index_select(0, self.places.flatten()).unflatten(0, self.places.shape).transpose(1, 2)

    def behind(self, shared: Tensor) -> RowLevel:
        """The rows behind shared tokens at these places (P, L)."""
        prompt_of_row, mask = self.groups.prompt_of_row, self.groups.prompt_mask
        shared_valid = None if mask is None else mask[prompt_of_row]
        return RowLevel(self.places, self.valid, shared[prompt_of_row], shared_valid)

    def put(self, rows: Tensor, packed: Tensor) -> None:
        """Write (n, heads, t, D) to the tokens' places in (M, heads, D)."""
        packed[self.places[self.valid]] = rows.transpose(1, 2)[self.valid].to(packed.dtype)

    def add(self, rows: Tensor, packed: Tensor) -> None:
        """Add (n, heads, t, D) to the tokens' places in (M, heads, D)."""
        packed[self.places[self.valid]] += rows.transpose(1, 2)[self.valid].to(packed.dtype)

    def take_gradient(self, packed: Tensor) -> Tensor:
        """:meth:`take` with 0 at padding."""
        return self.take(packed) * self.valid[:, None, :, None]


@dataclass(frozen=True)
class TokenTree:
    """The packed row and its levels: ``prefix`` alone, ``prompts`` behind it, ``completions`` behind both.

    Args:
        ids: (1, M) token ids.
        positions: (1, M).
        prefix_length: S, may be 0.
        prompts: P rows of R tokens; the group of all is the prefix.
        completions: N rows of T tokens behind [prefix | rest] of their prompts; ``None`` where no token is fed.

    """

    ids: Tensor
    positions: Tensor
    prefix_length: int
    prompts: Branches
    completions: Branches | None

    @classmethod
    def of(
        cls,
        prompts: tuple[Tensor, Tensor],
        completions: tuple[Tensor, Tensor],
        positions: tuple[Tensor, Tensor],
        prompt_of_row: Tensor,
        prefix_length: int,
    ) -> "TokenTree":
        """Pack prompts and completions.

        Args:
            prompts: ids and mask (P, S+R), right-padded; the first S ids are the same in all.
            completions: ids and mask (N, T) of the tokens to feed, right-padded.
            positions: of the prompts (P, S+R) and completions (N, T).
            prompt_of_row: (N,) prompt of each completion.
            prefix_length: S.

        """
        (prompt_ids, prompt_mask), (row_ids, row_mask) = ((ids, mask.bool()) for ids, mask in (prompts, completions))
        rest, fed = prompt_mask[:, prefix_length:], row_mask
        num_prompts, num_rest = len(prompt_ids), int(rest.sum())

        def packed(of_prompts: Tensor, of_rows: Tensor) -> Tensor:
            parts = [of_prompts[0, :prefix_length], of_prompts[:, prefix_length:][rest], of_rows[fed]]
            return torch.cat(parts)[None]

        prefix_mask = prompt_mask[:1, :prefix_length]
        all_prompts = torch.zeros(num_prompts, dtype=torch.long, device=prompt_ids.device)
        return cls(
            ids=packed(prompt_ids, row_ids),
            positions=packed(*positions),
            prefix_length=prefix_length,
            prompts=Branches(_places(rest, prefix_length), rest, RowGroups.of(all_prompts, prefix_mask)),
            completions=Branches(
                _places(fed, prefix_length + num_rest), fed, RowGroups.of(prompt_of_row, prompt_mask)
            ) if fed.any() else None,
        )  # fmt: skip

    def predicting(self, prompt_of_row: Tensor, valid: Tensor) -> Tensor:
        """Where the hidden states lie that predict the valid completion tokens (N, T+1), in row-major order."""
        last = self.prompts.places.gather(1, self.prompts.valid.sum(dim=1, keepdim=True) - 1)[prompt_of_row]
        fed = [] if self.completions is None else [self.completions.places]
        places = torch.cat([last, *fed], dim=1)
        return places[valid[:, : places.shape[1]]]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of all tokens: query (1, H, M, D), key and value (1, K, M, D) -> (1, H, M, D)."""
        q, k, v = lowered(query), lowered(key), lowered(value)
        if _by_fused_kernels(query.device):
            q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
            return self._fused_rows.attend(q, k, v, scaling).transpose(0, 1)[None]
        out: Tensor = _TreeAttention.apply(q, k, v, self, scaling)
        return out

    @functools.cached_property
    def _fused_rows(self) -> FusedRows:
        """The levels as rows, worked out once for all layers."""
        num_prompts, device = len(self.prompts.places), self.ids.device
        prefix = torch.arange(self.prefix_length, device=device).expand(num_prompts, -1)
        behind = [(self.prompts, prefix)]
        if self.prefix_length:
            root = Branches.only(self.prefix_length, device)
            behind.insert(0, (root, root.places[:, :0]))
        if self.completions is not None:
            whole = torch.cat([prefix, self.prompts.places], dim=1)
            behind.append((self.completions, whole))
        return FusedRows.of([branches.behind(shared) for branches, shared in behind])


def _places(valid: Tensor, start: int) -> Tensor:
    """Where the valid tokens lie that are packed row by row from ``start``."""
    return (valid.flatten().cumsum(0).view_as(valid) - 1 + start).masked_fill(~valid, 0)


def _by_fused_kernels(device: torch.device) -> bool:
    return device.type != "cpu"


class _TreeAttention(torch.autograd.Function):
    """Each level attends by :func:`attend`; only queries, keys, values and outputs are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: TokenTree, scaling: float) -> Tensor:
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))  # (M, heads, D)
        out = q.new_zeros(*q.shape[:2], v.shape[-1], dtype=v.dtype)
        with torch.autocast(q.device.type, enabled=False):
            for level in _levels(tree, q, k, v):
                level.branches.put(attend(*level.inputs, level.branches.groups, scaling), out)
        ctx.save_for_backward(q, k, v, out)
        ctx.tree, ctx.scaling = tree, scaling
        return out.transpose(0, 1)[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        grad = grad[0].transpose(0, 1)
        dq, dk, dv = (torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
        # A level adds to the gradients of what it shares, so the deepest comes first.
        for level in reversed(_levels(ctx.tree, q, k, v)):
            branches = level.branches
            of_queries, of_keys, of_values, of_shared_keys, of_shared_values = attend_backward(
                branches.take_gradient(grad), branches.take(out), *level.inputs, branches.groups, ctx.scaling
            )
            branches.add(of_queries, dq)
            for own, shared, total in ((of_keys, of_shared_keys, dk), (of_values, of_shared_values, dv)):
                branches.add(own, total)
                level.add_shared(shared, total)
        return (
            *(x.transpose(0, 1)[None].to(like.dtype) for x, like in zip((dq, dk, dv), (q, k, v), strict=True)),
            None,
            None,
        )


@dataclass(frozen=True)
class _Level:
    """Rows that attend, with what :func:`attend` takes: queries, keys and values of their own, shared ones."""

    branches: Branches
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    tree: TokenTree

    @classmethod
    def of(cls, tree: TokenTree, branches: Branches, packed: tuple[Tensor, ...], shared: Sequence[Tensor]) -> "_Level":
        q, k, v = (branches.take(x) for x in packed)
        return cls(branches, (q, k, v, shared[0], shared[1]), tree)

    def add_shared(self, gradient: Tensor, total: Tensor) -> None:
        """Add the gradient of shared keys or values, (P, K, L, D), to that of the packed tokens, (M, K, D)."""
        length = min(self.tree.prefix_length, gradient.shape[2])
        total[:length] += gradient[:, :, :length].sum(dim=0).transpose(0, 1)
        if gradient.shape[2] > length:
            self.tree.prompts.add(gradient[:, :, length:], total)


def _levels(tree: TokenTree, *packed: Tensor) -> list[_Level]:
    """The levels of the tree, from the root, on packed queries, keys and values (M, heads, D)."""
    length = tree.prefix_length
    nothing, prefix = ([x[:end].transpose(0, 1)[None] for x in packed[1:]] for end in (0, length))
    levels = []
    if length:
        levels.append(_Level.of(tree, Branches.only(length, packed[0].device), packed, nothing))
    levels.append(_Level.of(tree, tree.prompts, packed, prefix))
    if tree.completions is not None:
        own = levels[-1].inputs[1:3]
        whole = [torch.cat([x.expand(len(y), -1, -1, -1), y], dim=2) for x, y in zip(prefix, own, strict=True)]
        levels.append(_Level.of(tree, tree.completions, packed, whole))
    return levels
