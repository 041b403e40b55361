# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Decoding with drafted windows in loops of our own, where transformers' assisted loop is too slow or not exact.

It copies the verified logits to float32, all positions times the whole vocabulary, and then copies them once more, for
outputs that are hardly ever asked for: several percent of a cycle of a small target. And it asks the stopping criteria
once per cycle, so that a text runs past the token that meets one of the user's. What is more than text, or has a cache
of a fixed size, still goes to that loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from ..drafters.modeling_drafter import DrafterModel
from ..end_tokens import eos_token_ids_of
from .attention_rows import attention_rows
from .chain_verification import ChainVerifier, Verified, verify_favourites
from .text_end import TextEnd
from .token_outputs import OUTPUTS, TokenOutputs
from .window_inputs import WindowInputs

# Inputs of a text model: what else a model takes may have to grow with the text in its own way.
_TEXT_INPUTS = frozenset(
    {"attention_mask", "logits_to_keep", "past_key_values", "position_ids", "token_type_ids", "use_cache"}
    | {"output_attentions", "output_hidden_states", "return_dict"}
)


def is_text(
    target: PreTrainedModel,
    drafter: Any,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    synced_gpus: bool = False,
) -> bool:
    """
    Whether [`decode_chains`] gives what transformers' own loop would.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target, in `generate`.
        drafter: The assistant.
        generation_config, model_kwargs, synced_gpus: As prepared by `generate`.
    """
    if not isinstance(drafter, DrafterModel) or synced_gpus or target.config.is_encoder_decoder:
        return False
    if getattr(generation_config, "assistant_ensemble_weight", None) is not None:
        return False
    cache = model_kwargs.get("past_key_values")
    if cache is None or cache.is_compileable or not model_kwargs.get("use_cache"):
        return False
    return set(model_kwargs) <= _TEXT_INPUTS


def is_plain_greedy(logits_processor: LogitsProcessorList | None, generation_config: GenerationConfig) -> bool:
    """
    Whether [`decode_greedily`] does for a text, see [`is_text`].

    Args:
        logits_processor, generation_config: As prepared by `generate`.
    """
    config = generation_config
    if config.do_sample or logits_processor:
        return False
    return not (config.return_dict_in_generate and any(getattr(config, f"output_{name}") for name in OUTPUTS))


