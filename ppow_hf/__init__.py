# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""ppow-hf: drafters for speculative decoding, trained on the window instead of the token.

Importing the package registers the drafter families with transformers and lets
`target.generate(**inputs, assistant_model=drafter)` use them. Everything else is loaded when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_EXPORTS = {
    "drafters": [
        "AutoDrafter",
        "CausalLMDrafter",
        "CausalLMDrafterConfig",
        "DrafterConfig",
        "DrafterModel",
        "Eagle3Drafter",
        "Eagle3DrafterConfig",
        "LookupDrafter",
        "LookupDrafterConfig",
        "prepack_weights",
        "unpack_weights",
    ],
    "generation": [
        "CostModel",
        "GenerationTrace",
        "TreeConfig",
        "WindowConfig",
        "attach",
        "detach",
        "install_hook",
        "speculative_generate",
        "uninstall_hook",
    ],
    "hub": ["export_drafter", "import_drafter"],
    "targets": ["load_target"],
    "trainer": ["DrafterSFTConfig", "DrafterSFTTrainer", "PPOWConfig", "PPOWTrainer"],
}
_ORIGIN = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_ORIGIN)]


def __getattr__(name: str):
    if name in _ORIGIN:
        return getattr(importlib.import_module(f".{_ORIGIN[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ORIGIN])


def _register() -> None:
    from .drafters import register_drafters
    from .generation.hook import install_hook

    register_drafters()
    install_hook()


_register()

if TYPE_CHECKING:
    from .drafters import (
        AutoDrafter,
        CausalLMDrafter,
        CausalLMDrafterConfig,
        DrafterConfig,
        DrafterModel,
        Eagle3Drafter,
        Eagle3DrafterConfig,
        LookupDrafter,
        LookupDrafterConfig,
        prepack_weights,
        unpack_weights,
    )
    from .generation import (
        CostModel,
        GenerationTrace,
        TreeConfig,
        WindowConfig,
        attach,
        detach,
        install_hook,
        speculative_generate,
        uninstall_hook,
    )
    from .hub import export_drafter, import_drafter
    from .targets import load_target
    from .trainer import DrafterSFTConfig, DrafterSFTTrainer, PPOWConfig, PPOWTrainer
