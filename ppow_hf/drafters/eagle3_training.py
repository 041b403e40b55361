# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Training-time test of the EAGLE-3 drafter (arXiv 2503.01840, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from .drafter_state import DrafterOutput
from .eagle3_layers import ttt_causal_mask, ttt_diagonal_mask

if TYPE_CHECKING:
    from .modeling_eagle3 import Eagle3Drafter


def training_time_test(
    drafter: Eagle3Drafter,
    input_ids: torch.LongTensor,
    target_features: torch.Tensor,
    attention_mask: torch.Tensor | None,
    ttt_steps: int,
    column_mask: torch.Tensor | None,
    output_hidden_states: bool,
    score: Callable | None,
) -> DrafterOutput:
    """
    All columns of whole sequences, several draft steps deep: what [`Eagle3Drafter.forward`] does.

    Args:
        drafter ([`Eagle3Drafter`]): The drafter; the other arguments are those of its forward pass.

    Returns:
        [`DrafterOutput`]: Logits (or scores) of every step.

    Raises:
        ValueError: If `ttt_steps` is out of range, or shapes do not agree.
    """
    if not 1 <= ttt_steps <= drafter.max_ttt_steps:
        raise ValueError(f"`ttt_steps` must be between 1 and {drafter.max_ttt_steps}, got {ttt_steps}.")
    if target_features.shape[:2] != input_ids.shape:
        raise ValueError(
            f"`target_features` {tuple(target_features.shape[:2])} and `input_ids` {tuple(input_ids.shape)} must "
            "have the same batch and length."
        )
    if column_mask is not None and column_mask.shape != (ttt_steps, *input_ids.shape):
        raise ValueError(
            f"`column_mask` must have shape {(ttt_steps, *input_ids.shape)} (ttt_steps, batch, length), got "
            f"{tuple(column_mask.shape)}."
        )
    batch, length = input_ids.shape
    device = input_ids.device
    cache = DynamicCache()
    hidden_states = drafter.project_features(target_features)
    tokens = torch.nn.functional.pad(input_ids, (0, ttt_steps + 1))
    position_ids = torch.arange(length, device=device)[None]
    mask = ttt_causal_mask(length, attention_mask, hidden_states)
    logits, states, scores = [], [], []
    first = 0
    for k in range(ttt_steps):
        if k == 1 and column_mask is not None and not output_hidden_states:
            # Later steps only matter for columns that are scored: every other column's own state is never read.
            wanted = column_mask[1:].any(dim=0).any(dim=0).nonzero()
            if len(wanted) == 0:
                first = length - 1
            else:
                first = int(wanted[0])
            hidden_states, mask = hidden_states[:, first:], mask[:, :, first:]
        token_ids = tokens[:, first + 1 + k : length + 1 + k]
        if k > 0:
            mask = torch.cat([mask, ttt_diagonal_mask(length - first, batch, mask)], dim=-1)
        hidden_states = drafter._decode(token_ids, hidden_states, position_ids[:, first:] + k, mask, cache)
        states.append(hidden_states)
        if column_mask is None:
            step_logits, hidden_states = drafter._head(hidden_states)
        else:
            scored = drafter.norm(hidden_states[column_mask[k][:, first:]])
            if score is not None:
                scores.append(score(k, scored, drafter.lm_head))
                step_logits = None
            else:
                step_logits = drafter.lm_head(scored)
            if drafter.config.norm_output:
                hidden_states = drafter.norm(hidden_states)
        logits.append(step_logits)
    return DrafterOutput(
        logits=tuple(logits) if not scores else None,
        hidden_states=tuple(states) if output_hidden_states else None,
        scores=tuple(scores) or None,
    )
