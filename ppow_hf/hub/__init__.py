# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Sharing drafters: cards, remote code, push, and the exchange of EAGLE-3 checkpoints."""

import importlib
from typing import TYPE_CHECKING

_MODULES = {
    "HubPushError": "push_errors",
    "PushResult": "push_session",
    "export_drafter": "exporter",
    "import_drafter": "importer",
    "push_folder": "push",
    "push_space": "push_space",
    "write_card": "card",
    "write_remote_code": "remote_code",
}

__all__ = [
    "HubPushError",
    "PushResult",
    "export_drafter",
    "import_drafter",
    "push_folder",
    "push_space",
    "write_card",
    "write_remote_code",
]


def __getattr__(name: str):
    # The command line imports this package at every start; what it does not run is not loaded.
    if name in _MODULES:
        value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if TYPE_CHECKING:
    from .card import write_card
    from .exporter import export_drafter
    from .importer import import_drafter
    from .push import push_folder
    from .push_errors import HubPushError
    from .push_session import PushResult
    from .push_space import push_space
    from .remote_code import write_remote_code
