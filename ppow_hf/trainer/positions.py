# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How many positions models have: those that they were made for, and those behind which they have none."""

import sys

from transformers import PreTrainedModel

from ..drafters import DrafterModel
from ..drafters.learned_positions import learned_positions as positions_in_table
from ..generation.changing_rope import changing_ropes


def positions_of(model: PreTrainedModel) -> int | None:
    """
    How many positions a model says that it has, `None` if it does not say. Where its rotary frequencies change behind
    some length (`longrope`, `dynamic`) it has no more than those: one pass over many windows has one set of them.

    Args:
        model ([`~transformers.PreTrainedModel`]): A target, or a drafter, of which a causal LM that it wraps counts.
    """
    configs = [model.config.get_text_config()]
    if isinstance(model, DrafterModel):
        configs += [part.config.get_text_config() for part in model.modules() if isinstance(part, PreTrainedModel)]
    counts = [getattr(config, "max_position_embeddings", None) for config in configs]
    counts += [limit for _, limit in changing_ropes(model)]
    return min((count for count in counts if count), default=None)


def learned_positions(model: PreTrainedModel) -> int | None:
    """
    How many positions a model has in a table of learned ones, `None` without such a table: rotary positions have no
    end.

    Args:
        model ([`~transformers.PreTrainedModel`]): A target, or a drafter, of which a causal LM that it wraps counts.
    """
    return model.max_positions if isinstance(model, DrafterModel) else positions_in_table(model)


def longest_text(target: PreTrainedModel, drafter: DrafterModel) -> int:
    """
    Tokens of the longest text that can be decoded: as many as there are learned positions, and the last one.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.

    Returns:
        `int`: The number of tokens; `sys.maxsize` where both models have none but rotary positions.
    """
    counts = [learned_positions(model) for model in (target, drafter)]
    return min((count + 1 for count in counts if count is not None), default=sys.maxsize)
