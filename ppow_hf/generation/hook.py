# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
The one hook into transformers, so that `target.generate(**inputs, assistant_model=drafter)` just works.

Touched: `GenerationMixin._get_candidate_generator` (which chooses the candidate generator),
`GenerationMixin._validate_generation_mode` (for early, clear errors; `num_beams > 1` would silently ignore the
drafter), `GenerationMixin._assisted_decoding` (draft trees and plain greedy decoding have loops of their own) and a
class attribute `GenerationConfig.window = None`, which makes `generate(window=...)` a known argument.
Everything is passed on unchanged unless the assistant has a `make_candidate_generator` method of its own.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Cache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.utils import logging

logger = logging.get_logger(__name__)

_MARKER = "_ppow_hf_original"
_HOOKED = {
    "_get_candidate_generator": (
        "generation_config",
        "input_ids",
        "logits_processor",
        "model_kwargs",
        "assistant_model",
    ),
    "_validate_generation_mode": ("generation_mode", "generation_config", "generation_mode_kwargs"),
    "_assisted_decoding": (
        "input_ids",
        "logits_processor",
        "stopping_criteria",
        "generation_config",
        "synced_gpus",
        "streamer",
        "inputs_tensor",
        "assistant_model",
        "assistant_tokenizer",
        "tokenizer",
    ),
}
# Called by the loop of greedy chains, and left as it is.
_CALLED = {"_update_model_kwargs_for_generation": ("outputs", "model_kwargs", "num_new_tokens")}
# What `_assisted_decoding` is given besides the target's inputs: of these the first are nothing to loops of our own.
_ASSISTANTS = frozenset({"assistant_model", "assistant_tokenizer", "tokenizer", "inputs_tensor"})
_PREPARED = frozenset({"logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer"})


def check_upstream() -> None:
    """
    Checks that the installed transformers still has what the hook relies on.

    Raises:
        RuntimeError: If it has not.
    """
    problems = []
    for name, arguments in (_HOOKED | _CALLED).items():
        method = getattr(GenerationMixin, name, None)
        if method is None:
            problems.append(f"`GenerationMixin.{name}` is gone")
            continue
        parameters = inspect.signature(getattr(method, _MARKER, method)).parameters
        missing = [argument for argument in arguments if argument not in parameters]
        if missing:
            problems.append(f"`GenerationMixin.{name}` no longer takes {missing}")
    if not hasattr(CandidateGenerator, "requires_model_outputs"):
        problems.append("`CandidateGenerator.requires_model_outputs` is gone")
    if not hasattr(Cache, "activate_past_recording"):
        problems.append("`Cache.activate_past_recording` is gone")
    if problems:
        import transformers

        raise RuntimeError(
            f"transformers {transformers.__version__} has moved what ppow-hf hooks into: {'; '.join(problems)}. "
            "Install the version in constraints.txt, or update ppow-hf."
        )


def has_own_generator(assistant: Any) -> bool:
    """Whether an assistant brings its own candidate generator (a property of its class, so modules' lookups and test
    doubles cannot confuse it)."""
    return callable(getattr(type(assistant), "make_candidate_generator", None))


def _wrap_get_candidate_generator(original):
    @functools.wraps(original)
    def _get_candidate_generator(self, *args: Any, **kwargs: Any):
        assistant = kwargs.get("assistant_model")
        if not has_own_generator(assistant):
            return original(self, *args, **kwargs)
        needed = ("generation_config", "logits_processor", "input_ids", "model_kwargs")
        return assistant.make_candidate_generator(self, **{name: kwargs[name] for name in needed})

    return _get_candidate_generator


def _wrap_validate_generation_mode(original):
    @functools.wraps(original)
    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        assistant = generation_mode_kwargs.get("assistant_model")
        if has_own_generator(assistant):
            # The loop that verifies trees is reached through the class, never through one attached target.
            dispatched = hasattr(type(self)._assisted_decoding, _MARKER)
            check_drafter_call(self, assistant, generation_config, dispatched)
        elif getattr(generation_config, "window", None) is not None:
            raise ValueError(
                "`window` was given, but `assistant_model` is not a ppow-hf drafter: pass `assistant_model=drafter`, "
                "or leave `window` out."
            )
        return original(self, generation_mode, generation_config, generation_mode_kwargs)

    return _validate_generation_mode


