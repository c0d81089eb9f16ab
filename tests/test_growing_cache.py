"""The cache with room to grow holds what a plain one holds, and writes tokens in place."""

import torch
from tiny import tiny_model
from transformers.cache_utils import DynamicCache

from covgrpo.forward.growing_cache import GrowingLayer, is_plain, make_growing


def filled(length: int) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.randn(3, 2, length, 4), torch.randn(3, 2, length, 4), layer)
    return cache


def copy_of(cache: DynamicCache) -> DynamicCache:
    copy = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copy.update(layer.keys.clone(), layer.values.clone(), index)
    return copy


def test_holds_what_a_plain_cache_holds() -> None:
    torch.manual_seed(0)
    plain = filled(5)
    growing = make_growing(copy_of(plain))
    assert all(type(layer) is GrowingLayer for layer in growing.layers)
    assert not is_plain(growing)
    rows = 3
    for step in range(200):  # past its room more than once
        new = [torch.randn(rows, 2, 1 + step % 3, 4) for _ in range(4)]
        for layer in range(2):
            found = growing.update(*new[2 * layer :][:2], layer)
            expected = plain.update(*new[2 * layer :][:2], layer)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert growing.get_seq_length() == plain.get_seq_length()
        if step in (60, 120):
            keep = torch.tensor([2, 0] if step == 60 else [1])
            rows = len(keep)
            for cache in (growing, plain):
                cache.batch_select_indices(keep)
    assert torch.equal(growing.layers[1].values, plain.layers[1].values)


def test_tokens_are_written_in_place() -> None:
    cache = make_growing(filled(5))
    cache.update(torch.randn(3, 2, 1, 4), torch.randn(3, 2, 1, 4), 0)
    places = {cache.layers[0].keys.data_ptr()}
    for _ in range(40):
        cache.update(torch.randn(3, 2, 1, 4), torch.randn(3, 2, 1, 4), 0)
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 1


def test_other_caches_are_left_alone() -> None:
    config = tiny_model().config
    config.layer_types, config.sliding_window = ["sliding_attention"] * 2, 4
    cache = DynamicCache(config=config)
    assert not is_plain(cache)
    before = list(cache.layers)
    assert make_growing(cache).layers == before
