# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a drafter remembers while it drafts, and what its training pass returns."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache
from transformers.utils import ModelOutput

from .growing_cache import GrowingCache
from .tree_columns import DraftColumns


@dataclass
class DrafterOutput(ModelOutput):
    """
    Output of a drafter's training forward pass.

    Args:
        logits (`tuple[torch.Tensor]`):
            Draft logits of every training-time-test step, each `(batch, length, draft_vocab_size)`, or
            `(num_columns, draft_vocab_size)` where a column mask selected some columns.
        hidden_states (`tuple[torch.Tensor]`, *optional*):
            The drafter's own state at every step, each `(batch, length, hidden_size)`.
        scores (`tuple`, *optional*):
            What the forward pass's `score` made of every step, in place of logits.
    """

    logits: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    scores: tuple[tuple[torch.Tensor, ...], ...] | None = None


@dataclass
class DrafterState:
    """
    What a drafter remembers of the text it drafts for.

    Args:
        cache (`Cache`): Keys and values of all columns, committed ones first.
        committed (`int`): Number of columns that belong to the committed text.
        drafted (`int`): Number of columns of the current window behind them.
        hidden (`torch.Tensor`, *optional*): State fed to the next draft step, `(batch, 1, hidden_size)`; in a tree,
            those of the level fed last, `(batch, nodes, hidden_size)`.
        tree ([`DraftColumns`], *optional*): What the window's columns are to each other, if they form a tree.
        short_way (*optional*): What a family passes columns through in place of its modules, or `False` if it calls
            them as they are; `None` before the first column.
    """

    batch_size: int = 1
    cache: Cache = field(default_factory=GrowingCache)
    committed: int = 0
    drafted: int = 0
    hidden: torch.Tensor | None = None
    tree: DraftColumns | None = None
    short_way: Any = field(default=None, repr=False)

    def drop_draft(self, keep: int = 0) -> None:
        """Removes the columns of the current window but the first `keep`, which become committed."""
        if self.drafted > keep:
            self.cache.crop(keep - self.drafted)
        self.committed += min(keep, self.drafted)
        self.drafted = 0
        self.tree = None

    def grow_level(self, parents: Sequence[int]) -> list[list[bool]]:
        """Counts one more level of a tree among the columns; what its nodes see, see [`DraftColumns.add_level`]."""
        if self.tree is None:
            self.tree = DraftColumns()
        self.drafted += len(parents)
        return self.tree.add_level(parents)
