# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The log of finished prompts, from which an interrupted benchmark goes on."""

import json
import os
from pathlib import Path
from typing import Any


class ResumeError(ValueError):
    """The output folder belongs to a benchmark with other arguments, or its records cannot be read."""


def _shorter(number: str) -> float:
    # Nothing is measured to more than seven digits, and logs are kept beside the results.
    return float(f"{float(number):.7g}")


class RecordLog:
    """
    Append-only JSON lines. The first line holds the arguments of the run; every further line is one finished prompt.

    A line is handed to the system in one write and synced to disk before the next prompt starts, so that a kill loses
    at most the prompt in progress; a line that was cut off by it is dropped on reopening.

    Args:
        path (`str` or `os.PathLike`): The file; created when missing.
        arguments (`dict`): What must be equal for records to be comparable (JSON values only).
        read_only (`bool`, *optional*, defaults to `False`):
            Only look: the file may be another process's, which is in the middle of a line.

    Raises:
        ResumeError: the file was written with other arguments, or a line in its middle is broken.
    """

    def __init__(self, path: str | os.PathLike, arguments: dict[str, Any], read_only: bool = False):
        self.path = Path(path)
        self.records: list[dict[str, Any]] = []
        arguments = json.loads(json.dumps(arguments))  # tuples become lists, as they will be when read back
        lines = self._complete_lines(repair=not read_only)
        if lines:
            header, *self.records = lines
            self._check(header, arguments)
        elif not read_only:
            self._write({"kind": "arguments", "arguments": arguments})

    def append(self, record: dict[str, Any]) -> None:
        record = json.loads(json.dumps(record), parse_float=_shorter)
        self._write(record)
        self.records.append(record)

    def _write(self, record: dict[str, Any]) -> None:
        line = (json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n").encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            start = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < len(line):
                    written += os.write(descriptor, line[written:])
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, start)  # disk full: leave no half line behind
                raise
        finally:
            os.close(descriptor)

    def _complete_lines(self, repair: bool) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if repair and len(complete) < len(content):
            os.truncate(self.path, len(complete))
        lines = []
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise ResumeError(
                    f"{self.path}, line {number}: not a record of a benchmark ({error}). Choose another "
                    "`output_dir`, or delete this file to start again."
                ) from error
        return lines

    def _check(self, header: dict[str, Any], arguments: dict[str, Any]) -> None:
        before = header.get("arguments") if isinstance(header, dict) and header.get("kind") == "arguments" else None
        if before is None:
            raise ResumeError(
                f"{self.path}: the first line does not hold the arguments of a benchmark. Choose another "
                "`output_dir`, or delete this file to start again."
            )
        different = [
            f"{name}: {before.get(name)!r} then, {arguments.get(name)!r} now"
            for name in sorted(before.keys() | arguments.keys())
            if before.get(name) != arguments.get(name)
        ]
        if different:
            raise ResumeError(
                f"{self.path} was written by a benchmark with other arguments ({'; '.join(different)}). Repeat those "
                "to continue it, choose another `output_dir`, or delete this file to start again."
            )
