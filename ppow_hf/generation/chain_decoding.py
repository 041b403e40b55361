# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Greedy decoding with windows, without what a general loop does for every verified position.

transformers' assisted loop copies the verified logits to float32, all positions times the whole vocabulary, and then
copies them once more, for samplers and outputs that greedy decoding does not have: several percent of a cycle of a
small target. What is asked for beyond plain greedy decoding still goes to that loop.
"""

from __future__ import annotations

from itertools import takewhile
from operator import eq
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from ..drafters.modeling_drafter import DrafterModel
from .call_checks import eos_token_ids_of
from .draws import favourites

# Inputs of a text model: what else a model takes may have to grow with the text in its own way.
_TEXT_INPUTS = frozenset(
    {"attention_mask", "logits_to_keep", "past_key_values", "position_ids", "token_type_ids", "use_cache"}
)
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def is_plain_greedy(
    target: PreTrainedModel,
    drafter: Any,
    logits_processor: LogitsProcessorList | None,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    synced_gpus: bool = False,
) -> bool:
    """
    Whether [`decode_greedily`] gives what transformers' own loop would.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target, in `generate`.
        drafter: The assistant.
        logits_processor, generation_config, model_kwargs, synced_gpus: As prepared by `generate`.
    """
    config = generation_config
    if not isinstance(drafter, DrafterModel) or config.do_sample or logits_processor or synced_gpus:
        return False
    if getattr(config, "assistant_ensemble_weight", None) is not None:
        return False
    if config.return_dict_in_generate and any(getattr(config, name) for name in _OUTPUTS):
        return False
    cache = model_kwargs.get("past_key_values")
    if cache is None or cache.is_compileable or not model_kwargs.get("use_cache"):
        return False
    return set(model_kwargs) <= _TEXT_INPUTS and not target.config.is_encoder_decoder


@torch.no_grad()
def decode_greedily(
    target: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList | None,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    drafter: DrafterModel,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> torch.LongTensor | GenerateDecoderOnlyOutput:
    """
    Decodes one prompt greedily, with the drafter's windows.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target, in `generate`.
        input_ids (`torch.LongTensor` of shape `(1, length)`), logits_processor, stopping_criteria, generation_config:
            Prepared by `generate`, such that [`is_plain_greedy`] holds.
        drafter ([`DrafterModel`]): The drafter.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*): Receives the text as committed.
        model_kwargs: The target's prepared inputs.

    Returns:
        What `generate` returns: the text, or a `GenerateDecoderOnlyOutput` with `return_dict_in_generate=True`.
    """
    model_kwargs["past_key_values"].activate_past_recording()
    generator = drafter.make_candidate_generator(
        target,
        generation_config=generation_config,
        logits_processor=logits_processor,
        input_ids=input_ids,
        model_kwargs=model_kwargs,
    )
    ends = eos_token_ids_of(generation_config)
    outputs, accepted = None, 0
    while True:
        length = input_ids.shape[1]
        first = outputs is None
        candidates, _ = generator.get_candidates(
            input_ids,
            model_kwargs=model_kwargs,
            model_outputs=outputs,
            is_first_iteration=first,
            n_last_matches=accepted,
        )
        drafted = candidates.shape[1] - length
        # As the target itself lets its inputs grow with the text.
        grown = target._update_model_kwargs_for_generation({}, dict(model_kwargs), num_new_tokens=drafted)
        inputs = target.prepare_inputs_for_generation(
            candidates,
            next_sequence_length=None if first else drafted + 1,
            is_first_iteration=first,
            **(grown if drafted else model_kwargs),
        )
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = drafted + 1
        outputs = target(**inputs | generator.model_kwargs_overrides)

        logits = outputs.logits[:, -drafted - 1 :]
        chosen = favourites(logits[0])
        tokens, draft = chosen.tolist(), candidates[0, length:].tolist()
        committed = 1 + sum(1 for _ in takewhile(bool, map(eq, draft, tokens)))
        if ends:
            committed = next((i + 1 for i in range(committed) if tokens[i] in ends), committed)
        accepted = committed - 1
        new = chosen[None, :committed].to(input_ids.device)
        input_ids = torch.cat([input_ids, new], dim=-1)
        if streamer is not None:
            streamer.put(new.cpu())
        # Also without rejected tokens: a sliding window then lets go of what it no longer needs.
        outputs.past_key_values.crop(accepted - drafted)
        generator.update_candidate_strategy(input_ids, logits, accepted)
        model_kwargs = target._update_model_kwargs_for_generation(outputs, model_kwargs, num_new_tokens=committed)
        if bool(stopping_criteria(input_ids, None).all()):
            break
    if streamer is not None:
        streamer.end()
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=input_ids, past_key_values=model_kwargs["past_key_values"])
    return input_ids
