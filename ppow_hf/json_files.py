# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Reading JSON files, with an error that names the file and what to do about it."""

import json
import os
from pathlib import Path
from typing import Any


class DamagedFileError(OSError, ValueError):
    """A file is truncated, or holds something else than it should."""


def read_json_object(path: str | os.PathLike, remedy: str) -> dict[str, Any]:
    """
    Reads a JSON object.

    Args:
        path (`str` or `os.PathLike`): The file.
        remedy (`str`): What to do about a damaged one, for the error.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: It is not JSON in UTF-8, or not an object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFileError(f"`{path}` is truncated or not JSON ({error}). {remedy}") from None
    if not isinstance(content, dict):
        raise DamagedFileError(f"`{path}` holds a {type(content).__name__}, not a JSON object. {remedy}")
    return content
