# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
The one hook into transformers, so that `target.generate(**inputs, assistant_model=drafter)` just works.

Touched: `GenerationMixin._get_candidate_generator` (which chooses the candidate generator),
`GenerationMixin._validate_generation_mode` (for early, clear errors; `num_beams > 1` would silently ignore the
drafter), `GenerationMixin._assisted_decoding` (some calls are decoded in loops of our own) and a class attribute
`GenerationConfig.window = None`, which makes `generate(window=...)` a known argument.
Everything is passed on unchanged unless the assistant has a `make_candidate_generator` method of its own.

`generate` looks the decoding loop up on the class. A single target is therefore attached through `generate` itself,
whose public argument `custom_generate` then names the loop.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import transformers
from transformers import Cache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation import utils as generation_utils
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
# Called, and left as they are (but for those of an attached target).
_CALLED = {
    "_update_model_kwargs_for_generation": ("outputs", "model_kwargs", "num_new_tokens"),
    "_extract_generation_mode_kwargs": ("custom_generate", "kwargs", "synced_gpus", "assistant_model", "streamer"),
    "_get_stopping_criteria": ("tokenizer",),
    "generate": ("assistant_model", "streamer", "synced_gpus", "custom_generate"),
}
# What `_assisted_decoding` is given besides the target's inputs, and is nothing to loops of our own.
_ASSISTANTS = frozenset({"assistant_model", "assistant_tokenizer", "tokenizer", "inputs_tensor"})
# The arguments that `generate` of an attached target decodes with, where it does so with a drafter.
_attached_call: ContextVar[dict[str, Any] | None] = ContextVar("ppow_hf_attached_call", default=None)


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
    if not hasattr(generation_utils, "_speculative_sampling"):
        problems.append("`transformers.generation.utils._speculative_sampling` is gone")
    if problems:
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
            from .call_checks import ask_for_growing_cache

            ask_for_growing_cache(generation_config)
            check_drafter_call(self, assistant, generation_config)
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
        call = dict(zip(_HOOKED["_assisted_decoding"][1:], args, strict=False)) | kwargs
        drafter = call.get("assistant_model")
        if not has_own_generator(drafter):
            return original(self, input_ids, *args, **kwargs)
        from .dispatch import decode

        own = {name: value for name, value in call.items() if name not in _ASSISTANTS}
        return decode(self, input_ids, drafter, lambda: original(self, input_ids, *args, **kwargs), **own)

    return _assisted_decoding


# In the classes of all targets.
_WRAPPERS = {
    "_get_candidate_generator": _wrap_get_candidate_generator,
    "_validate_generation_mode": _wrap_validate_generation_mode,
    "_assisted_decoding": _wrap_assisted_decoding,
}


def unhooked(owner: type, name: str) -> Any:
    """A method as it is without the hook."""
    method = getattr(owner, name)
    return getattr(method, _MARKER, method)


def _wrap_generate(original):
    names = list(inspect.signature(original).parameters)[1:]

    @functools.wraps(original)
    def generate(self, *args: Any, **kwargs: Any):
        call = dict(zip(names, args, strict=False)) | kwargs
        drafter, mode = call.get("assistant_model"), None
        if has_own_generator(drafter) and call.get("custom_generate") is None:
            # As `generate` itself makes them for the loop of its own choice, which gets them all.
            mode = self._extract_generation_mode_kwargs(
                None, dict(call), call.get("synced_gpus"), drafter, call.get("streamer")
            )
            loop = _wrap_assisted_decoding(unhooked(type(self), "_assisted_decoding"))

            def custom_generate(model: PreTrainedModel, input_ids: Any, **prepared: Any):
                return loop(model, input_ids, **mode, **prepared)

            call["custom_generate"] = custom_generate
        token = _attached_call.set(mode)
        try:
            return original(self, **call)
        finally:
            _attached_call.reset(token)

    return generate


def _wrap_validation_of_attached(original):
    validate = _wrap_validate_generation_mode(original)

    @functools.wraps(original)
    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        mode = _attached_call.get() or {}  # A function's arguments `generate` does not show.
        return validate(self, generation_mode, generation_config, generation_mode_kwargs | mode)

    return _validate_generation_mode


def _wrap_get_stopping_criteria(original):
    @functools.wraps(original)
    def _get_stopping_criteria(self, *args: Any, **kwargs: Any):
        mode = _attached_call.get() or {}
        if kwargs.get("tokenizer") is None and "tokenizer" in mode:
            kwargs["tokenizer"] = mode["tokenizer"]  # For `stop_strings`: functions are not given it.
        return original(self, *args, **kwargs)

    return _get_stopping_criteria


# In one attached target.
_ATTACHED = {
    "_get_candidate_generator": _wrap_get_candidate_generator,
    "_validate_generation_mode": _wrap_validation_of_attached,
    "_get_stopping_criteria": _wrap_get_stopping_criteria,
    "generate": _wrap_generate,
}


def check_drafter_call(target: PreTrainedModel, drafter: Any, generation_config: GenerationConfig) -> None:
    """
    Refuses, before any work is done, what speculative decoding with this drafter cannot do.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
        generation_config ([`~transformers.GenerationConfig`]): The prepared configuration of the call.

    Raises:
        ValueError: Naming the argument and the remedy.
    """
    from .call_checks import check_configuration, warn_of_unread_lengths
    from .tree_checks import trees_or_chains
    from .window_config import WindowConfig

    check_configuration(generation_config)
    if target.training and getattr(target, "is_gradient_checkpointing", False):
        raise ValueError(
            "`target` is in training mode with gradient checkpointing, which keeps no cache: every draft token would "
            "be refused. Call `target.eval()` before `generate`."
        )
    warn_of_unread_lengths(generation_config, getattr(drafter, "generation_config", None))
    drafter.bind_target(target)
    device = getattr(drafter, "device", target.device)
    if device != target.device:
        raise ValueError(
            f"The drafter is on {device}, but the target is on {target.device}. Move it: `drafter.to(target.device)`."
        )
    WindowConfig.coerce(getattr(generation_config, "window", None))
    trees_or_chains(target, drafter, generation_config)


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
        target ([`~transformers.PreTrainedModel`]): The target. Copies of it (`deepcopy`) made from now on are
            attached, too, each for itself.

    Returns:
        The target.

    Raises:
        RuntimeError: If the installed transformers has moved what this relies on.
    """
    check_upstream()
    own = _uncompiled(target)
    for name, wrap in _ATTACHED.items():
        if name not in own.__dict__:
            own.__dict__[name] = types.MethodType(wrap(unhooked(type(own), name)), own)
    # Read through the target's own generation config: `generate(window=...)` is then known to this target alone, and
    # stays so when the global hook, which makes it known to all, goes.
    if "window" not in vars(own.generation_config):
        own.generation_config.window = None
    return target


def _uncompiled(target: PreTrainedModel) -> PreTrainedModel:
    """The module in `torch.compile(target)`, where its `generate` leads."""
    return getattr(target, "_orig_mod", target)


def detach(target: PreTrainedModel) -> PreTrainedModel:
    """Undoes [`attach`]. Returns the target."""
    own = _uncompiled(target)
    for name in _ATTACHED:
        own.__dict__.pop(name, None)
    if "window" in vars(own.generation_config) and own.generation_config.window is None:
        del own.generation_config.window
    return target


@contextmanager
def attached(target: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """[`attach`] inside a `with` block; a target that was attached before stays attached."""
    before = "_get_candidate_generator" in _uncompiled(target).__dict__
    attach(target)
    try:
        yield target
    finally:
        if not before:
            detach(target)
