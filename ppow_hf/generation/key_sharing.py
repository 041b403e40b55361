# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Verification without copies of the cache, where a target shares keys between query heads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Read by transformers on every call of its `sdpa` attention.
_SWITCH = "TRANSFORMERS_SDPA_FORCE_GQA"

_lock = threading.Lock()
_calls = 0


@contextmanager
def shared_keys(device: torch.device | str) -> Iterator[None]:
    """
    Lets attention read shared keys and values where they are (ours).

    A pass over several tokens has a mask, and with a mask transformers' `sdpa` attention copies the keys and values of
    grouped queries once per query head, in every layer: the longer the text, the dearer the verification. The plain
    step beside it has no mask and makes no copies. On a CPU the kernel takes the groups itself, with the same numbers;
    on other devices it may fall back to a slower one, and everything stays as it is. So it does where the user has set
    the environment variable that transformers reads.

    Args:
        device (`torch.device` or `str`): Of the target.
    """
    global _calls
    if torch.device(device).type != "cpu":
        yield
        return
    with _lock:
        ours = _calls > 0 or _SWITCH not in os.environ
        if ours:
            _calls += 1
            os.environ[_SWITCH] = "1"
    try:
        yield
    finally:
        with _lock:
            if ours:
                _calls -= 1
                if _calls == 0:
                    os.environ.pop(_SWITCH, None)
