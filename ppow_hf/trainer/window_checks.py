# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Whether there is room for windows: in the positions of both models, and in the texts."""

from __future__ import annotations

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, Trainer

from ..drafters import DrafterModel
from ..rl import eligible_starts
from .positions import positions_of
from .ppow_config import PPOWConfig
from .text_checks import check_texts
from .window_experience import window_mask_of

# Rows of a stream that are looked at for one with room for a window: it may have no end.
_STREAMED = 10_000
# What is committed before a window at least: a prompt's token and the first generated one.
_COMMITTED = 2


def check_windows(trainer: Trainer, target: PreTrainedModel, drafter: DrafterModel) -> None:
    """
    Refuses windows, and texts, that the models or the training rows have no room for.

    Args:
        trainer ([`~transformers.Trainer`]): The trainer; its `args` are a [`PPOWConfig`].
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.

    Raises:
        ValueError: Naming the argument.
    """
    args = trainer.args
    counts = {"target": positions_of(target), "drafter": positions_of(drafter)}
    positions = {model: count for model, count in counts.items() if count is not None}
    for model, count in positions.items():
        if args.window_size + _COMMITTED > count:
            raise ValueError(
                f"`window_size` is {args.window_size}, but the {model} has {count} positions "
                f"(`max_position_embeddings`), {_COMMITTED} of which come before a window. Use a window of at most "
                f"{max(count - _COMMITTED, 0)} tokens."
            )
    check_texts(trainer, target, positions)
    if trainer.train_dataset is not None:
        _check_some_eligible(trainer.train_dataset, args)


def _check_some_eligible(dataset: Dataset | IterableDataset, args: PPOWConfig) -> None:
    """Refuses a dataset in which no row has room for a window, or none of the first ones of a stream."""
    rows, among = dataset.select_columns("loss_mask"), "No row"
    if isinstance(dataset, IterableDataset):
        rows, among = rows.take(_STREAMED), f"None of the first {_STREAMED:,} rows"
    for row in rows:
        mask = torch.tensor(row["loss_mask"][: args.max_length], dtype=torch.bool)[None]
        if mask.shape[1] and eligible_starts(window_mask_of(mask), args.window_size).any():
            return
    raise ValueError(
        f"{among} of `train_dataset` has room for a window of `window_size`={args.window_size} tokens behind a token "
        "of the target's own. Use a shorter window, a larger `max_length`, or longer responses."
    )
