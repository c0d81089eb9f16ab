"""Forward each prompt once per group instead of once per completion. Exact: gradients flow through the prompt's cache.

The completions of a group share their prompt, so its keys and values are computed once; what all prompts begin with
(chat template, system prompt, solved examples) is likewise forwarded once for all of them.
Completions of different lengths are forwarded in buckets, so that short ones are not padded to the longest.
The hidden state at the prompt's last position predicts the first completion token; the hidden state at completion
position t-1 predicts token t; so neither prompt nor padding positions nor the last token reach the vocabulary head.

Shapes: N rows, P distinct prompts, L prompt length (left-padded), T completion length (right-padded), H hidden size.
"""

import functools
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from covgrpo.forward.attention_interface import (
    attending_by,
    checkpoints,
    recomputing_by,
    refuse_our_attention,
    takes_our_attention,
)
from covgrpo.forward.cache_name import cache_argument, cache_of, take_cache
from covgrpo.forward.group_cache import check_plain
from covgrpo.forward.length_buckets import length_buckets
from covgrpo.forward.not_shareable import NotShareableError
from covgrpo.forward.rows_by_prompt import for_rows
from covgrpo.forward.token_tree import TokenTree

_PLAIN_ATTENTION_BYTES = 64 * 2**20
# What one more forward costs beside its tokens, in tokens: reading the weights; on accelerators, starting kernels.
_BUCKET_COST = {"cpu": 32}
_BUCKET_COST_ELSEWHERE = 4096


