# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A script of a recipe as a module: they are not part of the package."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def loaded_script(path: Path) -> Iterator[ModuleType]:
    """The script, under its own name as long as the block lasts."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    try:
        yield module
    finally:
        del sys.modules[spec.name]
