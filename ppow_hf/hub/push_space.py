# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A Space's folder together with what it needs to run: the library, and drafters."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from .push import push_folder, resolve_token
from .push_files import WEIGHT_FILES, check_no_secrets, check_space_files, link_or_copy, select_files
from .push_session import PushResult

PACKAGE = Path(__file__).resolve().parents[1]
# Where a Space looks for drafters, and what it needs of one: no remote code, benchmarks or training logs.
DRAFTERS = "drafters"
DRAFTER_FILES = (
    "config.json",
    "generation_config.json",
    "cost_model.json",
    "provenance.json",
    "README.md",
    "LICENSE",
    "NOTICE",
)
_IMPORTS = re.compile(r"^\s*(?:from|import)\s+ppow_hf\b", flags=re.M)
_REQUIRES = re.compile(r"^\s*ppow[-_.]hf\b", flags=re.M | re.I)


def push_space(folder: str | os.PathLike, repo_id: str, **kwargs: Any) -> PushResult:
    """
    Pushes a Space, complete with what `complete_space` adds. The folder itself stays as it is.

    Args:
        folder (`str` or `os.PathLike`): The Space: README.md with an `sdk`, the app, its requirements.
        repo_id (`str`): `"namespace/name"`, or `"name"` in your own namespace.
        kwargs: Arguments of `push_folder` other than `space`.

    Returns:
        `PushResult`: What was sent.

    Raises:
        ValueError: If the folder or an argument is unusable.
        HubPushError: If the Hub refuses or cannot be reached.
    """
    selected = select_files(folder, space=True)
    check_space_files(folder, selected.files)
    check_no_secrets(selected.files, resolve_token(kwargs.get("token")))
    with tempfile.TemporaryDirectory(prefix="ppow_space_") as name:
        complete_space(folder, name)
        result = push_folder(name, repo_id, space=True, **kwargs)
    result.left_out = selected.left_out
    return result


def complete_space(folder: str | os.PathLike, output: str | os.PathLike) -> list[str]:
    """
    Copies what is sent of a Space, and adds what its app imports and loads.

    The library is on no package index, so a Space whose code imports `ppow_hf`, and whose requirements.txt does not
    name it, gets the package beside its app. It also gets, in `drafters/`, the drafters it finds here: those of
    `model_cards/` in the checkout it lies in. What the Space's folder holds itself is never replaced.

    Args:
        folder (`str` or `os.PathLike`): The Space. Never changed.
        output (`str` or `os.PathLike`): An empty folder.

    Returns:
        `list[str]`: What was added, such as `["ppow_hf/", "drafters/name/"]`.
    """
    folder, output = Path(folder), Path(output)
    files = select_files(folder, space=True).files
    for path, local in files.items():
        link_or_copy(local, output / path)
    if not _needs_library(files):
        return []
    added = []
    if not (output / PACKAGE.name).exists():
        for path, local in select_files(PACKAGE, space=True).files.items():
            link_or_copy(local, output / PACKAGE.name / path)
        added.append(f"{PACKAGE.name}/")
    if not (output / DRAFTERS).exists():
        for drafter in _drafters_of_checkout(folder):
            for path, local in select_files(drafter).files.items():
                if path in DRAFTER_FILES or any(Path(path).match(pattern) for pattern in WEIGHT_FILES):
                    link_or_copy(local, output / DRAFTERS / drafter.name / path)
            added.append(f"{DRAFTERS}/{drafter.name}/")
    return added


def _needs_library(files: dict[str, Path]) -> bool:
    requirements = files.get("requirements.txt")
    if requirements is not None and _REQUIRES.search(requirements.read_text(encoding="utf-8")):
        return False
    code = (local for path, local in files.items() if path.endswith(".py") and not path.startswith(PACKAGE.name))
    return any(_IMPORTS.search(local.read_text(encoding="utf-8")) for local in code)


def _drafters_of_checkout(folder: Path) -> list[Path]:
    """Drafters in `model_cards/` of the checkout that a Space in `spaces/` lies in."""
    parent = folder.resolve().parent
    cards = parent.parent / "model_cards"
    if parent.name != "spaces" or not cards.is_dir():
        return []
    return [
        path
        for path in sorted(cards.iterdir())
        if (path / "config.json").is_file() and any(path.glob(WEIGHT_FILES[0]))
    ]
