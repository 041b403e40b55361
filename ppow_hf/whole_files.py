# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Files that are there whole or not at all: written under another name, then renamed."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """
    A file that appears, or takes the place of the old one, when the block ends, and does neither if it fails.

    Args:
        path (`str` or `os.PathLike`): Where to; its folder is made if there is none.

    Yields:
        `Path`: What to write instead: a name of its own beside it, with the same ending.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text_whole(path: str | os.PathLike, text: str) -> None:
    """
    Writes a text file, in UTF-8 and with the line ends it has: readers see all of it or none, and so does whoever
    looks after the machine has lost its power.

    Args:
        path (`str` or `os.PathLike`): Where to; its folder is made if there is none.
        text (`str`): The content.

    Raises:
        OSError: It could not be written; an old file is then as it was.
    """
    with written_whole(path) as temporary, temporary.open("x", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json_whole(
    path: str | os.PathLike, content: Any, *, sort_keys: bool = False, allow_nan: bool = False
) -> None:
    """
    Writes a JSON file as [`write_text_whole`] does, indented.

    Args:
        path (`str` or `os.PathLike`): Where to; its folder is made if there is none.
        content: What can be written as JSON.
        sort_keys (`bool`, *optional*, defaults to `False`): Whether to sort the keys.
        allow_nan (`bool`, *optional*, defaults to `False`):
            Whether to write NaN and infinite numbers, which Python reads and JSON does not know. Logs of a training
            hold them where it went wrong.

    Raises:
        OSError: It could not be written; an old file is then as it was.
        TypeError, ValueError: `content` is not JSON.
    """
    text = json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False, allow_nan=allow_nan)
    write_text_whole(path, text + "\n")
