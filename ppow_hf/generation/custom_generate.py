# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Speculative generation through the public `custom_generate=` argument: no hook needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .call_checks import ask_for_growing_cache, replace_cache
from .dispatch import decode
from .hook import attached, check_drafter_call, has_own_generator, unhooked
from .window_config import WindowConfig

if TYPE_CHECKING:
    from ..drafters import DrafterModel


def speculative_generate(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    drafter: DrafterModel | None = None,
    window: WindowConfig | dict | str | None = None,
    token_streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> torch.LongTensor | Any:
    """
    Decoding method for `generate(custom_generate=...)`, for those who want no hook in transformers.

    Example:

    ```python
    >>> from ppow_hf import speculative_generate

    >>> output = target.generate(**inputs, custom_generate=speculative_generate, drafter=drafter, window="fixed:5")
    >>> drafter.last_trace.acceptance_length
    ```

    Args:
        model ([`~transformers.PreTrainedModel`]): The target; `generate` passes it.
        input_ids (`torch.LongTensor` of shape `(1, length)`), logits_processor, stopping_criteria, generation_config:
            Prepared and passed by `generate`.
            Of the latter, `generate` keeps the tokenizer of `stop_strings` to itself when `custom_generate` is a
            function: pass `stopping_criteria=[StopStringCriteria(tokenizer, strings)]` instead.
        drafter ([`DrafterModel`]): The drafter.
        window ([`WindowConfig`] or `dict` or `str`, *optional*): Replaces the drafter's window for this call.
        token_streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*):
            Receives the prompt and the text as it is committed. Not called `streamer`, which `generate` keeps to
            itself when `custom_generate` is a function.
        model_kwargs: The target's prepared inputs.

    Returns:
        What `generate(assistant_model=drafter)` returns.

    Raises:
        ValueError: If there is no drafter, or the call asks for something speculative decoding cannot do.
    """
    if not has_own_generator(drafter):
        raise ValueError(
            "`speculative_generate` needs a ppow-hf drafter: "
            "target.generate(**inputs, custom_generate=speculative_generate, drafter=drafter)."
        )
    if window is not None:
        generation_config.window = window
    if ask_for_growing_cache(generation_config):
        replace_cache(model, model_kwargs)
    check_drafter_call(model, drafter, generation_config)
    if token_streamer is not None:
        token_streamer.put(input_ids.cpu())
    call = {
        "logits_processor": logits_processor,
        "stopping_criteria": stopping_criteria,
        "generation_config": generation_config,
        "streamer": token_streamer,
        **model_kwargs,
    }

    def transformers_loop() -> Any:
        # Attached to this one target for the duration of the call: the loop around the candidate generator, with its
        # caches and outputs, stays transformers' own.
        with attached(model):
            loop = unhooked(type(model), "_assisted_decoding")
            return loop(model, input_ids, inputs_tensor=input_ids, assistant_model=drafter, **call)

    return decode(model, input_ids, drafter, transformers_loop, **call)
