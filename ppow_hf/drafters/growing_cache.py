# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A cache of keys and values for drafting: columns are written in place, where transformers' joins anew each time.

A window adds a column per draft token and takes most of them away again, so that a dynamic cache would copy the whole
text for every draft token.
"""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# Columns that are set aside beyond those needed.
_SPARE = 256


class GrowingLayer(DynamicLayer):
    """
    Keys and values that are views of larger buffers, grown by half when they are full. For inference: what was handed
    out before is overwritten once its columns have been cropped.
    """

    def __init__(self):
        super().__init__()
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

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
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if not self._has_room(end):
            self._grow(end)
        keys, values = self._buffers
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def _has_room(self, columns: int) -> bool:
        if self._buffers is None:
            return False
        buffer = self._buffers[0]
        # Reordering or moving a cache puts other tensors in place of the views.
        own = self.keys.data_ptr() == buffer.data_ptr() and self.values.data_ptr() == self._buffers[1].data_ptr()
        return own and self.keys.shape[0] == buffer.shape[0] and columns <= buffer.shape[-2]

    def _grow(self, columns: int) -> None:
        start = self.keys.shape[-2]
        buffers = []
        for states in (self.keys, self.values):
            shape = (*states.shape[:-2], columns + max(_SPARE, columns // 2), states.shape[-1])
            buffer = states.new_empty(shape)
            buffer[..., :start, :] = states
            buffers.append(buffer)
        self._buffers = tuple(buffers)


class GrowingCache(DynamicCache):
    """A `DynamicCache` of [`GrowingLayer`]s."""

    def __init__(self):
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer
