# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a speculative `generate` call may ask for, and what its configuration says about the end of the text."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel


def check_call(generation_config: GenerationConfig, input_ids: torch.LongTensor, model_kwargs: dict[str, Any]) -> None:
    """Refuses what a speculative call cannot do. Raises `ValueError` naming the argument and the remedy."""
    if input_ids.shape[0] != 1:
        raise ValueError(
            "Speculative generation decodes one prompt at a time, but `input_ids` has a batch of "
            f"{input_ids.shape[0]} (given so, or by `num_beams` or `num_return_sequences`). Call `generate` once per "
            "prompt, or leave out `assistant_model`."
        )
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            f"`past_key_values` already holds {cache.get_seq_length()} tokens; the drafter has not seen the target's "
            "features for them. Pass the whole text without `past_key_values`, or an empty cache."
        )


def eos_token_ids_of(generation_config: GenerationConfig) -> frozenset[int]:
    """The tokens that end the text."""
    eos = generation_config.eos_token_id
    if isinstance(eos, torch.Tensor):
        eos = eos.flatten().tolist()
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else [int(token) for token in eos])


def max_length_of(generation_config: GenerationConfig, target: PreTrainedModel) -> int:
    """Longest text a window may reach: the call's `max_length`, or the end of the target's learned position table."""
    max_length = generation_config.max_length
    config = target.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions >= max_length:
        return max_length
    # Rotary and relative positions have no end. A table of learned ones does: drafting past it would crash where plain
    # decoding, ending at EOS, would not have got to.
    tables = (m for m in target.modules() if isinstance(m, nn.Embedding) and m is not target.get_input_embeddings())
    learned = any(positions <= table.num_embeddings <= positions + 2 for table in tables)
    # The verification's last input sits at `len + k - 1`, one place further than the text plain decoding feeds.
    return min(max_length, positions + 1) if learned else max_length
