# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Data flows one way: what a part of the library may import while it is imported itself."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ppow_hf"
# Modules beside these folders (targets, end_tokens) belong to no layer, and imports inside of functions are lazy.
MAY_IMPORT = {
    "data": set(),
    "drafters": set(),
    "generation": {"drafters"},
    "rl": {"drafters", "generation"},
    "trainer": {"data", "drafters", "generation", "rl"},
    "evaluation": {"drafters", "generation", "rl"},
    "hub": {"data", "drafters", "generation", "evaluation", "scripts"},
}


def imported_layers(path: Path) -> set[str]:
    """The other folders of the package that a file imports at once."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names = (node.module or "").split(".")
            if node.level == 2:
                found |= {names[0]} if names[0] else {alias.name for alias in node.names}
            elif names[0] == "ppow_hf":
                found.add(names[1] if len(names) > 1 else "ppow_hf")
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ppow_hf.")}
    return found


def test_every_folder_has_its_place():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == MAY_IMPORT.keys() | {"scripts"}


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_nothing_reaches_back(layer):
    files = sorted((PACKAGE / layer).rglob("*.py"))
    assert files
    for path in files:
        wrong = imported_layers(path) & (MAY_IMPORT.keys() | {"scripts", "cli", "quickstart", "console"})
        assert wrong <= MAY_IMPORT[layer] | {layer}, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


def test_imports_are_seen(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "from ..rl import x\nfrom .. import hub\nimport ppow_hf.trainer.y\nfrom ppow_hf.data import z\n"
        "from .own import y\ndef f():\n    from ..generation import w\n"
    )
    assert imported_layers(file) == {"rl", "hub", "trainer", "data"}
