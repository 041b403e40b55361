# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What tells models and files apart whose names are the same."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import nn

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """
    A short hash of a model's weights: another one for any other checkpoint of the same architecture.

    Args:
        model (`torch.nn.Module`): the model; names, shapes, dtypes and values of its parameters count.

    Returns:
        `str`: the same on every device and with any number of threads.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        bits = weight.contiguous().view(_INTEGERS[weight.element_size()])
        # A sum of bit patterns is exact in any order, sees every weight and takes far less time than hashing them all;
        # a row of values sees what a sum does not, their order.
        parts = [name, tuple(weight.shape), str(weight.dtype), int(bits.sum(dtype=torch.int64))]
        digest.update(f"{parts}{bits.flatten()[:64].tolist()}".encode())
    return digest.hexdigest()[:16]


def source_sha256(path: str | os.PathLike) -> str | None:
    """The sha256 of a file, or of the names and contents of a folder's files; `None` when there is neither."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return None
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(f"{name} {source_sha256(path / name)}\n" for name in files).encode()).hexdigest()
