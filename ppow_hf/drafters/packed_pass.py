# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Many short continuations of the same texts in one pass of a causal LM.

The continuations of a text lie side by side on the query axis. They share the text's keys and values, and a mask
keeps each to its own prefix and its own tokens.
"""

from __future__ import annotations

import torch
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

FULL, SLIDING = "full_attention", "sliding_attention"


def attention_kinds(config: PretrainedConfig) -> dict[str, int | None] | None:
    """
    The kinds of attention a model's layers use.

    Args:
        config (`~transformers.PretrainedConfig`): A text config.

    Returns:
        `dict[str, int | None]`: transformers' name of every kind, with its sliding window in tokens or `None` for full
        attention. `None` in place of the dictionary if there is a kind other than these two.
    """
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        if getattr(config, "attention_chunk_size", None) is not None:
            return None
        return {FULL: None} if window is None else {SLIDING: window}
    kinds = {FULL: None, SLIDING: window}
    if any(kind not in kinds for kind in layer_types) or (SLIDING in layer_types and window is None):
        return None
    return {kind: kinds[kind] for kind in sorted(set(layer_types))}


def cannot_pack(model: PreTrainedModel) -> str | None:
    """Why, by what it says of itself, a model cannot take a mask of ours; `None` if nothing speaks against it."""
    config = model.config.get_text_config()
    implementation = config._attn_implementation
    if getattr(model, "_is_stateful", False):
        return "it keeps a recurrent state"
    if not model._supports_attention_backend:
        return "it has an attention of its own"
    if implementation not in ("sdpa", "eager"):
        return f"its attention implementation {implementation!r} takes no mask of ours ('sdpa' and 'eager' do)"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return "its attention is not causal"
    if attention_kinds(config) is None:
        return "it has layers with neither full nor sliding-window attention"
    return None


class _SharedLayer(DynamicLayer):
    """Keys and values of a prefix, read and never written; what comes on top of them is kept apart."""

    def __init__(self, layer: DynamicLayer, width: int, keep: bool):
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        # Views, not copies.
        self.keys, self.values = layer.keys[..., :width, :], layer.values[..., :width, :]
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.keep = keep

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        own = [*self.own, (key_states, value_states)]
        if self.keep:
            self.own = own
        keys = torch.cat([self.keys, *(pair[0] for pair in own)], dim=-2)
        values = torch.cat([self.values, *(pair[1] for pair in own)], dim=-2)
        return keys, values

    def get_seq_length(self) -> int:
        return self.keys.shape[-2] + sum(pair[0].shape[-2] for pair in self.own)


class PackedPass:
    """
    Continues `U` prefixes of each of `B` texts at once, a few tokens per call. The texts' cache is only read.

    Differentiable where gradients are on.

    Args:
        model ([`~transformers.PreTrainedModel`]): A causal LM.
        cache ([`~transformers.Cache`]): Keys and values of its pass over the texts.
        attention_mask (`torch.Tensor` of shape `(B, T)`): 1 for the texts' tokens, padding on the right.
        starts (`torch.LongTensor` of shape `(B, U)`): Tokens of every prefix, at least 1.
        apart (`bool`, *optional*, defaults to `True`): Run the base model alone and return its last hidden states;
            otherwise the whole model, and its logits.
        keep (`bool`, *optional*, defaults to `False`): Whether there will be more than one call of [`feed`].
        last_position (`int`, *optional*): Highest position to give a token, for continuations that are fed on after
            their end because others need it.

    Raises:
        ValueError: If the cache does not hold all keys and values of all layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: Cache,
        attention_mask: torch.Tensor,
        starts: torch.LongTensor,
        apart: bool = True,
        keep: bool = False,
        last_position: int | None = None,
    ):
        device = attention_mask.device
        self.model, self.apart, self.last_position = model, apart, last_position
        self.starts = starts.to(device)
        self.width = int(self.starts.max())
        for layer in cache.layers:
            if type(layer) is not DynamicLayer or layer.get_seq_length() < self.width:
                raise ValueError(
                    f"A layer of `cache` is a {type(layer).__name__} of {layer.get_seq_length()} columns; a "
                    f"packed pass needs {self.width} columns in a DynamicLayer. Verify with `packed=False`."
                )
        self.cache = Cache(layers=[_SharedLayer(layer, self.width, keep) for layer in cache.layers])
        columns = torch.arange(self.width, device=device)
        self.columns = columns
        # (B, U, 1, width): text before the window, padding left out.
        self.visible = (columns < self.starts[..., None]) & attention_mask[:, None, : self.width].bool()
        self.visible = self.visible[:, :, None]
        self.depth = 0
        # Whose token, and which of its tokens, every column behind the prefix is.
        self.owner = columns.new_empty(0)
        self.offset = columns.new_empty(0)

    def feed(self, tokens: torch.LongTensor) -> torch.Tensor:
        """
        Feeds the next tokens of every continuation.

        Args:
            tokens (`torch.LongTensor` of shape `(B, U, D)`): Token ids.

        Returns:
            `torch.Tensor` of shape `(B, U, D, hidden_size)` (or `vocab_size`): last hidden states (or
            logits) behind them.
        """
        batch, units, count = tokens.shape
        device = self.starts.device
        offset = self.depth + torch.arange(count, device=device).repeat(units)
        owner = torch.arange(units, device=device).repeat_interleave(count)
        self.owner, self.offset = torch.cat([self.owner, owner]), torch.cat([self.offset, offset])
        positions = (self.starts[..., None] + offset[:count]).view(batch, units * count)
        if self.last_position is not None:
            positions = positions.clamp(max=self.last_position)
        model = self.model.base_model if self.apart else self.model
        output = model(
            input_ids=tokens.to(device).reshape(batch, units * count),
            attention_mask=self._masks(owner, offset, count),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.depth += count
        states = output.last_hidden_state if self.apart else output.logits
        return states.view(batch, units, count, -1)

    def _masks(self, owner: torch.Tensor, offset: torch.Tensor, count: int) -> torch.Tensor | dict[str, torch.Tensor]:
        config = self.model.config.get_text_config()
        own = (owner[:, None] == self.owner) & (offset[:, None] >= self.offset)
        kinds = attention_kinds(config)
        masks = {
            kind: self._as_implementation(self._mask(own, offset, count, window), config)
            for kind, window in kinds.items()
        }
        # A model with one kind of layer takes one mask; one with several picks its own for each layer.
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, own: torch.Tensor, offset: torch.Tensor, count: int, window: int | None) -> torch.Tensor:
        """Of shape `(B, 1, U * count, width + own columns)`, `True` where a query may look."""
        batch, units = self.starts.shape
        visible = self.visible
        if window is not None:
            # As in transformers: a token sees itself and the `window - 1` positions before it.
            positions = self.starts[..., None] + offset[:count]
            visible = visible & (self.columns > positions[..., None] - window)
            own = own & (self.offset > offset[:, None] - window)
        visible = visible.expand(batch, units, count, self.width).reshape(batch, units * count, self.width)
        return torch.cat([visible, own.expand(batch, *own.shape)], dim=-1)[:, None]

    def _as_implementation(self, mask: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
        if config._attn_implementation == "sdpa":
            return mask
        # Eager attention adds the mask to its scores.
        dtype = self.model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
