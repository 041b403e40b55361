# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Which loop decodes a call with a drafter: that of trees, one of ours for chains, or transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from ..drafters.growing_cache import growing_in_place
from .call_checks import check_call
from .chain_decoding import decode_chains, decode_greedily, is_plain_greedy, is_text
from .key_sharing import shared_keys
from .text_end import TextEnd
from .tree_checks import trees_or_chains
from .tree_decoding import decode_with_trees

_PREPARED = frozenset({"logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer"})


def decode(
    target: PreTrainedModel,
    input_ids: torch.LongTensor,
    drafter: Any,
    transformers_loop: Callable[[], Any],
    **call: Any,
) -> Any:
    """
    Decodes one prompt with a drafter.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target, in `generate`.
        input_ids (`torch.LongTensor` of shape `(1, length)`): The prompt.
        drafter ([`DrafterModel`]): The drafter.
        transformers_loop (`Callable`): Runs transformers' assisted loop on this call.
        call: `logits_processor`, `stopping_criteria`, `generation_config`, `synced_gpus`, `streamer` and the target's
            inputs, as prepared by `generate`.

    Returns:
        What `generate` returns.

    Raises:
        ValueError: If the call asks for something speculative decoding cannot do.
    """
    config, processors = call["generation_config"], call.get("logits_processor")
    model_kwargs = {name: value for name, value in call.items() if name not in _PREPARED}
    check_call(config, target, input_ids, model_kwargs, processors)
    with shared_keys(target.device), growing_in_place(model_kwargs.get("past_key_values")):
        if trees_or_chains(target, drafter, config, model_kwargs):
            return decode_with_trees(target, input_ids, drafter=drafter, **call)
        text = is_text(target, drafter, config, model_kwargs, bool(call.get("synced_gpus")))
        if text and is_plain_greedy(processors, config):
            return decode_greedily(target, input_ids, drafter=drafter, **call)
        if text or TextEnd(call["stopping_criteria"], config).token_by_token:
            return decode_chains(target, input_ids, drafter=drafter, **call)
        return transformers_loop()
