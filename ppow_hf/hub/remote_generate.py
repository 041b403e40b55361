# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
`custom_generate/generate.py` of a drafter's repository: speculative decoding without this library installed.

    target.generate(**inputs, custom_generate="org/my-drafter", trust_remote_code=True)

It is copied as it stands, so it imports nothing of ours: what it needs, it reaches through the drafter's own code.
"""

import importlib
import re
import sys
import weakref
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")

# The last drafter of every target, so that only the first call loads it. Goes away with the target.
_DRAFTERS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def generate(
    model: PreTrainedModel, assistant_model: PreTrainedModel | None = None, window: Any = None, **kwargs: Any
) -> torch.LongTensor | Any:
    """
    Generates with the drafter of this repository. The text is that of plain `generate`.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target; `generate` passes it.
        assistant_model ([`~transformers.PreTrainedModel`], *optional*):
            The drafter, if it is loaded already (`AutoModel.from_pretrained(repository, trust_remote_code=True)`);
            `assistant_model.last_trace` then tells what happened. By default it is loaded from this repository at the
            first call and kept as long as the target.
        window (`str` or `dict`, *optional*): Replaces the drafter's window for this call, for example `"fixed:5"`.
        kwargs: All other arguments of `generate`.

    Returns:
        What `generate` returns.

    Raises:
        ValueError: If the assistant is no drafter, the repository cannot be told, or the call asks for something
            speculative decoding cannot do.
    """
    hub_arguments = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    drafter = assistant_model if assistant_model is not None else _own_drafter(model, hub_arguments)
    if window is not None:
        kwargs["window"] = window
    with _attached(drafter, model):
        return model.generate(assistant_model=drafter, **kwargs)


def _own_drafter(model: PreTrainedModel, hub_arguments: dict[str, Any]) -> PreTrainedModel:
    repository = _repository()
    commit = __name__.split(".")[-3]
    if re.fullmatch("[0-9a-f]{40}", commit):
        hub_arguments["revision"] = commit  # code and weights of one commit
    key = (repository, hub_arguments.get("revision"), model.dtype, model.device)
    known, drafter = _DRAFTERS.get(model, (None, None))
    if known != key:
        drafter = AutoModel.from_pretrained(repository, trust_remote_code=True, dtype=model.dtype, **hub_arguments)
        drafter = drafter.to(model.device).eval()
        _DRAFTERS[model] = (key, drafter)
    return drafter


def _repository() -> str:
    # transformers keeps the name of the repository from the function it loads from there: it is the caller's.
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "transformers.generation.utils":
            repository = frame.f_locals.get("custom_generate")
            if isinstance(repository, str):
                return repository
        frame = frame.f_back
    raise ValueError(
        "The repository of this drafter is not known here. Load the drafter, "
        "`drafter = AutoModel.from_pretrained(repository, trust_remote_code=True)`, and pass it as `assistant_model`."
    )


def _attached(drafter: PreTrainedModel, model: PreTrainedModel):
    """The context in which `model.generate(assistant_model=drafter)` drafts windows."""
    owner = next((c for c in type(drafter).__mro__ if "make_candidate_generator" in vars(c)), None)
    if owner is None:
        raise ValueError(
            f"`assistant_model` is a `{type(drafter).__name__}`, which is no drafter. Leave it out: the drafter of "
            "the repository is then used."
        )
    # The drafter's own code: the files beside its module here, or the installed library.
    package = owner.__module__.rpartition(".")[0]
    name = "ppow_hf.generation.hook" if package.startswith("ppow_hf.") else f"{package}.hook"
    return importlib.import_module(name).attached(model)
