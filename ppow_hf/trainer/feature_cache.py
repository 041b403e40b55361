# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The target's hidden states on disk, so that only the first epoch runs its layers."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..data.files import explain_disk_full
from ..data.fingerprint import weights_fingerprint
from ..whole_files import write_json_whole


class FeatureCache:
    """
    Hidden states of a whole dataset in one memory-mapped file, in the target's dtype.

    The file has its full size from the start: the space of a mapped file that runs out of disk later ends the process
    without a word.

    Args:
        folder (`str` or `os.PathLike`): Where to keep it. Caches of other targets (by their weights), layers, data or
            `max_length` get other names.
        lengths (`list[int]`): Tokens of every dataset row.
        target ([`~transformers.PreTrainedModel`]): Whose hidden states.
        layer_ids (`tuple[int, ...]`): Which layers.
        fingerprint (`str`): Identifies the dataset.
        max_length (`int`, *optional*): Where longer rows are cut.

    Raises:
        OSError: If the disk has no room for it.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        lengths: list[int],
        target: PreTrainedModel,
        layer_ids: tuple[int, ...],
        fingerprint: str,
        max_length: int | None = None,
    ):
        width = target.config.get_text_config().hidden_size
        self.feature_width = width * len(layer_ids)
        self.width = self.feature_width + width
        self.dtype = target.dtype
        self.offsets = [0]
        for length in lengths:
            kept = length if max_length is None else min(length, max_length)
            self.offsets.append(self.offsets[-1] + kept)
        key = {
            "target": target.config._name_or_path,
            "weights": weights_fingerprint(target),
            "dtype": str(target.dtype),
            "layers": list(layer_ids),
            "dataset": fingerprint,
            "max_length": max_length,
            "tokens": self.offsets[-1],
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.path = Path(folder) / name
        size = self.offsets[-1] * self.width * self.dtype.itemsize
        remedy = (
            f"`feature_cache_dir` takes {size / 1e9:.1f} GB for these rows: free some space, name another folder, "
            "give fewer rows or a smaller `max_length`, or train without it. Nothing was trained yet."
        )
        with explain_disk_full(self.path, remedy):
            self.path.mkdir(parents=True, exist_ok=True)
            write_json_whole(self.path / "key.json", key)
            _reserve(self.path / "states.bin", size)
            _reserve(self.path / "filled.bin", len(lengths))
        # `from_file` maps the file, so that what is written survives a kill; a row counts once its flag is set.
        self.states = torch.from_file(
            str(self.path / "states.bin"), shared=True, size=self.offsets[-1] * self.width, dtype=self.dtype
        ).view(-1, self.width)
        self.filled = torch.from_file(str(self.path / "filled.bin"), shared=True, size=len(lengths), dtype=torch.uint8)

    def read(self, row_ids: list[int], input_ids: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        """Features and final states of a batch, zero on padding, or `None` unless every row is there."""
        row_ids = [int(row) for row in row_ids]  # formatted datasets give tensors
        if not bool(self.filled[row_ids].all()):
            return None
        batch = torch.zeros(*input_ids.shape, self.width, dtype=self.dtype)
        for i, row in enumerate(row_ids):
            start, end = self.offsets[row], min(self.offsets[row + 1], self.offsets[row] + input_ids.shape[1])
            batch[i, : end - start] = self.states[start:end]
        batch = batch.to(input_ids.device)
        features = batch[..., : self.feature_width] if self.feature_width else None
        return features, batch[..., self.feature_width :]

    def write(
        self, row_ids: list[int], attention_mask: torch.Tensor, features: torch.Tensor | None, last: torch.Tensor
    ) -> None:
        """Keeps the states of a batch. Rows cut shorter than `max_length` are not kept."""
        row_ids = [int(row) for row in row_ids]
        parts = [last] if features is None else [features, last]
        joined = torch.cat(parts, dim=-1).to("cpu", self.dtype)
        for i, row in enumerate(row_ids):
            length = int(attention_mask[i].sum())
            if length == self.offsets[row + 1] - self.offsets[row]:
                self.states[self.offsets[row] : self.offsets[row + 1]] = joined[i, :length]
                self.filled[row] = 1


def _reserve(path: Path, size: int) -> None:
    """Gives a file its full size, every block of it on disk. What it holds already stays."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except (AttributeError, OSError) as error:  # not everywhere: macOS, some network file systems
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                if shutil.disk_usage(path.parent).free < size - before:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    except OSError:
        if not before:
            path.unlink(missing_ok=True)
        raise