@dataclass(frozen=True)
class SharedPrompts:
    """A batch of completions over few distinct prompts.

    Args:
        prompt_ids: (P, L) left-padded.
        prompt_mask: (P, L).
        prompt_of_row: (N,) index of each row's prompt.
        completion_ids: (N, T) right-padded.
        completion_mask: (N, T) ones, then zeros.

    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    prompt_of_row: Tensor
    completion_ids: Tensor
    completion_mask: Tensor

    @classmethod
    def from_rows(cls, input_ids: Tensor, attention_mask: Tensor, completion_length: int) -> "SharedPrompts":
        """Split rows (N, L+T) into prompt and completion and keep each distinct prompt once, in order of appearance."""
        length = input_ids.shape[1] - completion_length
        prompt_mask = attention_mask[:, :length]
        keys = torch.cat([input_ids[:, :length].masked_fill(prompt_mask == 0, -1), prompt_mask], dim=1)
        _, prompt_of_row = torch.unique(keys, dim=0, return_inverse=True)
        num_prompts = int(prompt_of_row.max()) + 1
        first_row = torch.full((num_prompts,), len(keys), device=keys.device).scatter_reduce_(
            0, prompt_of_row, torch.arange(len(keys), device=keys.device), "amin"
        )
        first_row, order = first_row.sort()
        return cls(
            prompt_ids=input_ids[first_row, :length],
            prompt_mask=prompt_mask[first_row],
            prompt_of_row=order.argsort()[prompt_of_row],
            completion_ids=input_ids[:, length:],
            completion_mask=attention_mask[:, length:],
        )


@contextmanager
def sharing_prompts(backbone: nn.Module) -> Iterator[None]:
    """Inside the block ``backbone(shared_prompt=SharedPrompts(...))`` returns what predicts the valid tokens.

    Everything else is the original forward. The output's ``last_hidden_state`` is (1, M, H), one row for each of the
    M valid completion tokens in row-major order: TRL's fused head then scores exactly those when it is called with
    ``shift_labels`` (1, M).

    Outside the block the model is as it was: whatever copies, saves or wraps it meets no patch.
    """
    original, own = backbone.forward, backbone.__dict__.get("forward")

    @functools.wraps(type(backbone).forward)
    def forward(self: nn.Module, *args: Any, shared_prompt: SharedPrompts | None = None, **kwargs: Any) -> Any:
        if shared_prompt is None:
            return original(*args, **kwargs)
        return _forward_shared(original, self, shared_prompt, rotary=hasattr(self, "rotary_emb"))

    backbone.forward = types.MethodType(forward, backbone)
    try:
        yield
    finally:
        if own is None:
            del backbone.forward
        else:
            backbone.forward = own


def _forward_shared(forward: Any, model: Any, batch: SharedPrompts, rotary: bool) -> Any:
    if takes_our_attention(model):
        try:
            return _forward_tree(forward, model, batch, rotary)
        except NotShareableError:
            refuse_our_attention(model)
    return _forward_in_stages(forward, model, batch, rotary)


def _forward_tree(forward: Any, model: Any, batch: SharedPrompts, rotary: bool) -> Any:
    """Forward every token once, in one pass."""
    tree, config = _tree(batch, rotary), model.config
    recomputing: AbstractContextManager[None] = nullcontext()
    if model.training and checkpoints(model):
        recomputing = recomputing_by(tree, config, model)
    with recomputing, attending_by(tree, config):
        output = forward(input_ids=tree.ids, position_ids=tree.positions, use_cache=False)
    places = tree.predicting(batch.prompt_of_row, batch.completion_mask.bool())
    output.last_hidden_state = for_rows(output.last_hidden_state[0], places)[None]
    return output


def _tree(batch: SharedPrompts, rotary: bool) -> TokenTree:
    mask, length = batch.prompt_mask, batch.prompt_ids.shape[1]
    lengths = mask.sum(dim=1, keepdim=True)
    column = torch.arange(int(lengths.max()), device=mask.device)
    prompt_ids = batch.prompt_ids.gather(1, (column + length - lengths).clamp(max=length - 1))
    # Positions that models do not see only by their differences are those of the padded batch.
    first = (length - lengths).min().expand_as(lengths) if rotary else length - lengths
    # The last token of a completion predicts nothing, so it is not fed.
    fed = batch.completion_mask[:, 1:]
    step = torch.arange(fed.shape[1], device=mask.device)
    return TokenTree.of(
        prompts=(prompt_ids, column < lengths),
        completions=(batch.completion_ids[:, :-1], fed),
        positions=(first + column, (first + lengths)[batch.prompt_of_row] + step),
        prompt_of_row=batch.prompt_of_row,
        prefix_length=_common_prefix_length(batch.prompt_ids, mask) if rotary else 0,
    )


def _forward_in_stages(forward: Any, model: Any, batch: SharedPrompts, rotary: bool) -> Any:
    """Forward the prompts' common prefix, the prompts on its cache, and the completions on copies of theirs."""
    layout = _PromptLayout.of(batch, rotary)
    output = _forward_prompts(forward, model, batch, layout)
    last_hidden = output.last_hidden_state[:, -1:]  # (P, 1, H) predicts the first completion token
    cache = take_cache(output)
    valid = batch.completion_mask.bool()
    place = valid.flatten().cumsum(0).view_as(valid) - 1  # of each valid token in the result
    # The last token of a completion predicts nothing, so it is not fed.
    num_fed = (valid.sum(dim=1) - 1).clamp(min=0)
    parts, places = [], []
    for rows, width in length_buckets(num_fed, _BUCKET_COST.get(valid.device.type, _BUCKET_COST_ELSEWHERE)):
        hidden = for_rows(last_hidden, batch.prompt_of_row[rows])
        if width > 0:
            completion = _forward_completions(forward, model, batch, layout, cache, rows, width)
            hidden = torch.cat([hidden, completion], dim=1)
        kept = valid[rows, : width + 1]
        parts.append(hidden[kept])
        places.append(place[rows, : width + 1][kept])
    # Several buckets are put back into row-major order.
    hidden = parts[0] if len(parts) == 1 else torch.cat(parts).index_select(0, torch.cat(places).argsort())
    output.last_hidden_state = hidden[None]
    return output


def _forward_completions(
    forward: Any, model: Any, batch: SharedPrompts, layout: "_PromptLayout", cache: Any, rows: Tensor, width: int
) -> Tensor:
    """Hidden states (n, width, H) at the first ``width`` completion tokens of n rows, on their prompts' cache."""
    prompt_of_row = batch.prompt_of_row[rows]
    prompt_mask = layout.mask[prompt_of_row]
    num_scores = len(rows) * width * (prompt_mask.shape[1] + width)
    with _attention_for(model.config, num_scores, prompt_mask.device):
        output = forward(
            input_ids=batch.completion_ids[rows, :width],
            attention_mask=torch.cat([prompt_mask, batch.completion_mask[rows, :width]], dim=1),
            position_ids=layout.end[prompt_of_row, None] + torch.arange(width, device=prompt_mask.device),
            use_cache=True,
            **cache_argument(model, _copy_cache(cache, prompt_of_row)),
        )
    hidden: Tensor = output.last_hidden_state
    return hidden


