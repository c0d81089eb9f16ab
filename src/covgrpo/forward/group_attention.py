"""Attention of rows on [what their group shares | their own tokens], with the shared keys held once for the group.

Stock attention wants a copy of a prompt's keys and values for every completion, with grouped-query attention one more
for every query head. Here the queries of a group's rows are put side by side and meet its keys in one matrix product;
neither copies nor scores are kept for the backward pass.

Shapes: N rows, P groups, R rows of a group at most, L shared tokens, T queries a row, S own tokens a row (the last T of
them are the queries'), K key heads, Q query heads a key head, D head size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from covgrpo.forward.rows_by_prompt import RowGroups

_SCORES_AT_ONCE = 1 << 24  # scores of a block of queries: 64 MiB in float32


def attend(q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor, groups: RowGroups, scaling: float) -> Tensor:
    """softmax(s q [pk | k]^T) [pv | v], causal among a row's own tokens.

    Args:
        q: (N, K*Q, T, D) queries.
        k: (N, K, S, D) keys of the rows' own tokens, S >= T.
        v: (N, K, S, D) values, likewise.
        pk: (P, K, L, D) shared keys, in the dtype of ``k``; L may be 0.
        pv: (P, K, L, D) shared values.
        groups: which shared tokens each row has.
        scaling: s.

    Returns:
        (N, K*Q, T, D) in the dtype of ``v``.

    """
    queries = q.to(k.dtype).unflatten(1, (k.shape[1], -1))  # (N, K, Q, T, D)
    out = torch.empty_like(queries, dtype=v.dtype)
    for block, seen in _blocks(queries, k, pk):
        shared, own = _probabilities(queries[..., block, :], k[:, :, :seen], pk, groups, scaling)
        out[..., block, :] = _apply(own.to(v.dtype), v[:, :, :seen])
        if pk.shape[-2]:
            out[..., block, :] += _apply(shared.to(v.dtype), pv, groups)
    return out.flatten(1, 2)


def attend_backward(
    grad_out: Tensor,
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pk: Tensor,
    pv: Tensor,
    groups: RowGroups,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, pk and pv, in float32 or wider, from the gradient of ``out = attend(q, k, v, ...)``.

    P = softmax(s Q K^T),  O = P V;   dV = P^T dO,  dS = P (dO V^T - rowsum(dO O)),  dQ = s dS K,  dK = s dS^T Q.
    The probabilities are computed again, block by block.
    """
    queries, grad_out, out = (x.unflatten(1, (k.shape[1], -1)) for x in (q.to(k.dtype), grad_out.to(v.dtype), out))
    dq = torch.zeros_like(queries, dtype=_wide(k))
    dk, dv, dpk, dpv = (torch.zeros_like(x, dtype=_wide(k)) for x in (k, v, pk, pv))
    for block, seen in _blocks(queries, k, pk):
        q_block, grad = queries[..., block, :], grad_out[..., block, :]
        row_sum = (grad.to(_wide(k)) * out[..., block, :]).sum(dim=-1, keepdim=True)
        shared, own = _probabilities(q_block, k[:, :, :seen], pk, groups, scaling)
        for p, keys, values, dkeys, dvalues, of in (
            (shared, pk, pv, dpk, dpv, groups),
            (own, k[:, :, :seen], v[:, :, :seen], dk[:, :, :seen], dv[:, :, :seen], None),
        ):
            if p.shape[-1] == 0:
                continue
            dvalues.add_(_collect(p.to(v.dtype), grad, of))
            ds = (_scores(grad, values, of) - row_sum).mul_(p).mul_(scaling).to(k.dtype)
            dq[..., block, :] += _apply(ds, keys, of)
            dkeys.add_(_collect(ds, q_block, of))
    return dq.flatten(1, 2), dk, dv, dpk, dpv


def _blocks(queries: Tensor, keys: Tensor, prompt_keys: Tensor) -> Iterator[tuple[slice, int]]:
    """Blocks of queries with few scores, and how many of a row's own tokens they see at most."""
    num_queries, num_own = queries.shape[-2], keys.shape[-2]
    before = num_own - num_queries
    rows = queries.shape[:3].numel()
    size = max(1, _SCORES_AT_ONCE // (rows * (prompt_keys.shape[-2] + num_own)))
    for start in range(0, num_queries, size):
        end = min(start + size, num_queries)
        yield slice(start, end), before + end


def _probabilities(q: Tensor, k: Tensor, pk: Tensor, groups: RowGroups, scaling: float) -> tuple[Tensor, Tensor]:
    """softmax(s q [pk | k]^T), causal: (N, K, Q, T, L) and (N, K, Q, T, S); the last query sees all S own tokens."""
    of_prompt = _fold(q, groups).to(_wide(k)) @ pk.to(_wide(k)).mT  # (P, K, R*Q*T, L)
    if groups.prompt_mask is not None:
        of_prompt.masked_fill_(~groups.prompt_mask[:, None, None], -torch.inf)
    prompt, own = _unfold(of_prompt, q, groups), _scores(q, k)
    num_queries, num_own = q.shape[-2], k.shape[-2]
    if num_queries > 1:
        later = torch.ones(num_queries, num_own, dtype=torch.bool, device=q.device).triu(num_own - num_queries + 1)
        own.masked_fill_(later, -torch.inf)
    p = torch.cat([prompt, own], dim=-1).mul_(scaling).softmax(dim=-1)
    return p[..., : pk.shape[-2]], p[..., pk.shape[-2] :]


def _scores(x: Tensor, keys: Tensor, groups: RowGroups | None = None) -> Tensor:
    """(N, K, Q, T, D) on keys or values (N or P, K, S, D): (N, K, Q, T, S), not rounded to the inputs' dtype."""
    return _unfold(_fold(x, groups).to(_wide(x)) @ keys.to(_wide(x)).mT, x, groups)


def _apply(p: Tensor, values: Tensor, groups: RowGroups | None = None) -> Tensor:
    """(N, K, Q, T, S) times values or keys (N or P, K, S, D): (N, K, Q, T, D)."""
    return _unfold(_fold(p, groups) @ values, p, groups)


def _collect(p: Tensor, x: Tensor, groups: RowGroups | None = None) -> Tensor:
    """Sum p^T x over queries and, on prompts, over their rows: (N or P, K, S, D)."""
    return _fold(p, groups).mT @ _fold(x, groups)


def _fold(x: Tensor, groups: RowGroups | None) -> Tensor:
    """(N, K, Q, T, .) -> (N, K, Q*T, .), or with the rows of a prompt side by side (P, K, R*Q*T, .)."""
    return x.flatten(2, 3) if groups is None else groups.by_prompt(x).transpose(1, 2).flatten(2, 4)


def _unfold(x: Tensor, like: Tensor, groups: RowGroups | None) -> Tensor:
    """Undo :func:`_fold`: (N, K, Q, T, .) with Q and T of ``like``."""
    shape = like.shape[2:4]
    return (
        x.unflatten(2, shape)
        if groups is None
        else groups.by_row(x.unflatten(2, (groups.size, *shape)).transpose(1, 2))
    )


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
