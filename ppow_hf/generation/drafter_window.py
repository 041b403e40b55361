# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The window a drafter comes with, and the one in force for a call."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from .window_config import WindowConfig

if TYPE_CHECKING:
    from ..drafters import DrafterModel


def stored_window(drafter: DrafterModel) -> WindowConfig:
    """The window in the drafter's generation config, or the default one."""
    return WindowConfig.coerce(getattr(drafter.generation_config, "window", None))


def window_for(drafter: DrafterModel, window: WindowConfig | dict | str | None) -> WindowConfig:
    """
    The window in force for a drafter.

    Args:
        drafter ([`DrafterModel`]): The drafter.
        window ([`WindowConfig`] or `dict` or `str`, *optional*): As `window=` of `generate`; by default the drafter's.
    """
    config = WindowConfig.coerce(window, stored_window(drafter))
    if isinstance(window, str) and config.proposals == "drafter" and config.tree is None:
        # A policy's name asks for the drafter's own proposals, and here those are lookup's.
        if getattr(drafter, "proposes_by_lookup", False):
            return replace(config, proposals="lookup")
    return config


@contextmanager
def use_window(drafter: DrafterModel, window: WindowConfig | dict | str | None):
    """
    Replaces the drafter's window inside a `with` block.

    Args:
        drafter ([`DrafterModel`]): The drafter.
        window ([`WindowConfig`] or `dict` or `str`): As `window=` of `generate`.
    """
    config = drafter.generation_config
    previous = getattr(config, "window", None)
    config.window = window_for(drafter, window)
    try:
        yield drafter
    finally:
        config.window = previous
