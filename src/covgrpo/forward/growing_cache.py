"""A key-value cache with room to grow: a new token is written in place, not by copying all that came before."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_ROOM = 64  # tokens added beside a quarter of the length


def is_plain(cache: Any) -> bool:
    """Whether a cache holds keys and values of all tokens and nothing else."""
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def make_growing(cache: Cache) -> Cache:
    """Give a plain cache room to grow, in place; another kind is left as it is. For inference only."""
    if is_plain(cache):
        layers: list[Any] = cache.layers
        cache.layers = [GrowingLayer(layer.keys, layer.values) for layer in layers]
    return cache


class GrowingLayer(DynamicLayer):
    """Keys and values (N, heads, length, head size) as views of longer buffers.

    The first tokens may carry a gradient: they are kept as they are, and copied once more come.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None):
        super().__init__()
        self._length = 0
        if keys is not None and values is not None:
            self._show(keys, values, keys.shape[-2])

    def _show(self, keys: Tensor, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._buffers, self._length = (keys, values), length
        self.keys, self.values = shown = keys[:, :, :length], values[:, :, :length]
        return shown

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append key and value states of new tokens; returns all of them."""
        start, end = self._length, self._length + key_states.shape[-2]
        if start == 0:
            return self._show(key_states, value_states, end)
        keys, values = (_with_capacity(buffer, start, end) for buffer in self._buffers)
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        return self._show(keys, values, end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows at ``indices``."""
        if self._length:
            keys, values = self._buffers
            self._show(keys[indices], values[indices], self._length)


def _with_capacity(buffer: Tensor, length: int, end: int) -> Tensor:
    """Return the buffer, or a larger one with its first ``length`` tokens if ``end`` tokens do not fit."""
    rows, heads, capacity, size = buffer.shape
    if end <= capacity:
        return buffer
    larger = buffer.new_empty(rows, heads, end + length // 4 + _ROOM, size)
    larger[:, :, :length] = buffer[:, :, :length]
    return larger
