# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Batches for trainers: padded texts, and what else a row holds."""

from typing import Any

from torch import nn

from ..data import DrafterDataCollator

# Two tokens and one that is drafted behind them.
_LEAST_COLUMNS = 3


class KeepingCollator:
    """
    Pads token ids and masks, to a few columns at least, and passes other columns through as lists.

    Args:
        collator ([`~ppow_hf.data.DrafterDataCollator`]): What pads.
        columns (`tuple[str, ...]`, *optional*): Which other columns; None for all there are.
    """

    def __init__(self, collator: DrafterDataCollator, columns: tuple[str, ...] | None):
        self.collator = collator
        self.columns = columns

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        batch = self.collator(rows)
        # A batch of rows that are all too short is skipped with a count, which takes a pass over it all the same.
        missing = max(0, _LEAST_COLUMNS - batch["input_ids"].shape[1])
        if missing:
            fills = {name: self.collator.pad_token_id if name == "input_ids" else 0 for name in batch}
            batch = {name: nn.functional.pad(batch[name], (0, missing), value=fill) for name, fill in fills.items()}
        wanted = rows[0].keys() - batch.keys() if self.columns is None else set(self.columns) & rows[0].keys()
        return {**batch, **{name: [row[name] for row in rows] for name in sorted(wanted)}}
