"""A key-value cache of completions that share prompts: a prompt's keys and values are held once, not once a row."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from covgrpo.forward.attention_interface import lowered
from covgrpo.forward.group_attention import attend
from covgrpo.forward.growing_cache import GrowingLayer
from covgrpo.forward.rows_by_prompt import RowGroups


class GroupCache(Cache):
    """Keys and values of P prompts, and of the N rows' own tokens behind them; for inference, with ``attending_by``.

    Args:
        prompts: cache of the P prompts (padded anywhere); ``is_plain``.
        prompt_mask: (P, L) which of their tokens are no padding.
        prompt_of_row: (N,) prompt of each row.

    """

    def __init__(self, prompts: Cache, prompt_mask: Tensor, prompt_of_row: Tensor):
        layers: list[Any] = prompts.layers
        super().__init__(layers=[GrowingLayer() for _ in layers])
        self.prompts = [(lowered(layer.keys), lowered(layer.values)) for layer in layers]
        self.prompt_mask, self.prompt_of_row = prompt_mask, prompt_of_row
        self.groups = RowGroups.of(prompt_of_row, prompt_mask)
        self._layer = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append own tokens (N, K, T, D) of a layer; returns all own tokens of the rows."""
        self._layer = layer_idx
        layer: Any = self.layers[layer_idx]
        return layer.update(lowered(key_states), lowered(value_states))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attend in the layer that was updated last."""
        with torch.autocast(query.device.type, enabled=False):
            return attend(query, key, value, *self.prompts[self._layer], self.groups, scaling)

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows at these indices."""
        self.batch_select_indices(rows)
        self.prompt_of_row = self.prompt_of_row[rows]
        self.groups = RowGroups.of(self.prompt_of_row, self.prompt_mask)
