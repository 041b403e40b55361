# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""ZeroGPU hardware: there is a GPU only inside functions that ask for one."""

from __future__ import annotations

import os
from collections.abc import Callable

try:
    # The package wants to come before anything that touches CUDA, so this module is imported first. (This repository
    # has a folder of that name, which is not the package: ask for what only the package has.)
    from spaces import GPU
except ImportError:
    GPU = None

# How the package itself tells.
ACTIVE = GPU is not None and os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
SECONDS = 60


def on_gpu(function: Callable) -> Callable:
    """Asks for a GPU around `function` where the package `spaces` is there (off ZeroGPU it does nothing)."""
    return GPU(duration=SECONDS)(function) if GPU is not None else function
