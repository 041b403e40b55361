# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a speculative `generate` call may ask for, and what its configuration says about the end of the text."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    QuantizedCache,
    SynthIDTextWatermarkingConfig,
)
from transformers.generation.logits_process import (
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.utils import logging

from ..drafters.learned_positions import learned_positions
from .changing_rope import check_changing_rope

logger = logging.get_logger(__name__)

# Of these caches the columns of rejected draft tokens can be taken out again.
_CROPPABLE_CACHES = (None, "dynamic", "offloaded")
# These count their calls, or remember the last one, where a window asks about tokens that may be rejected.
_STATEFUL_PROCESSORS = {
    UnbatchedClassifierFreeGuidanceLogitsProcessor: "guidance_scale",
    SynthIDTextWatermarkLogitsProcessor: "watermarking_config",
}


# What tells transformers' own assistants how much to propose, and the values that mean nothing was asked for.
_OF_OTHER_ASSISTANTS = {
    "num_assistant_tokens": ((None, 20), "fixed:{}"),
    "assistant_confidence_threshold": ((None, 0.4), "confidence:{}"),
}


def warn_of_unread_lengths(*generation_configs: GenerationConfig | None) -> None:
    """
    Warns, once, of fields that say how much transformers' own assistants propose: a drafter's window does not read
    them.

    Args:
        generation_configs (`GenerationConfig`, *optional*): Those of the call and of the drafter, if it has one.
    """
    for config in generation_configs:
        for name, (unasked, window) in _OF_OTHER_ASSISTANTS.items():
            value = getattr(config, name, None)
            if value not in unasked:
                logger.warning_once(
                    f"`{name}`={value} is for transformers' own assistants and changes nothing here: how much a "
                    f'drafter proposes is its window. Pass `window="{window.format(value)}"` for the like of it.'
                )


def check_configuration(generation_config: GenerationConfig) -> None:
    """
    Refuses what no drafter can be combined with, by the configuration of the call alone.

    Args:
        generation_config ([`~transformers.GenerationConfig`]): The prepared configuration of the call.

    Raises:
        ValueError: Naming the argument and the remedy.
    """
    config = generation_config
    if (config.num_beams or 1) > 1:
        raise ValueError(
            f"`num_beams`={config.num_beams} cannot be combined with a drafter: speculative decoding verifies one "
            "sequence. Set `num_beams=1`, or leave out `assistant_model`."
        )
    if (config.num_return_sequences or 1) > 1:
        raise ValueError(
            f"`num_return_sequences`={config.num_return_sequences} cannot be combined with a drafter. Call `generate` "
            "several times, or leave out `assistant_model`."
        )
    for name in ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"):
        if getattr(config, name, None):
            raise ValueError(
                f"`{name}`={getattr(config, name)!r} and a drafter both propose tokens. Leave out `{name}`, or leave "
                "out `assistant_model`."
            )
    if config.use_cache is False:
        raise ValueError(
            "`use_cache=False`, given or as the target's own default, cannot be combined with a drafter. Pass "
            "`use_cache=True`."
        )
    if getattr(config, "guidance_scale", None) not in (None, 1):
        raise ValueError(
            f"`guidance_scale`={config.guidance_scale} cannot be combined with a drafter: guidance runs the target "
            "beside the text, one token per call, and cannot take back a rejected one. Leave it out, or leave out "
            "`assistant_model`."
        )
    if isinstance(config.watermarking_config, SynthIDTextWatermarkingConfig):
        raise ValueError(
            "`watermarking_config` of SynthID cannot be combined with a drafter: the watermark depends on the tokens "
            "before it in the order of the calls, rejected ones included. Use `WatermarkingConfig`, whose marks "
            "depend on the text alone, or leave out `assistant_model`."
        )


def ask_for_growing_cache(generation_config: GenerationConfig) -> bool:
    """
    Has a call decode with a cache that rejected draft tokens can be taken out of, whatever `cache_implementation` it
    or the target's generation config names: static and quantized ones change where keys and values are kept, not the
    text. A warning says so.

    Args:
        generation_config ([`~transformers.GenerationConfig`]): The prepared configuration of the call; changed.

    Returns:
        `bool`: Whether it asked for another cache.
    """
    asked = generation_config.cache_implementation
    if asked in _CROPPABLE_CACHES:
        return False
    logger.warning_once(
        f"`cache_implementation`={asked!r} is not used with a drafter, since rejected draft tokens are taken out of "
        "the cache: one that grows with the text is. The text is the same."
    )
    generation_config.cache_implementation = None
    return True


def replace_cache(target: PreTrainedModel, model_kwargs: dict[str, Any]) -> None:
    """Puts an empty growing cache in the place of the one that `generate` has made already."""
    model_kwargs["past_key_values"] = DynamicCache(config=target.config.get_text_config(decoder=True))


def check_call(
    generation_config: GenerationConfig,
    target: PreTrainedModel,
    input_ids: torch.LongTensor,
    model_kwargs: dict[str, Any],
    logits_processor: LogitsProcessorList | None = None,
) -> None:
    """Refuses what a speculative call cannot do. Raises `ValueError` naming the argument and the remedy."""
    if input_ids.shape[0] != 1:
        raise ValueError(
            "Speculative generation decodes one prompt at a time, but `input_ids` has a batch of "
            f"{input_ids.shape[0]} (given so, or by `num_beams` or `num_return_sequences`). Call `generate` once per "
            "prompt, or leave out `assistant_model`."
        )
    cache = model_kwargs.get("past_key_values")
    if cache is None:
        raise ValueError(
            f"`target` is a `{type(target).__name__}`, for which `generate` makes no cache that rejected draft tokens "
            "could be taken out of: it keeps a state of its own. Leave out `assistant_model`, or use a target with "
            "attention in every layer."
        )
    if cache.is_compileable or isinstance(cache, QuantizedCache):
        raise ValueError(
            f"`past_key_values` is a {type(cache).__name__}, which cannot be combined with a drafter: rejected draft "
            "tokens are taken out of the cache. Pass a `DynamicCache`, or leave it out."
        )
    if cache.get_seq_length() > 0:
        raise ValueError(
            f"`past_key_values` already holds {cache.get_seq_length()} tokens; the drafter has not seen the target's "
            "features for them. Pass the whole text without `past_key_values`, or an empty cache."
        )
    check_changing_rope(generation_config, target, input_ids, model_kwargs)
    for processor in logits_processor or ():
        for kind, argument in _STATEFUL_PROCESSORS.items():
            if isinstance(processor, kind):
                raise ValueError(
                    f"`logits_processor` has a {type(processor).__name__}, which remembers its calls and cannot take "
                    "back those about rejected draft tokens. Leave it out (it is what "
                    f"`{argument}` stands for), or leave out `assistant_model`."
                )


def max_length_of(generation_config: GenerationConfig, target: PreTrainedModel) -> int:
    """Longest text a window may reach: the call's `max_length`, or the end of the target's learned position table."""
    max_length = generation_config.max_length
    config = target.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions >= max_length:
        return max_length
    # Drafting past the end of a table would crash where plain decoding, ending at EOS, would not have got to.
    learned = learned_positions(target)
    # The verification's last input sits at `len + k - 1`, one place further than the text plain decoding feeds.
    return max_length if learned is None else min(max_length, learned + 1)