@dataclass(frozen=True)
class _PromptLayout:
    """The prompts with their common prefix taken out: [prefix | padding | rest], positions running on without a gap.

    Where no prefix is taken out this is [padding | prompt] with the positions of the full (padded) batch. Moving a row
    changes nothing for rotary embeddings, which know differences of positions only; other models keep theirs.

    Args:
        prefix: (1, K) token ids, K = 0 where none is taken out.
        rest: (P, R) token ids, left-padded.
        mask: (P, K+R) which tokens are no padding.
        positions: (P or 1, K+R).
        end: (P,) position of each prompt's first completion token.

    """

    prefix: Tensor
    rest: Tensor
    mask: Tensor
    positions: Tensor
    end: Tensor

    @classmethod
    def of(cls, batch: SharedPrompts, rotary: bool) -> "_PromptLayout":
        length = batch.prompt_ids.shape[1]
        # Columns that are padding in every prompt are dropped; positions stay those of the full (padded) batch.
        start = int(batch.prompt_mask.argmax(dim=1).min())
        ids, mask = batch.prompt_ids[:, start:], batch.prompt_mask[:, start:]
        shared = _common_prefix_length(ids, mask) if rotary else 0
        if shared == 0:
            positions = torch.arange(start, length, device=ids.device)[None]
            return cls(ids[:1, :0], ids, mask, positions, positions.new_full((len(ids),), length))
        lengths = mask.sum(dim=1)
        rest_length = int(lengths.max()) - shared
        rest_mask = torch.arange(rest_length, device=ids.device) >= rest_length - (lengths - shared)[:, None]
        new_mask = torch.cat([mask.new_ones(len(ids), shared), rest_mask.to(mask.dtype)], dim=1)
        return cls(
            prefix=ids[:1, -int(lengths[0]) :][:, :shared],
            rest=ids[:, -rest_length:],
            mask=new_mask,
            positions=start + (new_mask.cumsum(dim=1) - 1),
            end=start + lengths,
        )


def _common_prefix_length(ids: Tensor, mask: Tensor) -> int:
    """Tokens that all of several left-padded prompts (P, L) begin with; each keeps at least one of its own."""
    lengths = mask.sum(dim=1)
    if len(ids) == 1:
        return 0
    # Left-aligned: column j holds token j of each prompt.
    columns = torch.arange(max(int(lengths.min()) - 1, 0), device=ids.device) + (ids.shape[1] - lengths)[:, None]
    aligned = ids.gather(1, columns)
    return int((aligned == aligned[:1]).all(dim=0).long().cumprod(dim=0).sum())


def _forward_prompts(forward: Any, model: Any, batch: SharedPrompts, layout: _PromptLayout) -> Any:
    shared, device = layout.prefix.shape[1], batch.prompt_ids.device
    if shared == 0:
        return forward(input_ids=layout.rest, attention_mask=layout.mask, position_ids=layout.positions, use_cache=True)
    prefix = forward(input_ids=layout.prefix, position_ids=layout.positions[:1, :shared], use_cache=True)
    cache = _copy_cache(cache_of(prefix), torch.zeros(len(layout.rest), dtype=torch.long, device=device))
    with _attention_for(model.config, layout.rest.numel() * layout.mask.shape[1], device):
        return forward(
            input_ids=layout.rest,
            attention_mask=layout.mask,
            position_ids=layout.positions[:, shared:],
            use_cache=True,
            **cache_argument(model, cache),
        )


@contextmanager
def _attention_for(config: Any, num_scores: int, device: torch.device) -> Iterator[None]:
    """Use plain matrix products where few queries meet many keys: torch's fused CPU kernel is slow there.

    The backward pass of 128 x 4 queries on 79 keys takes 1.8 s a step in the fused kernel, 0.4 s in plain products.
    """
    implementation = config._attn_implementation
    bytes_of_scores = 4 * num_scores * config.get_text_config().num_attention_heads
    if device.type != "cpu" or implementation != "sdpa" or bytes_of_scores > _PLAIN_ATTENTION_BYTES:
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = implementation


def _copy_cache(cache: Any, prompt_of_row: Tensor) -> DynamicCache:
    """Index a cache for every row; autograd sums the rows' gradients into what they share."""
    check_plain(cache)
    repeated = DynamicCache()
    layers: list[Any] = cache.layers
    for index, layer in enumerate(layers):
        repeated.update(for_rows(layer.keys, prompt_of_row), for_rows(layer.values, prompt_of_row), index)
    return repeated
