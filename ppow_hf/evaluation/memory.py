# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How much memory a call takes at its peak, and what caches and states hold."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import torch
from torch import nn
from transformers import Cache

from ..drafters import DrafterState


class PeakMemory:
    """
    Context in which the peak of memory above its start is measured: allocated tensors on a GPU, and resident memory of
    the process on a CPU, after what earlier calls freed has gone back to the system.

    Args:
        device (`torch.device`): Where the work runs.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._before = 0
        # `int`, *optional*: The result; None where the system does not tell (a CPU without Linux's /proc).
        self.bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            _give_back()
            self._before = _resident("VmRSS") if _reset_peak() else None
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _resident("VmHWM") if self._before is not None else None
        self.bytes = None if peak is None or self._before is None else max(peak - self._before, 0)


def _give_back() -> None:
    """Hands what the allocator keeps back to the system, which would otherwise hide the next call's needs."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # not glibc
        pass


def _reset_peak() -> bool:
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _resident(name: str) -> int | None:
    """Bytes of a line of /proc/self/status: `VmRSS`, resident now, or `VmHWM`, at its highest since the reset."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def tensor_bytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of the elements of tensors; None counts nothing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor))


def cache_bytes(cache: Cache) -> int:
    """Bytes of the keys and values in a cache."""
    return sum(tensor_bytes(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers)


def state_bytes(state: DrafterState) -> int:
    """
    Bytes of what a drafter remembers of the text, with what is set aside for it: keys and values, the state fed to its
    next step, and scratch memory.
    """
    held = [state.hidden, *getattr(getattr(state, "short_way", None), "__dict__", {}).values()]
    for layer in state.cache.layers:
        held += [layer.keys, layer.values]
    storages = {}
    for tensor in held:
        if isinstance(tensor, torch.Tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of a model's own parameters and buffers; shared ones count once."""
    own = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return tensor_bytes(*own.values())