def _wrap_assisted_decoding(original):
    @functools.wraps(original)
    def _assisted_decoding(self, input_ids: Any, *args: Any, **kwargs: Any):
        drafter, config = kwargs.get("assistant_model"), kwargs.get("generation_config")
        if has_own_generator(drafter):
            from .chain_decoding import decode_greedily, is_plain_greedy
            from .key_sharing import shared_keys
            from .tree_checks import trees_or_chains
            from .tree_decoding import decode_with_trees

            own = {name: value for name, value in kwargs.items() if name not in _ASSISTANTS}
            model_kwargs = {name: value for name, value in own.items() if name not in _PREPARED}
            with shared_keys(self.device):
                if trees_or_chains(self, drafter, config, model_kwargs):
                    return decode_with_trees(self, input_ids, *args, drafter=drafter, **own)
                processors = kwargs.get("logits_processor")
                synced = bool(kwargs.get("synced_gpus"))
                if not args and is_plain_greedy(self, drafter, processors, config, model_kwargs, synced):
                    own.pop("synced_gpus", None)
                    return decode_greedily(self, input_ids, drafter=drafter, **own)
                return original(self, input_ids, *args, **kwargs)
        return original(self, input_ids, *args, **kwargs)

    return _assisted_decoding


_WRAPPERS = {
    "_get_candidate_generator": _wrap_get_candidate_generator,
    "_validate_generation_mode": _wrap_validate_generation_mode,
    "_assisted_decoding": _wrap_assisted_decoding,
}
# `generate` looks these up on the class: they cannot be attached to one target.
_OF_THE_CLASS = ("_assisted_decoding",)


def check_drafter_call(
    target: PreTrainedModel, drafter: Any, generation_config: GenerationConfig, dispatched: bool = True
) -> None:
    """
    Refuses, before any work is done, what speculative decoding with this drafter cannot do.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
        generation_config ([`~transformers.GenerationConfig`]): The prepared configuration of the call.
        dispatched (`bool`, *optional*, defaults to `True`): Whether the loop that verifies draft trees would be
            reached.

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
        raise ValueError("`use_cache=False` cannot be combined with a drafter. Leave it out.")
    drafter.bind_target(target)
    device = getattr(drafter, "device", target.device)
    if device != target.device:
        raise ValueError(
            f"The drafter is on {device}, but the target is on {target.device}. Move it: `drafter.to(target.device)`."
        )
    from .tree_checks import trees_or_chains
    from .window_config import WindowConfig

    WindowConfig.coerce(getattr(config, "window", None))
    trees_or_chains(target, drafter, config, dispatched=dispatched)


def install_hook() -> None:
    """
    Lets every target use drafters through `generate(assistant_model=drafter)`. Called by `import ppow_hf`; calling it
    again changes nothing.

    Raises:
        RuntimeError: If the installed transformers has moved what the hook relies on.
    """
    check_upstream()
    for name, wrap in _WRAPPERS.items():
        current = getattr(GenerationMixin, name)
        if not hasattr(current, _MARKER):
            wrapped = wrap(current)
            setattr(wrapped, _MARKER, current)
            setattr(GenerationMixin, name, wrapped)
    if not hasattr(GenerationConfig, "window"):
        GenerationConfig.window = None


def uninstall_hook() -> None:
    """Takes the hook out again. Drafters then work through `attach(target)` or `custom_generate=` only."""
    for name in _WRAPPERS:
        original = getattr(getattr(GenerationMixin, name), _MARKER, None)
        if original is not None:
            setattr(GenerationMixin, name, original)
    if "window" in vars(GenerationConfig):
        del GenerationConfig.window


def is_hook_installed() -> bool:
    """Whether `install_hook` is in force."""
    return all(hasattr(getattr(GenerationMixin, name), _MARKER) for name in _WRAPPERS)


def attach(target: PreTrainedModel) -> PreTrainedModel:
    """
    Lets one target use drafters, without the global hook.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target. Copies of it (`deepcopy`) are not attached.

    Returns:
        The target.

    Raises:
        RuntimeError: If the installed transformers has moved what this relies on.
    """
    check_upstream()
    for name, wrap in _WRAPPERS.items():
        if name not in target.__dict__ and name not in _OF_THE_CLASS:
            method = getattr(type(target), name)
            target.__dict__[name] = types.MethodType(wrap(getattr(method, _MARKER, method)), target)
    # Read through the target's own generation config: `generate(window=...)` is then known to this target alone.
    if not hasattr(target.generation_config, "window"):
        target.generation_config.window = None
    return target


def detach(target: PreTrainedModel) -> PreTrainedModel:
    """Undoes [`attach`]. Returns the target."""
    for name in _WRAPPERS:
        target.__dict__.pop(name, None)
    if "window" in vars(target.generation_config) and target.generation_config.window is None:
        del target.generation_config.window
    return target


@contextmanager
def attached(target: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """[`attach`] inside a `with` block; a target that was attached before stays attached."""
    before = "_get_candidate_generator" in target.__dict__
    attach(target)
    try:
        yield target
    finally:
        if not before:
            detach(target)
