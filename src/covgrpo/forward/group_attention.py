"""Attention of completions on [the prompt of their group | their own tokens], with each prompt's keys held once.

Stock attention wants a copy of the prompt's keys and values for every completion, and with grouped-query attention one
more for every query head. Here the queries of a prompt's completions are put side by side and meet its keys in one
matrix product; forward and backward keep neither copies nor scores.

Shapes: N rows, P prompts, R rows of a prompt at most, L prompt length, T queries a row, S own tokens a row (the last T
of them are the queries'), K key heads, Q query heads a key head, D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from covgrpo.forward.errors import NotShareableError
from covgrpo.forward.groups import RowGroups

NAME = "covgrpo_groups"  # as transformers' attention implementation
_SCORES_AT_ONCE = 1 << 24  # scores of a block of queries: 64 MiB in float32
# Arguments that attention functions are handed and that change nothing here.
_HARMLESS = {"position_ids", "use_cache", "output_attentions", "cache_position", "is_causal", "output_hidden_states"}

_cache: ContextVar[Any] = ContextVar("covgrpo_group_cache", default=None)


@contextmanager
def attending_by_group(config: Any, cache: Any) -> Iterator[None]:
    """Inside the block the model with this (text) config attends through ``cache``, a ``GroupCache``.

    Raises:
        NotShareableError: at the block's end, where a layer has attended in another way.

    """
    implementation, token = config._attn_implementation, _cache.set(cache)
    config._attn_implementation = NAME
    cache.begin()
    try:
        yield
    finally:
        config._attn_implementation = implementation
        _cache.reset(token)
    cache.check_served()


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface; ``query`` (N, heads, T, D), ``key`` and ``value`` (N, K, S, D)."""
    unknown = [name for name, given in others.items() if given is not None and name not in _HARMLESS]
    if unknown or dropout or attention_mask is not None:
        raise NotShareableError(f"its attention takes {', '.join(unknown) or 'dropout or a mask'}")
    cache = _cache.get()
    prompt_keys, prompt_values = cache.serve()
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = group_attention(query, key, value, prompt_keys, prompt_values, cache.groups, scaling)
    return output.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)


def group_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    groups: RowGroups,
    scaling: float,
) -> Tensor:
    """softmax(scaling q [K_prompt | K_own]^T) [V_prompt | V_own], causal among a row's own tokens.

    Args:
        query: (N, K*Q, T, D).
        key: (N, K, S, D) of the rows' own tokens, S >= T.
        value: (N, K, S, D), likewise.
        prompt_key: (P, K, L, D).
        prompt_value: (P, K, L, D).
        groups: which prompt each row has.
        scaling: factor of the scores.

    Returns:
        (N, K*Q, T, D) in the dtype of ``value``.

    """
    out: Tensor = _GroupAttention.apply(query, key, value, prompt_key, prompt_value, groups, scaling)
    return out


class _GroupAttention(torch.autograd.Function):
    """Keeps queries, keys and values; the probabilities are computed again in the backward pass, block by block.

    P = softmax(s Q K^T),  O = P V;   dV = P^T dO,  dS = P (dO V^T - rowsum(dO O)),  dQ = s dS K,  dK = s dS^T Q.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor, groups: RowGroups, scaling: float
    ) -> Tensor:
        ctx.groups, ctx.scaling = groups, scaling
        queries = q.to(k.dtype).unflatten(1, (k.shape[1], -1))  # (N, K, Q, T, D)
        out = torch.empty_like(queries, dtype=v.dtype)
        with torch.autocast(q.device.type, enabled=False):
            for block, seen in _blocks(queries, k, pk):
                prompt, own = _probabilities(queries[..., block, :], k[:, :, :seen], pk, groups, scaling)
                out[..., block, :] = _apply(prompt.to(v.dtype), pv, groups)
                out[..., block, :] += _apply(own.to(v.dtype), v[:, :, :seen])
        ctx.save_for_backward(q, k, v, pk, pv, out)
        return out.flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, pk, pv, out = ctx.saved_tensors
        groups, scaling = ctx.groups, ctx.scaling
        queries, grad_out = (x.unflatten(1, (k.shape[1], -1)) for x in (q.to(k.dtype), grad_out.to(v.dtype)))
        dq = torch.zeros_like(queries, dtype=_wide(k))
        dk, dv, dpk, dpv = (torch.zeros_like(x, dtype=_wide(k)) for x in (k, v, pk, pv))
        for block, seen in _blocks(queries, k, pk):
            q_block, grad = queries[..., block, :], grad_out[..., block, :]
            row_sum = (grad.to(_wide(k)) * out[..., block, :]).sum(dim=-1, keepdim=True)
            prompt, own = _probabilities(q_block, k[:, :, :seen], pk, groups, scaling)
            for p, keys, values, dkeys, dvalues, of in (
                (prompt, pk, pv, dpk, dpv, groups),
                (own, k[:, :, :seen], v[:, :, :seen], dk[:, :, :seen], dv[:, :, :seen], None),
            ):
                dvalues.add_(_collect(p.to(v.dtype), grad, of))
                ds = (_scores(grad, values, of) - row_sum).mul_(p).mul_(scaling).to(k.dtype)
                dq[..., block, :] += _apply(ds, keys, of)
                dkeys.add_(_collect(ds, q_block, of))
        gradients = (dq.flatten(1, 2), dk, dv, dpk, dpv)
        return *(grad.to(x.dtype) for grad, x in zip(gradients, (q, k, v, pk, pv), strict=True)), None, None


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
