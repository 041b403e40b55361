# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Where a model's positions end: at the end of a learned table of them. Rotary and relative ones have no end."""

from torch import nn
from transformers import PreTrainedModel


def learned_positions(model: PreTrainedModel) -> int | None:
    """
    Args:
        model ([`~transformers.PreTrainedModel`]): A causal LM.

    Returns:
        `int`: Most tokens that its learned position table has places for; `None` if it has no such table.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return None
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not model.get_input_embeddings())
    # Some tables begin with two rows that no token reads.
    learned = any(positions <= table.num_embeddings <= positions + 2 for table in tables)
    return positions if learned else None
