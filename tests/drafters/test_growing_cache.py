# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import copy

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ppow_hf.drafters import DrafterState
from ppow_hf.drafters.growing_cache import GrowingCache, GrowingLayer, grow_in_place, growing_in_place
from ppow_hf.drafters.tree_columns import keep_columns


def columns(count: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, count, 4), torch.randn(batch, 3, count, 4)


def assert_same(mine: GrowingCache, plain: DynamicCache) -> None:
    assert mine.get_seq_length() == plain.get_seq_length()
    for ours, theirs in zip(mine.layers, plain.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def test_it_is_what_a_dynamic_cache_is():
    torch.manual_seed(0)
    mine, plain = GrowingCache(), DynamicCache()
    # Far beyond the first buffer, with windows drafted and dropped all along.
    for turn in range(120):
        for layer in range(2):
            added = columns(1 + turn % 9)
            for ours, theirs in zip(mine.update(*added, layer), plain.update(*added, layer), strict=True):
                assert torch.equal(ours, theirs)
        for cache in (mine, plain):
            cache.crop(-(turn % 7))
        assert_same(mine, plain)
    assert plain.get_seq_length() > 200


def test_paths_of_trees_are_kept_and_written_on():
    torch.manual_seed(0)
    mine, plain = GrowingCache(), DynamicCache()
    for added in (columns(5), columns(6)):
        mine.update(*added, 0), plain.update(*added, 0)
    for cache in (mine, plain):
        keep_columns(cache, 5, [0, 2, 5])
    assert_same(mine, plain)
    added = columns(2)
    mine.update(*added, 0), plain.update(*added, 0)
    assert_same(mine, plain)


def test_other_tensors_in_its_place_are_taken_over():
    torch.manual_seed(0)
    mine, plain = GrowingCache(), DynamicCache()
    for change in (
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.reorder_cache(torch.tensor([3, 2, 1, 0])),
        lambda cache: cache.batch_select_indices(torch.tensor([1, 2])),
    ):
        batch = 2 if not plain.layers else plain.layers[0].keys.shape[0]
        added = columns(3, batch)
        mine.update(*added, 0), plain.update(*added, 0)
        change(mine), change(plain)
        assert_same(mine, plain)
        added = columns(2, plain.layers[0].keys.shape[0])
        mine.update(*added, 0), plain.update(*added, 0)
        assert_same(mine, plain)


def test_a_column_is_written_in_place():
    cache = DrafterState().cache
    assert isinstance(cache, GrowingCache)
    keys, _ = cache.update(*columns(10), 0)
    place = keys.data_ptr()
    for _ in range(100):
        keys, _ = cache.update(*columns(1), 0)
        assert keys.data_ptr() == place


def test_a_copy_goes_its_own_way():
    torch.manual_seed(0)
    mine, plain = GrowingCache(), DynamicCache()
    added = columns(6)
    mine.update(*added, 0), plain.update(*added, 0)
    other, same = copy.deepcopy(mine), copy.deepcopy(plain)
    for cache, reference in ((other, same), (mine, plain)):
        cache.crop(-2), reference.crop(-2)
        added = columns(3)
        cache.update(*added, 0), reference.update(*added, 0)
        assert_same(cache, reference)
    assert_same(other, same)


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("layers", ["from a config", "as they come"])
def test_a_cache_grows_in_place_for_a_while_and_is_then_what_it_was(layers, filled):
    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=2) if layers == "from a config" else None
    mine, plain = DynamicCache(config=config), DynamicCache(config=config)

    def feed(count):
        places = []
        for layer in range(2):
            added = columns(count)
            for ours, theirs in zip(mine.update(*added, layer), plain.update(*added, layer), strict=True):
                assert torch.equal(ours, theirs)
            places.append(mine.layers[layer].keys.data_ptr())
        return places

    if filled:
        feed(4)
    held = [layer.keys for layer in mine.layers]
    before = [None if states is None else states.clone() for states in held]
    with growing_in_place(mine):
        places = feed(5)
        assert {type(layer) for layer in mine.layers} == {GrowingLayer}
        for turn in range(20):
            mine.crop(-2), plain.crop(-2)
            assert feed(1 + turn % 5) == places
    assert_same(mine, plain)
    assert {type(layer) for layer in mine.layers} == {DynamicLayer}
    assert mine.layer_class_to_replicate is plain.layer_class_to_replicate
    # Whoever held the tensors from before still has them.
    assert all(states is None or torch.equal(states, saved) for states, saved in zip(held, before, strict=True))
    before = [layer.keys for layer in mine.layers], [layer.keys.clone() for layer in mine.layers]
    feed(2)
    assert_same(mine, plain)
    mine.crop(-4), plain.crop(-4)
    feed(3)
    assert_same(mine, plain)
    assert all(torch.equal(states, saved) for states, saved in zip(*before, strict=True))


def test_a_layer_set_up_ahead_of_time():
    mine, plain = DynamicCache(), DynamicCache()
    for cache in (mine, plain):
        cache.layers.append(DynamicLayer())
        cache.layers[0].lazy_initialization(*columns(1))
    with growing_in_place(mine):
        for _ in range(3):
            added = columns(2)
            mine.update(*added, 0), plain.update(*added, 0)
        assert type(mine.layers[0]) is GrowingLayer
    assert_same(mine, plain)


def test_an_error_leaves_a_plain_cache():
    cache = DynamicCache()
    with pytest.raises(KeyError), growing_in_place(cache):
        cache.update(*columns(3), 0)
        raise KeyError
    assert type(cache.layers[0]) is DynamicLayer and cache.get_seq_length() == 3


def test_other_layers_and_caches_are_left_alone():
    config = LlamaConfig(
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=4,
    )
    cache = DynamicCache(config=config)
    with growing_in_place(cache):
        assert [type(layer) for layer in cache.layers] == [DynamicSlidingWindowLayer, GrowingLayer]
    assert [type(layer) for layer in cache.layers] == [DynamicSlidingWindowLayer, DynamicLayer]
    for other in (
        None,
        StaticCache(LlamaConfig(num_hidden_layers=1), max_cache_len=8),
        DynamicCache(offloading=True),
        GrowingCache(),
    ):
        assert not grow_in_place(other)
        with growing_in_place(other):
            pass


def test_spare_columns_are_limited():
    layer = GrowingLayer()
    layer.update(*columns(20_000, batch=1))
    assert layer._buffers[0].shape[-2] == 20_000 + 512
