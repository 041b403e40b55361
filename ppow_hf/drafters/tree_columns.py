# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Columns of a tree in a cache of keys and values: which of them a node sees, and keeping those of one path.

Both sides need it. A drafter feeds a tree level by level, a target verifies it in one pass; either cache then holds
columns of branches that lead nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from .growing_cache import GrowingLayer


class DraftColumns:
    """
    The columns a tree has in its drafter's cache, behind those of the committed text. They are numbered from 0 in the
    order they were fed, level by level.
    """

    def __init__(self):
        self.levels: list[int] = []
        self._seen: list[int] = []  # bit `j` of entry `i`: column i sees column j
        self._last: list[int] = []  # columns of the level fed last

    @property
    def next_level(self) -> int:
        """Levels fed so far, which is the level of the next one, from 0."""
        return self.levels[-1] + 1 if self.levels else 0

    def add_level(self, parents: Sequence[int]) -> list[list[bool]]:
        """
        Adds one level.

        Args:
            parents (`Sequence[int]`): For every node of it, its parent's place in the level before. Ignored for the
                first level, whose nodes all hang on the committed text.

        Returns:
            `list[list[bool]]`: One row per node, with an entry per column fed so far, the new ones included: whether
            the node sees it. A node sees its ancestors and itself.
        """
        level, before = self.next_level, len(self._seen)
        for i, parent in enumerate(parents):
            inherited = self._seen[self._last[parent]] if self._last else 0
            self._seen.append(inherited | 1 << (before + i))
        self.levels += [level] * len(parents)
        total = len(self._seen)
        self._last = list(range(before, total))
        return [[bool(self._seen[column] >> j & 1) for j in range(total)] for column in self._last]


def tree_mask(rows: Sequence[Sequence[bool]], prefix: int, device: torch.device) -> torch.Tensor | None:
    """
    What the nodes of a tree see, of a cache whose first columns belong to the text.

    Args:
        rows (`Sequence[Sequence[bool]]`): Per node fed now, whether it sees each of the tree's columns.
        prefix (`int`): Columns of the text, which every node sees.
        device (`torch.device`): Of the mask.

    Returns:
        `torch.Tensor` of shape `(1, 1, nodes, prefix + columns)`, bool; `None` for a single node that sees everything.
    """
    if len(rows) == 1 and all(rows[0]):
        return None
    own = torch.tensor(rows, dtype=torch.bool, device=device)
    text = torch.ones((len(rows), prefix), dtype=torch.bool, device=device)
    return torch.cat([text, own], dim=-1)[None, None]


def as_implementation(mask: torch.Tensor | None, implementation: str, dtype: torch.dtype) -> torch.Tensor | None:
    """
    A boolean mask in the form an attention implementation takes.

    Args:
        mask (`torch.Tensor`, *optional*): `True` where a query may look.
        implementation (`str`): `"sdpa"`, which takes it as it is, or `"eager"`, which adds it to its scores.
        dtype (`torch.dtype`): Of the scores.

    Raises:
        ValueError: For any other implementation.
    """
    hidden = score_of_hidden(implementation, dtype)
    if mask is None or implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, hidden)


def score_of_hidden(implementation: str, dtype: torch.dtype) -> float:
    """
    What an attention implementation adds to the score of a column that a query may not see.

    Args:
        implementation (`str`): `"sdpa"` or `"eager"`.
        dtype (`torch.dtype`): Of the scores.

    Raises:
        ValueError: For any other implementation.
    """
    if implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"Attention implementation {implementation!r} takes no mask of ours, which draft trees need. Load the "
            'model with `attn_implementation="sdpa"` or `"eager"`, or decode without `tree`.'
        )
    return -math.inf if implementation == "sdpa" else torch.finfo(dtype).min


def check_croppable(cache: Cache) -> None:
    """
    Checks that columns can be taken out of a cache.

    Args:
        cache ([`~transformers.Cache`]): A cache that has been filled.

    Raises:
        ValueError: If one of its layers does not simply hold all keys and values, column by column.
    """
    kinds = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in (DynamicLayer, GrowingLayer)})
    if kinds or getattr(cache, "offloading", False):
        what = f"layers of type {', '.join(kinds)}" if kinds else "offloaded layers"
        raise ValueError(
            f"The cache has {what}, from which the rejected branches of a draft tree cannot be taken out. Leave out "
            "`cache_implementation` and `past_key_values`, or decode without `tree`."
        )


def keep_columns(cache: Cache, first: int, columns: Sequence[int]) -> None:
    """
    Keeps some of the last columns of a cache and removes the others. The one place that touches a cache's tensors.

    Args:
        cache ([`~transformers.Cache`]): Its layers hold all keys and values, see [`check_croppable`].
        first (`int`): Columns in front, which all stay.
        columns (`Sequence[int]`): Which of the columns behind them stay, in ascending order, counted from 0.

    Raises:
        ValueError: If there are no such columns.
    """
    last = cache.get_seq_length() - first
    ascending = all(a < b for a, b in zip(columns, columns[1:], strict=False))
    if last < 0 or not ascending or (columns and (columns[0] < 0 or columns[-1] >= last)):
        raise ValueError(f"`columns` must be ascending and within the last {last} of the cache, got {list(columns)}.")
    # Those that already stand where they belong are not touched: for the likeliest path, which comes first, all.
    stay = next((i for i, column in enumerate(columns) if column != i), len(columns))
    moved = [first + column for column in columns[stay:]]
    if moved:
        place = slice(first + stay, first + len(columns))
        index: dict[torch.device, torch.Tensor] = {}
        for layer in cache.layers:
            for states in layer.written if type(layer) is GrowingLayer else (layer.keys, layer.values):
                if states.device not in index:
                    index[states.device] = torch.tensor(moved, device=states.device)
                states[..., place, :] = states.index_select(-2, index[states.device])
    if len(columns) < last:
        cache.crop(len(columns) - last)
