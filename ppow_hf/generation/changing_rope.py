# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Targets whose rotary frequencies depend on the longest position of a pass.

transformers' `dynamic_rope_update` turns all positions of a pass by the frequencies that its last one asks for. Beyond
the limit a window therefore changes what the target says in front of it, and the text with it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel


def changing_ropes(target: PreTrainedModel) -> list[tuple[str, int]]:
    """
    Args:
        target ([`~transformers.PreTrainedModel`]): The target.

    Returns:
        `list[tuple[str, int]]`: Type of every rotary embedding whose frequencies change, `"longrope"` or `"dynamic"`,
        and the longest text, in tokens, up to which they do not.
    """
    config = target.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    # One for all layers, or one for each kind of them.
    kinds = [parameters] if "rope_type" in parameters else [p for p in parameters.values() if isinstance(p, dict)]
    found = []
    for kind in kinds:
        rope_type = kind.get("rope_type") or "default"
        if rope_type == "longrope":
            found.append((rope_type, kind["original_max_position_embeddings"]))
        elif "dynamic" in rope_type:
            found.append((rope_type, config.max_position_embeddings))
    return found


def check_changing_rope(
    generation_config: GenerationConfig,
    target: PreTrainedModel,
    input_ids: torch.LongTensor,
    model_kwargs: dict[str, Any],
) -> None:
    """
    Refuses a call whose text may grow to where windows change the target's rotary frequencies.

    Args:
        generation_config ([`~transformers.GenerationConfig`]): The prepared configuration of the call.
        target ([`~transformers.PreTrainedModel`]): The target.
        input_ids (`torch.LongTensor` of shape `(1, length)`): The prompt.
        model_kwargs (`dict`): The target's prepared inputs.

    Raises:
        ValueError: Saying how long the text may be.
    """
    ropes = changing_ropes(target)
    if not ropes:
        return
    prompt = input_ids.shape[1]
    if (embeds := model_kwargs.get("inputs_embeds")) is not None:
        prompt = max(prompt, embeds.shape[1])
    if (positions := model_kwargs.get("position_ids")) is not None:
        prompt = max(prompt, int(positions.max()) + 1)
    new = generation_config.max_length - input_ids.shape[1]
    fed = prompt + new - 1  # the last token is never fed
    for rope_type, limit in ropes:
        # Longrope has two sets of frequencies: a prompt beyond the limit has the second one throughout.
        if fed <= limit or (rope_type == "longrope" and prompt > limit):
            continue
        room = limit + 1 - prompt
        shorter = f"Ask for at most `max_new_tokens={room}`" if room > 0 else "Give a shorter prompt"
        raise ValueError(
            f"`max_new_tokens`={new} behind a prompt of {prompt} tokens cannot be combined with a drafter: beyond "
            f"{limit} tokens the frequencies of this target's rotary embedding (`rope_type`={rope_type!r}) depend on "
            f"the length of the text, and draft tokens would change them. {shorter}, or leave out `assistant_model`."
        )
