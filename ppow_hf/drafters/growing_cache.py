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
    """

    def __init__(self):
        super().__init__()
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._shown: tuple[torch.Tensor, torch.Tensor] | None = None  # of the buffers

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
        if self.keys.dim() == 1:  # as they are before the first update
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        start, added = self.keys.shape[-2], key_states.shape[-2]
        end = start + added
        if not self._is_own() or end > self._buffers[0].shape[-2]:
            self._grow(end)
        keys, values = self._buffers
        keys.narrow(-2, start, added).copy_(key_states)
        values.narrow(-2, start, added).copy_(value_states)
        self.keys, self.values = self._shown = keys.narrow(-2, 0, end), values.narrow(-2, 0, end)
        return self._shown

    def crop(self, tokens_to_remove: int) -> None:
        """
        Takes away the last columns.

        Args:
            tokens_to_remove (`int`): How many, as a negative number.
        """
        if tokens_to_remove >= 0 or not self._is_own():
            super().crop(tokens_to_remove)
            return
        length = max(self.keys.shape[-2] + tokens_to_remove, 0)
        self.keys, self.values = self._shown = tuple(states.narrow(-2, 0, length) for states in self._shown)

    def _is_own(self) -> bool:
        """Whether keys and values are those of the buffers: to reorder or move a cache puts others in their place."""
        return self._shown is not None and self.keys is self._shown[0] and self.values is self._shown[1]

    def _grow(self, columns: int) -> None:
        start = self.keys.shape[-2]
        capacity = columns + min(max(_SPARE, columns // 2), _MOST_SPARE)
        buffers = []
        for states in (self.keys, self.values):
            buffer = states.new_empty((*states.shape[:-2], capacity, states.shape[-1]))
            buffer.narrow(-2, 0, start).copy_(states)
            buffers.append(buffer)
        self._buffers = tuple(buffers)


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
