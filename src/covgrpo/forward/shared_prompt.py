"""Forward each prompt once per group instead of once per completion. Exact: gradients flow through what is shared.

The completions of a group share their prompt, so its keys and values are computed once; what all prompts begin with
(chat template, system prompt, solved examples) is likewise forwarded once for all of them. Nothing is padded.
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

from covgrpo.forward.attention_interface import attending_by, checkpoints, recomputing_by
from covgrpo.forward.rows_by_prompt import for_rows
from covgrpo.forward.token_tree import TokenTree


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
        """Split rows (N, L+T) into prompt and completion and keep each distinct prompt once."""
        length = input_ids.shape[1] - completion_length
        prompt_mask = attention_mask[:, :length]
        keys = torch.cat([input_ids[:, :length].masked_fill(prompt_mask == 0, -1), prompt_mask], dim=1)
        _, prompt_of_row = torch.unique(keys, dim=0, return_inverse=True)
        num_prompts = int(prompt_of_row.max()) + 1
        first_row = torch.full((num_prompts,), len(keys), device=keys.device).scatter_reduce_(
            0, prompt_of_row, torch.arange(len(keys), device=keys.device), "amin"
        )
        return cls(
            prompt_ids=input_ids[first_row, :length],
            prompt_mask=prompt_mask[first_row],
            prompt_of_row=prompt_of_row,
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

    Raises:
        NotShareableError: in the call, for a model whose layers do not attend through transformers' interface.

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


def _common_prefix_length(ids: Tensor, mask: Tensor) -> int:
    """Tokens that all of several left-padded prompts (P, L) begin with; each keeps at least one of its own."""
    lengths = mask.sum(dim=1)
    if len(ids) == 1:
        return 0
    # Left-aligned: column j holds token j of each prompt.
    columns = torch.arange(max(int(lengths.min()) - 1, 0), device=ids.device) + (ids.shape[1] - lengths)[:, None]
    aligned = ids.gather(1, columns)
    return int((aligned == aligned[:1]).all(dim=0).long().cumprod(dim=0).sum())
