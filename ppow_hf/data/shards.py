# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Batches of responses on disk while they are being generated, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..whole_files import write_json_whole, write_text_whole
from .files import explain_disk_full

_SETTINGS_FILE = "settings.json"


def settings_hash(settings: dict) -> str:
    """A name for a set of generation settings (JSON values): equal exactly when they are."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Shard:
    """One batch: the conversations it answers and the answers.

    Args:
        turn (`int`): which answer of the conversations this is, from 0.
        batch (`int`): number of the batch within the turn.
        indices (`list[int]`): index of each conversation.
        response_ids (`list[list[int]]`): the answers' token ids, end token included where there is one.
        seconds (`float`): how long it took.
    """

    turn: int
    batch: int
    indices: list[int]
    response_ids: list[list[int]]
    seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.response_ids))


class ShardFolder:
    """The working folder of a run: its settings, and one file per finished batch, written once and never changed.

    Args:
        folder (`Path`): made if it is not there.
        settings (`dict`): everything the responses depend on (JSON values).
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder = folder
        self.settings = settings

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder: refuse one that another process writes, or that holds batches of other settings."""
        with self._explained("Nothing was generated yet"):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RuntimeError(
                f"Another process is writing responses into {self.folder}: wait for it, or give another `output_dir`."
            ) from error
        try:
            self._check_settings()
            yield
        finally:
            lock.release()

    def _settings_before(self) -> dict | None:
        path = self.folder / _SETTINGS_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _check_settings(self) -> None:
        before = self._settings_before()
        # A run that failed before its first batch was finished binds nobody.
        if before is None or (before != self.settings and not any(self.folder.glob("turn*.json"))):
            with self._explained("Nothing was generated yet"):
                path = self.folder / _SETTINGS_FILE
                write_json_whole(path, self.settings, sort_keys=True)
            return
        changed = sorted(
            key for key in before.keys() | self.settings.keys() if before.get(key) != self.settings.get(key)
        )
        if changed:
            differences = "; ".join(
                f"`{key}` was {before.get(key)!r}, now {self.settings.get(key)!r}" for key in changed
            )
            raise ValueError(
                f"{self.folder} holds an unfinished run with other settings: {differences}. Run it again with the "
                "settings it was started with, give another `output_dir`, or delete that folder to start over."
            )

    def _path(self, turn: int, batch: int) -> Path:
        return self.folder / f"turn{turn:02d}-batch{batch:06d}.json"

    def read(self, turn: int, batch: int, indices: list[int]) -> Shard | None:
        """A finished batch, or `None` when it has to be generated (again)."""
        try:
            shard = Shard(**json.loads(self._path(turn, batch).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return shard if shard.indices == indices and len(shard.response_ids) == len(indices) else None

    def write(self, shard: Shard) -> None:
        """Keep a finished batch. On a full disk nothing of it is left and the earlier ones stay."""
        kept = sum(1 for _ in self.folder.glob("turn*.json"))
        with self._explained(f"The {kept} batches finished before are safe in {self.folder}"):
            write_text_whole(self._path(shard.turn, shard.batch), json.dumps(asdict(shard)))

    def remove(self) -> None:
        """Delete the folder, its settings last: half deleted, it is still known for this run's."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _SETTINGS_FILE:
                path.unlink()
        shutil.rmtree(self.folder)

    def remove_leftovers(self) -> None:
        """Delete what was left by a run of these settings that was killed when its dataset was whole. The folder of a
        run with other settings, or of one that is under way, stays."""
        if not self.folder.is_dir():
            return
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                ours = self._settings_before() in (None, self.settings)
        except Timeout:
            return
        if ours:
            self.remove()

    def _explained(self, safe: str):
        remedy = f"{safe}: free some space and run the same command again, it goes on from there."
        return explain_disk_full(self.folder, remedy)
