# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Running models in another dtype for a while, and recognising them again."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..drafters import is_prepacked, prepack_weights, unpack_weights
from ..drafters.prepacking import can_prepack
from ..generation.drafter_window import stored_window

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of a configuration, what says nothing of the model.
_NAMES = ("_name_or_path", "target_name_or_path", "architectures", "transformers_version", "dtype")


def parse_dtype(dtype: str | torch.dtype | None, default: torch.dtype) -> torch.dtype:
    """A torch dtype from `"float32"`, `"bfloat16"`, `"float16"` or a dtype; `default` for None."""
    if dtype is None:
        return default
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}; got {dtype!r}.")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def cast_floating(models: Iterable[nn.Module | None], dtype: torch.dtype) -> Iterator[None]:
    """
    Hold the weights of `models` in `dtype`, and give every one its own dtype and values back afterwards.

    Weights that two models share stay shared: the data of a parameter is exchanged, not the parameter. Tensors that a
    model keeps in float32 on purpose (RoPE frequencies, for one) are buffers and are left alone. The originals are
    kept, not converted back, so that nothing is lost where `dtype` is the narrower one.
    """
    saved: dict[int, tuple[nn.Parameter, torch.Tensor]] = {}
    for model in models:
        for parameter in model.parameters() if model is not None else ():
            if parameter.is_floating_point() and parameter.dtype != dtype and id(parameter) not in saved:
                saved[id(parameter)] = (parameter, parameter.data)
    try:
        for parameter, data in saved.values():
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in saved.values():
            parameter.data = data


def _is_or_cannot_be(model: nn.Module) -> bool:
    return is_prepacked(model) or not any(can_prepack(layer) for layer in model.modules())


@contextmanager
def prepacked(models: Iterable[nn.Module | None]) -> Iterator[None]:
    """Prepack the weights of `models` inside the context, where that can be and is not done yet."""
    packed = [model for model in models if model is not None and not _is_or_cannot_be(model)]
    for model in packed:
        prepack_weights(model)
    try:
        yield
    finally:
        for model in packed:
            unpack_weights(model)


def fingerprint(model: nn.Module | None) -> str | None:
    """
    Short hash of a model's class and of a sample of every weight (the first and last 64 numbers). Enough to tell on
    resuming whether the weights are still the same; not a checksum of the file. What else decides over the text that a
    drafter proposes is in [`settings_hash`].
    """
    if model is None:
        return None
    digest = hashlib.sha256()
    digest.update(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = torch.cat([flat[:64], flat[-64:]]).to("cpu")
        if sample.is_floating_point():
            sample = sample.float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def settings_hash(drafter: nn.Module | None) -> str | None:
    """
    Short hash of what a drafter computes with beside its weights: its configuration, and the window stored with it.
    Names, dtype and versions are left out, since they change nothing.

    Args:
        drafter (`DrafterModel`, *optional*): The drafter.
    """
    if drafter is None:
        return None
    config = {name: value for name, value in drafter.config.to_dict().items() if name not in _NAMES}
    return content_hash([config, stored_window(drafter).to_dict()])


def content_hash(value: Any) -> str:
    """Short hash of anything that can be written as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def public_name(model: nn.Module | None, given: str | None = None) -> str | None:
    """Name of a model for a report: a repository id as it is, of a local path only the last part."""
    name = given or getattr(getattr(model, "config", None), "_name_or_path", None) or ""
    if model is None and not name:
        return None
    if os.path.isabs(name) or name.startswith((".", "~")) or os.path.exists(name):
        name = os.path.basename(os.path.normpath(name))
    return name or type(model).__name__
