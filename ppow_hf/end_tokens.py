# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The tokens that end a text, as a configuration says it in one of several ways."""

import torch
from transformers import GenerationConfig, PreTrainedConfig


def eos_token_ids_of(config: GenerationConfig | PreTrainedConfig) -> frozenset[int]:
    """
    The tokens that end the text.

    Args:
        config ([`~transformers.GenerationConfig`] or [`~transformers.PreTrainedConfig`]):
            Its `eos_token_id` is a token, several as a list or a tensor, or `None`.
    """
    eos = config.eos_token_id
    if isinstance(eos, torch.Tensor):
        eos = eos.flatten().tolist()
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else [int(token) for token in eos])
