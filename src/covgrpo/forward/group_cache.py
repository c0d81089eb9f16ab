"""A key-value cache of completions that share prompts: a prompt's keys and values are held once, not once a row."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from covgrpo.forward.errors import NotShareableError
from covgrpo.forward.groups import RowGroups
from covgrpo.forward.growing_cache import GrowingLayer, is_plain

_refusing: set[type] = set()  # classes of configs


def serves_groups(model: Any, device: torch.device) -> bool:
    """Whether completions may attend to their prompts through a :class:`GroupCache`.

    On CPUs, where stock attention spends more on copies than on products; a model that has refused is not asked again.
    """
    takes_any_attention = getattr(model, "_supports_attention_backend", False)
    return device.type == "cpu" and takes_any_attention and type(model.config) not in _refusing


def refuse_groups(model: Any) -> None:
    """Remember that models of this kind do not take a :class:`GroupCache`."""
    _refusing.add(type(model.config))


def check_plain(cache: Any) -> None:
    """Check that a cache holds keys and values of all tokens and nothing else.

    Raises:
        NotShareableError: it is of another kind.
    """
    if not is_plain(cache):
        kinds = sorted({type(layer).__name__ for layer in getattr(cache, "layers", [])})
        raise NotShareableError(f"its cache is no plain key-value cache ({'/'.join([type(cache).__name__, *kinds])})")


class GroupCache(Cache):
    """Keys and values of P prompts, and of the N rows' own tokens behind them; for ``attending_by_group``.

    Args:
        prompts: plain cache of the P prompts (left-padded, or padded after a common prefix).
        prompt_mask: (P, L) which of their tokens are no padding.
        prompt_of_row: (N,) prompt of each row.

    Raises:
        NotShareableError: a cache of another kind.

    """

    def __init__(self, prompts: Cache, prompt_mask: Tensor, prompt_of_row: Tensor):
        check_plain(prompts)
        layers: list[Any] = prompts.layers
        super().__init__(layers=[GrowingLayer() for _ in layers])
        self.prompts = [(_lowered(layer.keys), _lowered(layer.values)) for layer in layers]
        self.prompt_mask, self.prompt_of_row = prompt_mask, prompt_of_row
        self.groups = RowGroups.of(prompt_of_row, prompt_mask)
        self._layer, self._served = 0, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append own tokens (N, K, T, D) of a layer; returns all own tokens of the rows."""
        self._layer = layer_idx
        layer: Any = self.layers[layer_idx]
        return layer.update(_lowered(key_states), _lowered(value_states))

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows at these indices."""
        self.batch_select_indices(rows)
        self.prompt_of_row = self.prompt_of_row[rows]
        self.groups = RowGroups.of(self.prompt_of_row, self.prompt_mask)

    def begin(self) -> None:
        """A forward pass begins."""
        self._served = 0

    def serve(self) -> tuple[Tensor, Tensor]:
        """Keys and values (P, K, L, D) of the prompts in the layer that was updated last."""
        self._served += 1
        return self.prompts[self._layer]

    def check_served(self) -> None:
        """Check that every layer of the forward pass has attended to the prompts.

        Raises:
            NotShareableError: one has not.
        """
        if self._served != len(self.layers):
            raise NotShareableError("its layers do not attend through transformers' attention interface")


def _lowered(x: Tensor) -> Tensor:
    """In autocast's dtype where it is on: the one that attention computes in."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
