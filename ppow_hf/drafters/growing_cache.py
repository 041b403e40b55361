# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A cache whose columns are written in place, where transformers' own joins all keys and values anew at every pass.

A window adds columns and takes most of them away again: a drafter's cache would be copied whole for every draft token,
and a target's, which is far larger, for every verification.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

# Columns that are set aside beyond those needed: half as many again, between these.
_SPARE, _MOST_SPARE = 256, 512


class GrowingLayer(DynamicLayer):
    """
    Keys and values that are views of larger buffers, which grow when they are full. For inference: what was handed out
    before is overwritten once its columns have been cropped.

    How many columns count is a number, so that to crop is to lower it. Views are made when somebody looks.
    """

    def __init__(self):
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._columns = 0  # of the buffers
        self._given: list[torch.Tensor | None] = [None, None]  # in place of the buffers, while there are none
        super().__init__()

    @property
    def keys(self) -> torch.Tensor | None:
        """`torch.Tensor` of shape `(batch, heads, columns, head_dim)`, *optional*: The keys."""
        return self._look(0)

    @keys.setter
    def keys(self, states: torch.Tensor | None) -> None:
        self._put(0, states)

    @property
    def values(self) -> torch.Tensor | None:
        """`torch.Tensor` of shape `(batch, heads, columns, head_dim)`, *optional*: The values."""
        return self._look(1)

    @values.setter
    def values(self, states: torch.Tensor | None) -> None:
        self._put(1, states)

    @property
    def written(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`tuple[torch.Tensor, torch.Tensor]`: What keys and values are views of, to move columns about in."""
        return (self.keys, self.values) if self._buffers is None else self._buffers

    def _look(self, which: int) -> torch.Tensor | None:
        return self._given[which] if self._buffers is None else self._buffers[which].narrow(-2, 0, self._columns)

    def _put(self, which: int, states: torch.Tensor | None) -> None:
        """To reorder or move a cache puts other tensors in the place of its own, one after the other."""
        if self._buffers is not None:
            self._given = [self._look(0), self._look(1)]
            self._buffers = None
        self._given[which] = states

    @classmethod
    def taking_over(cls, layer: DynamicLayer) -> GrowingLayer:
        """
        A growing layer with the contents of another.

        Args:
            layer ([`~transformers.cache_utils.DynamicLayer`]): Filled or not; left as it is.
        """
        new = cls()
        if layer.is_initialized:
            new.lazy_initialization(layer.keys, layer.values)
            new.keys, new.values = layer.keys, layer.values
        return new

    def given_back(self) -> DynamicLayer:
        """A plain layer with the same contents. Its own updates write nowhere: they join, and so make new tensors."""
        layer = DynamicLayer()
        if self.is_initialized:
            layer.lazy_initialization(self.keys, self.values)
            layer.keys, layer.values = self.keys, self.values
        return layer

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Appends columns.

        Args:
            key_states, value_states (`torch.Tensor` of shape `(batch, heads, columns, head_dim)`): The new columns.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: All keys and all values.
        """
        if torch.compiler.is_compiling():
            return super().update(key_states, value_states, *args, **kwargs)  # graphs cannot write into views
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._buffers is None and self._given[0].dim() == 1:  # as they are before the first update
            self._given = [key_states[..., :0, :], value_states[..., :0, :]]
        start, added = self.get_seq_length(), key_states.shape[-2]
        end = start + added
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._grow(start, end)
        keys, values = self._buffers
        keys.narrow(-2, start, added).copy_(key_states)
        values.narrow(-2, start, added).copy_(value_states)
        self._columns = end
        return keys.narrow(-2, 0, end), values.narrow(-2, 0, end)

    def get_seq_length(self) -> int:
        """`int`: Columns in the cache."""
        return super().get_seq_length() if self._buffers is None else self._columns

    def crop(self, tokens_to_remove: int) -> None:
        """
        Takes away the last columns.

        Args:
            tokens_to_remove (`int`): How many, as a negative number.
        """
        if tokens_to_remove >= 0 or self._buffers is None:
            super().crop(tokens_to_remove)
        else:
            self._columns = max(self._columns + tokens_to_remove, 0)

    def _grow(self, start: int, columns: int) -> None:
        """Buffers for so many columns and more, with the first `start` of those there are."""
        capacity = columns + min(max(_SPARE, columns // 2), _MOST_SPARE)
        buffers = []
        for states in (self.keys, self.values):
            buffer = states.new_empty((*states.shape[:-2], capacity, states.shape[-1]))
            buffer.narrow(-2, 0, start).copy_(states)
            buffers.append(buffer)
        self._buffers, self._columns, self._given = tuple(buffers), start, [None, None]


class GrowingCache(DynamicCache):
    """A `DynamicCache` of [`GrowingLayer`]s."""

    def __init__(self):
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer


def grow_in_place(cache: Cache | None) -> bool:
    """
    Makes the layers of a cache grow in place, contents and all (ours).

    Args:
        cache ([`~transformers.Cache`], *optional*): Changed if it is a plain `DynamicCache` that stays on its device.
            Layers that forget columns (sliding windows) or hold other states than keys and values stay as they are.

    Returns:
        `bool`: Whether it was.
    """
    if type(cache) is not DynamicCache or cache.offloading:
        return False
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = GrowingLayer.taking_over(layer)
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    return True


@contextmanager
def growing_in_place(cache: Cache | None) -> Iterator[None]:
    """
    Lets a cache grow in place inside a `with` block, see [`grow_in_place`]. Behind it the cache is what it was before:
    whoever holds it may train through it or keep its tensors.

    Args:
        cache ([`~transformers.Cache`], *optional*): The cache.
    """
    changed = grow_in_place(cache)
    try:
        yield
    finally:
        if changed:
            for i, layer in enumerate(cache.layers):
                if type(layer) is GrowingLayer:
                    cache.layers[i] = layer.given_back()
            if cache.layer_class_to_replicate is GrowingLayer:
                cache.layer_class_to_replicate = DynamicLayer
