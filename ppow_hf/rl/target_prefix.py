# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""One pass of the frozen target over a batch of texts, kept so that windows can be verified on top of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from ..drafters import gather_features
from ..drafters.logits_head import logits_head
from ..drafters.packed_pass import cannot_pack

# Rows whose whole vocabulary is worked on at a time: few enough to stay in a processor's cache.
ROWS_IN_CACHE = 32


@dataclass
class TargetPrefix:
    """
    What one target pass over `B` texts leaves behind.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, T)`): The texts, padded on the right.
        attention_mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens.
        states (`torch.Tensor` of shape `(B, T, hidden_size)` or `(B, T, vocab_size)`): Last hidden states, or logits
            where the target's head cannot be applied apart.
        cache (`~transformers.Cache`, *optional*): Keys and values of every layer over all `T` columns.
        features (`torch.Tensor` of shape `(B, T, len(layer_ids) * hidden_size)`, *optional*): What the drafter reads.
        head (`Callable`, *optional*): Gives logits from rows of `states`; `None` when `states` are the logits.
    """

    input_ids: torch.LongTensor
    attention_mask: torch.Tensor
    states: torch.Tensor
    cache: Cache | None = None
    features: torch.Tensor | None = None
    head: Callable[[torch.Tensor], torch.Tensor] | None = field(default=None, repr=False)

    @property
    def lengths(self) -> torch.LongTensor:
        """Tokens of every text, of shape `(B,)`."""
        return self.attention_mask.long().sum(-1)

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Logits, in the target's dtype, of states of the target, stored here or not: `(..., vocab_size)`."""
        return states if self.head is None else self.head(states)

    @torch.no_grad()
    def logits_at(self, rows: torch.LongTensor, positions: torch.LongTensor) -> torch.Tensor:
        """
        The target's logits behind given tokens. Ask for a few hundred at a time: only these are projected.

        Args:
            rows (`torch.LongTensor` of shape `(N,)`): Which text.
            positions (`torch.LongTensor` of shape `(N,)`): Which token; its logits are those of the *next* one.

        Returns:
            `torch.Tensor` of shape `(N, vocab_size)`, in the target's dtype.
        """
        device = self.states.device
        with torch.autocast(device.type, enabled=False):
            return self.project(self.states[rows.to(device), positions.to(device)])


@torch.no_grad()
def target_prefix(
    target: PreTrainedModel,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor,
    layer_ids: Sequence[int] = (),
    keep_cache: bool = True,
) -> TargetPrefix:
    """
    Runs the target once over a batch of texts.

    Args:
        target ([`~transformers.PreTrainedModel`]): Decoder-only causal LM in evaluation mode.
        input_ids (`torch.LongTensor` of shape `(B, T)`): Token ids, padded on the right.
        attention_mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens.
        layer_ids (`Sequence[int]`, *optional*): The drafter's `feature_layer_ids`.
        keep_cache (`bool`, *optional*, defaults to `True`): Keep keys and values, which packed verification needs.
            They are not kept for a target that cannot be verified in packs anyway.

    Returns:
        [`TargetPrefix`].

    Raises:
        ValueError: If the target is in training mode, or the batch is not padded on the right.
    """
    if target.training:
        raise ValueError("`target` is in training mode, where dropout makes it another model: call `target.eval()`.")
    if input_ids.dim() != 2 or input_ids.shape != attention_mask.shape:
        raise ValueError(
            "`input_ids` and `attention_mask` must both have the shape (batch, length), got "
            f"{tuple(input_ids.shape)} and {tuple(attention_mask.shape)}."
        )
    # Text position and cache column must be the same number.
    if bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
        raise ValueError("`attention_mask` must be 1s followed by 0s in every row: pad texts on the right.")
    # Without a config, every layer of a dynamic cache keeps all columns, those with a sliding window too.
    cache = DynamicCache() if keep_cache and cannot_pack(target) is None else None
    with torch.autocast(input_ids.device.type, enabled=False):
        head = logits_head(target, input_ids)
        output = (target if head is None else target.base_model)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=list(layer_ids) or False,
        )
    return TargetPrefix(
        input_ids=input_ids,
        attention_mask=attention_mask,
        states=output.logits if head is None else output.last_hidden_state,
        cache=cache,
        features=gather_features(output.hidden_states, layer_ids) if layer_ids else None,
        head=head,
    )
