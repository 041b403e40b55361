# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Target features: the hidden states of the target that a feature-based drafter reads.

One convention everywhere: a layer id `k` names `hidden_states[k]` of the target's output, so `0` is the embedding
output and `k` is the residual stream *entering* layer `k` (equivalently the output of layer `k - 1`). The last index,
`num_hidden_layers`, is refused: transformers returns it after the final norm, other engines before it.
"""

from collections.abc import Sequence

import torch


def default_layer_ids(num_hidden_layers: int) -> tuple[int, ...]:
    """
    The layers EAGLE-3 reads by default: one low, one middle, one high (arXiv 2503.01840, reference implementation).

    Args:
        num_hidden_layers (`int`): Number of layers of the target.

    Returns:
        `tuple[int, ...]`: `(2, n // 2, n - 3)` for a target of at least 7 layers; for shallower ones, where these
        collide, three distinct layers above the embeddings (ours), fewer where there are not three.
    """
    n = num_hidden_layers
    if n >= 7:
        return (2, n // 2, n - 3)
    return tuple(sorted({min(1, n - 1), n // 2, n - 1}))


def check_layer_ids(layer_ids: Sequence[int], num_hidden_layers: int) -> tuple[int, ...]:
    """
    Validates target layer ids.

    Args:
        layer_ids (`Sequence[int]`): Indices into the target's `hidden_states`, strictly ascending.
        num_hidden_layers (`int`): Number of layers of the target.

    Returns:
        `tuple[int, ...]`: The ids.

    Raises:
        ValueError: If the list is empty, unsorted, has duplicates or names a layer the target does not have.
    """
    ids = tuple(layer_ids)
    whole = all(isinstance(layer_id, int) and not isinstance(layer_id, bool) for layer_id in ids)
    if not ids or not whole or list(ids) != sorted(set(ids)) or ids[0] < 0 or ids[-1] >= num_hidden_layers:
        raise ValueError(
            f"`aux_layer_ids` must be strictly ascending integers in [0, {num_hidden_layers - 1}] for a target of "
            f"{num_hidden_layers} layers (k = residual stream entering layer k), got {list(layer_ids)}. Leave it out "
            f"for the default {list(default_layer_ids(num_hidden_layers))}."
        )
    return ids


def gather_features(hidden_states: Sequence[torch.Tensor | None] | None, layer_ids: Sequence[int]) -> torch.Tensor:
    """
    Concatenates the hidden states a drafter reads, lowest layer first.

    Args:
        hidden_states (`Sequence[torch.Tensor]`):
            The `hidden_states` of one target forward pass, each of shape `(batch, length, target_hidden_size)`;
            entries that were not asked for may be `None`.
        layer_ids (`Sequence[int]`): Which of them to take.

    Returns:
        `torch.Tensor` of shape `(batch, length, len(layer_ids) * target_hidden_size)`.

    Raises:
        ValueError: If the target did not return a hidden state that is needed, or returned several streams of them.
    """
    if hidden_states is None:
        raise ValueError(
            "The target returned no `hidden_states`, which this drafter reads. Use a decoder-only transformers model "
            "that supports `output_hidden_states=True`, or a `CausalLMDrafter`, which needs no target features."
        )
    missing = [k for k in layer_ids if k >= len(hidden_states) or hidden_states[k] is None]
    if missing:
        raise ValueError(
            f"The target returned {len(hidden_states)} hidden states but none for layers {missing} of "
            f"`aux_layer_ids`={list(layer_ids)}. Train a drafter for this target, or check the ids."
        )
    last = hidden_states[layer_ids[-1]]
    if last.dim() != 3:
        raise ValueError(
            f"The target's hidden states have the shape {tuple(last.shape)}, where this drafter reads one stream of "
            "shape (batch, length, hidden_size). Use a `CausalLMDrafter` or a `LookupDrafter`, which need no target "
            "features."
        )
    # A target spread over several devices returns each layer's states on its own.
    device = last.device
    return torch.cat([hidden_states[k].to(device) for k in layer_ids], dim=-1)
