# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Whether a call asks for draft trees, and what decoding with them refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from .drafter_window import stored_window, window_for
from .tree_attention import check_tree_target

if TYPE_CHECKING:
    from ..drafters import DrafterModel

logger = logging.get_logger(__name__)

# What a target may be given that a pass over a tree can be given, too, or does not need.
_KNOWN_INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "inputs_embeds", "logits_to_keep"}
_KNOWN_INPUTS |= {"return_dict", "output_hidden_states", "output_attentions", "cache_position"}


def wants_tree(drafter: Any, generation_config: GenerationConfig) -> bool:
    """Whether a call asks for draft trees: by its own window, or else by the drafter's."""
    if not hasattr(drafter, "generation_config"):
        return False
    return window_for(drafter, getattr(generation_config, "window", None)).tree is not None


def has_step_tree(drafter: Any) -> bool:
    """Whether a drafter can draft trees: whether its class overrides `step_tree`."""
    base = next((c for c in type(drafter).__mro__ if c.__name__ == "DrafterModel"), None)
    return base is not None and type(drafter).step_tree is not base.step_tree


def drafts_trees(drafter: Any) -> bool:
    """Whether a drafter can draft trees, as it has been loaded."""
    try:
        check_tree_drafter(drafter)
    except ValueError:
        return False
    return True


def check_tree_drafter(drafter: Any) -> None:
    """
    Refuses a drafter that cannot draft trees: by its class, or by the attention it has been loaded with.

    Args:
        drafter ([`DrafterModel`]): The drafter.

    Raises:
        ValueError: Saying why, and what to do instead.
    """
    if not has_step_tree(drafter):
        raise ValueError(
            f"`{type(drafter).__name__}` drafts chains only. Leave `tree` out of the window, or use a drafter with "
            "`step_tree`: an Eagle3Drafter or a CausalLMDrafter."
        )
    # Remote code may bring a drafter of an older version, which has no such method.
    check = getattr(drafter, "check_tree", None)
    if check is not None:
        check()


def trees_or_chains(
    target: PreTrainedModel,
    drafter: Any,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any] | None = None,
) -> bool:
    """
    Whether a call decodes with draft trees. A tree that the call asks for itself must be possible; where only the
    drafter's own window has one, and it is not, chains are drafted, and a warning says so once.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
        generation_config ([`~transformers.GenerationConfig`]): The prepared configuration of the call; its `window` is
            set where chains take the place of trees.
        model_kwargs (`dict`, *optional*): The target's prepared inputs, once they are known.

    Raises:
        ValueError: If the call asks for a tree and cannot have one.
    """
    if not wants_tree(drafter, generation_config):
        return False
    try:
        check_tree_call(target, drafter, generation_config)
        check_inputs(model_kwargs or {})
    except ValueError as error:
        if getattr(generation_config, "window", None) is not None:
            raise
        logger.warning_once(f"Chains are drafted in place of the trees of this drafter's own window. {error}")
        generation_config.window = replace(stored_window(drafter), tree=None)
        return False
    return True


def check_tree_call(target: PreTrainedModel, drafter: DrafterModel, generation_config: GenerationConfig) -> None:
    """
    Refuses, before any work is done, what decoding with trees cannot do beyond what chains cannot.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
        generation_config ([`~transformers.GenerationConfig`]): The prepared configuration of the call.

    Raises:
        ValueError: Naming the argument and the remedy.
    """
    check_tree_drafter(drafter)
    if generation_config.output_attentions:
        raise ValueError(
            "`output_attentions=True` cannot be combined with draft trees: the attention of a pass over a tree is not "
            "that of the text. Leave it out, or leave `tree` out of the window."
        )
    if getattr(generation_config, "assistant_ensemble_weight", None) is not None:
        raise ValueError(
            "`assistant_ensemble_weight` cannot be combined with draft trees. Leave it out, or leave `tree` out of "
            "the window."
        )
    if generation_config.cache_implementation not in (None, "dynamic"):
        raise ValueError(
            f"`cache_implementation`={generation_config.cache_implementation!r} cannot be combined with draft trees, "
            "whose rejected branches are taken out of the cache. Leave it out, or leave `tree` out of the window."
        )
    check_tree_target(target)


def check_inputs(model_kwargs: dict[str, Any]) -> None:
    """
    Refuses inputs of the target that a pass over a tree cannot be given.

    Args:
        model_kwargs (`dict`): The target's prepared inputs.

    Raises:
        ValueError: Naming the argument and the remedy.
    """
    others = sorted(name for name, value in model_kwargs.items() if value is not None and name not in _KNOWN_INPUTS)
    if others:
        raise ValueError(
            f"`{others[0]}` cannot be combined with draft trees: it is not known how a pass over a tree would take "
            f"it. Leave it out, or leave `tree` out of the window to draft chains."
        )
    for name, most in (("attention_mask", 2), ("position_ids", 2)):
        value = model_kwargs.get(name)
        if value is not None and value.dim() > most:
            raise ValueError(
                f"`{name}` has {value.dim()} dimensions; draft trees take one of {most}. Leave `tree` out of the "
                "window to draft chains."
            )