@torch.no_grad()
def decode_greedily(
    target: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList | None,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    drafter: DrafterModel,
    streamer: BaseStreamer | None = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> torch.LongTensor | GenerateDecoderOnlyOutput:
    """
    Decodes one prompt greedily, with the drafter's windows.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target, in `generate`.
        input_ids (`torch.LongTensor` of shape `(1, length)`), logits_processor, stopping_criteria, generation_config,
            synced_gpus: Prepared by `generate`, such that [`is_plain_greedy`] holds.
        drafter ([`DrafterModel`]): The drafter.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*): Receives the text as committed.
        model_kwargs: The target's prepared inputs.

    Returns:
        What `generate` returns: the text, or a `GenerateDecoderOnlyOutput` with `return_dict_in_generate=True`.
    """
    prepared = (logits_processor, stopping_criteria, generation_config)
    return _decode(target, input_ids, *prepared, drafter, streamer, model_kwargs, verify_favourites)


@torch.no_grad()
def decode_chains(
    target: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList | None,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    drafter: DrafterModel,
    streamer: BaseStreamer | None = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> torch.LongTensor | GenerateDecoderOnlyOutput:
    """
    Decodes one prompt with the drafter's windows: sampling or greedily, with processors and every output, and with
    stopping criteria that are asked about every token.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target, in `generate`.
        input_ids (`torch.LongTensor` of shape `(1, length)`), logits_processor, stopping_criteria, generation_config:
            Prepared by `generate`.
        drafter ([`DrafterModel`]): The drafter.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*): Receives the text as committed.
        synced_gpus (`bool`, *optional*, defaults to `False`): Must be `False`.
        model_kwargs: The target's prepared inputs.

    Returns:
        What `generate` returns: the text, or a `GenerateDecoderOnlyOutput` with `return_dict_in_generate=True`.

    Raises:
        ValueError: If `synced_gpus` is set.
    """
    if synced_gpus:
        raise ValueError(
            "`synced_gpus=True` cannot be combined with a drafter and criteria that may end the text at any token. "
            "Leave out `stopping_criteria` and `stop_strings`, and cut the text afterwards, or leave out "
            "`assistant_model`."
        )
    verify = ChainVerifier(generation_config, logits_processor)
    prepared = (logits_processor, stopping_criteria, generation_config)
    return _decode(target, input_ids, *prepared, drafter, streamer, model_kwargs, verify)


def _decode(
    target: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList | None,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    drafter: DrafterModel,
    streamer: BaseStreamer | None,
    model_kwargs: dict[str, Any],
    verify: Callable[[torch.LongTensor, torch.Tensor | None, torch.Tensor], Verified],
) -> torch.LongTensor | GenerateDecoderOnlyOutput:
    model_kwargs["past_key_values"].activate_past_recording()
    generator = drafter.make_candidate_generator(
        target,
        generation_config=generation_config,
        logits_processor=logits_processor,
        input_ids=input_ids,
        model_kwargs=model_kwargs,
    )
    eos_token_ids = eos_token_ids_of(generation_config)
    end, returned = TextEnd(stopping_criteria, generation_config), TokenOutputs(generation_config)
    given = WindowInputs(target, model_kwargs)
    outputs, accepted, ended = None, 0, False
    while not ended:
        length = input_ids.shape[1]
        first = outputs is None
        candidates, draft_logits = generator.get_candidates(
            input_ids,
            model_kwargs=given.model_kwargs,
            model_outputs=outputs,
            is_first_iteration=first,
            n_last_matches=accepted,
        )
        drafted = candidates.shape[1] - length
        inputs = given.of(candidates, drafted)
        outputs = target(**inputs | generator.model_kwargs_overrides)

        logits = outputs.logits[:, -drafted - 1 :]
        chosen, tokens, scores = verify(candidates, draft_logits, logits)
        committed = len(tokens)
        if eos_token_ids:
            committed = next((i + 1 for i in range(committed) if tokens[i] in eos_token_ids), committed)
        new = chosen[None, :committed].to(input_ids.device)
        shown = returned.scores_with([scores[:, i] for i in range(committed)]) if returned.wants("scores") else None
        input_ids, ended = end.extend(input_ids, new, shown, last=tokens[committed - 1])
        committed = input_ids.shape[1] - length
        accepted = committed - 1
        if streamer is not None:
            streamer.put(new[:, :committed].cpu())
        # Also without rejected tokens: a sliding window then lets go of what it no longer needs.
        outputs.past_key_values.crop(accepted - drafted)
        generator.update_candidate_strategy(input_ids, scores, accepted)
        given.commit(outputs, committed)
        _keep(returned, target, outputs, logits, scores, committed, first)
    if streamer is not None:
        streamer.end()
    return returned.result(input_ids, given.model_kwargs["past_key_values"])


def _keep(
    returned: TokenOutputs,
    target: PreTrainedModel,
    outputs: Any,
    logits: torch.Tensor,
    scores: torch.Tensor,
    committed: int,
    first: bool,
) -> None:
    """Keeps what is to be returned of the committed tokens. The first stands for the whole prompt."""
    returned.add("scores", (scores[:, i] for i in range(committed)))
    returned.add("logits", (logits[:, i].to(scores.device, torch.float32) for i in range(committed)))
    if returned.wants("hidden_states"):
        states = outputs.hidden_states
        rows = (tuple(layer[:, i : i + 1] for layer in states) for i in range(committed))
        returned.add("hidden_states", [tuple(states)] if first else rows)
    if returned.wants("attentions"):
        attentions, config = outputs.attentions, target.config.get_text_config()
        rows = attention_rows(attentions, committed, logits.shape[1] - 1, outputs.past_key_values, config)
        returned.add("attentions", [tuple(attentions)] if first else rows)
