# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Reading JSONL with errors that name the line, and writing files and datasets so that they are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset

from ..whole_files import write_json_whole

PROVENANCE_FILE = "provenance.json"
# What a training writes beside the drafter that came out of it.
TRAINING_PROVENANCE_FILE, TRAINING_LOG_FILE = "training_provenance.json", "training_log.json"


def read_jsonl(path: str | os.PathLike, argument: str) -> Iterator[tuple[int, dict]]:
    """Read the rows of a JSONL file.

    Args:
        path (`str` or `os.PathLike`): the file; one JSON object a line, empty lines are skipped.
        argument (`str`): the name of the caller's argument, for the error messages.

    Yields:
        `tuple[int, dict]`: line number (from 1) and row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or a line is not a JSON object or not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`{argument}` is {str(path)!r}: there is no such file.")
    number, empty = 0, True
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            empty = False
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
                raise ValueError(
                    f"`{argument}` {path}, line {number}: not valid JSON ({error}). Every line must be one JSON "
                    "object in UTF-8: correct or delete the line."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"`{argument}` {path}, line {number}: a {type(row).__name__} where a JSON object such as "
                    '{"prompt": "..."} is expected: correct or delete the line.'
                )
            yield number, row
    if empty:
        raise ValueError(f"`{argument}` {path} is empty: give a file with one JSON object a line.")


@contextmanager
def explain_disk_full(path: Path, remedy: str) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into an error that says what is safe and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(error.errno, f"The disk is full: {path} could not be written. {remedy}") from error


def save_dataset_whole(
    dataset: Dataset, output_dir: str | os.PathLike, provenance: dict, workspace: Path | None = None
) -> None:
    """Save a dataset and its `provenance.json` in a folder that appears at once and whole.

    Args:
        dataset ([`~datasets.Dataset`]): what to save, with `save_to_disk`.
        output_dir (`str` or `os.PathLike`): the folder to make; it must not exist, or be empty.
        provenance (`dict`): where the data came from; JSON values only.
        workspace (`Path`, *optional*):
            an existing folder on the same disk to build it in, for one process at a time. Whatever a killed process
            leaves is then removed with that folder, instead of staying beside `output_dir`.

    Raises:
        FileExistsError: `output_dir` holds something already.
        OSError: the disk is full; nothing is left behind.
    """
    output_dir = Path(output_dir)
    check_output_dir(output_dir)
    with explain_disk_full(output_dir, "Nothing was left behind: free some space and run the same command again."):
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        if workspace is None:
            temporary = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
        else:
            temporary = workspace / "dataset"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        try:
            temporary.chmod(0o755)
            dataset.save_to_disk(temporary)
            write_json_whole(temporary / PROVENANCE_FILE, provenance)
            os.replace(temporary, output_dir)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_output_dir(output_dir: Path) -> None:
    """Refuse an output folder that would have to be overwritten."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(
            f"`output_dir` is {str(output_dir)!r}, which exists and is not empty: give another folder or delete it."
        )
