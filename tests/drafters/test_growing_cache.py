# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import torch
from transformers import DynamicCache

from ppow_hf.drafters import DrafterState
from ppow_hf.drafters.growing_cache import GrowingCache
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
