# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Whether texts fit the models: ids within the vocabulary, lengths within the positions, a mask entry per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, Trainer

# Rows whose token ids are looked at in one go.
_ROWS = 10_000


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


@dataclass
class TextExtremes:
    """
    Args:
        lowest, highest (`int`): Least and greatest token id of some texts; 0 and -1 without any token.
        longest (`int`): Tokens of the longest of them.
    """

    lowest: int = 0
    highest: int = -1
    longest: int = 0


def text_extremes(dataset: Dataset) -> TextExtremes:
    """
    The extremes of a dataset's `input_ids`, from its arrow table: no row becomes a Python object.

    Args:
        dataset ([`~datasets.Dataset`]): Rows with `input_ids`.

    Raises:
        ValueError: If `input_ids` does not hold lists of whole numbers.
    """
    found = TextExtremes()
    for table in dataset.select_columns("input_ids").with_format("arrow").iter(batch_size=_ROWS):
        for rows in table["input_ids"].chunks:
            kind = rows.type
            is_list = _is_list(kind)
            if is_list and pa.types.is_null(kind.value_type):
                continue  # not a token in any of these rows
            if not is_list or not pa.types.is_integer(kind.value_type):
                raise ValueError(
                    f"`input_ids` must be lists of token ids, got {kind}. Make the dataset with `ppow data`, which "
                    "writes the target's own responses with token ids and loss mask."
                )
            ids = pc.list_flatten(rows)
            if len(ids):
                lowest = pc.min(ids).as_py()
                found.lowest = min(found.lowest, lowest) if found.longest else lowest
                found.highest = max(found.highest, pc.max(ids).as_py())
                found.longest = max(found.longest, pc.max(pc.list_value_length(rows)).as_py())
    return found


def check_masks(dataset: Dataset, name: str) -> None:
    """
    Checks that every row has a `loss_mask` of one entry for each of its `input_ids`.

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        name (`str`): The argument that they come from.

    Raises:
        ValueError: Naming the first row that has not, or has none of the two, or if `loss_mask` holds no lists.
    """
    begin = 0
    for table in dataset.select_columns(["input_ids", "loss_mask"]).with_format("arrow").iter(batch_size=_ROWS):
        columns = [table[column].combine_chunks() for column in ("input_ids", "loss_mask")]
        if not _is_list(columns[1].type):
            raise ValueError(f"`loss_mask` of `{name}` must be lists of 0 and 1, got {columns[1].type}.")
        for column, values in zip(("input_ids", "loss_mask"), columns, strict=True):
            if values.null_count:
                row = begin + values.is_null().to_numpy(zero_copy_only=False).nonzero()[0][0]
                raise ValueError(
                    f"Row {row} of `{name}` has no `{column}` (None): give a list of one entry for each token, or "
                    "leave the row out."
                )
        lengths = [pc.list_value_length(column).to_numpy() for column in columns]
        differ = (lengths[0] != lengths[1]).nonzero()[0]
        if len(differ):
            row = int(differ[0])
            raise _uneven(f"Row {begin + row} of `{name}`", int(lengths[0][row]), int(lengths[1][row]))
        entries = pc.unique(pc.list_flatten(columns[1])).to_pylist()
        if other := [entry for entry in entries if entry not in (0, 1)]:
            raise ValueError(
                f"`loss_mask` of `{name}` holds {other[0]!r}. Give 1 on the target's own tokens and 0 on others; it "
                "is no list of labels, where -100 stands for what is left out."
            )
        begin += len(table)


def check_learnable(dataset: Dataset, max_length: int) -> None:
    """
    Checks that there is something to learn from: a training without it would end as if it had been one.

    Args:
        dataset ([`~datasets.Dataset`]): The `train_dataset`, which has passed [`check_masks`].
        max_length (`int`): Tokens that rows are cut to.

    Raises:
        ValueError: If no row has a token of the target's own within `max_length`.
    """
    for table in dataset.select_columns("loss_mask").with_format("arrow").iter(batch_size=_ROWS):
        for rows in table["loss_mask"].chunks:
            own = pc.list_flatten(pc.list_slice(rows, 0, max_length))
            if len(own) and pc.any(pc.cast(own, pa.bool_())).as_py():
                return
    raise ValueError(
        f"`train_dataset` has {len(dataset)} rows, and none has a token of the target's own (1 in `loss_mask`) among "
        f"its first `max_length`={max_length}: there is nothing to learn. Give responses of the target, as "
        "`ppow data` writes them, or a larger `max_length`."
    )


def _uneven(row: str, tokens: int, entries: int) -> ValueError:
    return ValueError(
        f"{row} has {tokens} `input_ids` and a `loss_mask` of {entries} entries. Give one entry for each token, 1 on "
        "the target's own and 0 on others, as `ppow data` does."
    )


@dataclass
class TextLimits:
    """
    What texts must keep to.

    Args:
        name (`str`): The argument that the texts come from.
        vocab_size (`int`): Tokens that the target knows.
        max_length (`int`): Tokens that rows are cut to.
        positions (`dict[str, int]`, *optional*): Positions by model, `"target"` or `"drafter"`.
    """

    name: str
    vocab_size: int
    max_length: int
    positions: dict[str, int] = field(default_factory=dict)

    def check(self, found: TextExtremes) -> None:
        """
        Args:
            found ([`TextExtremes`]): Of the texts.

        Raises:
            ValueError: If a token id has no embedding in the target, or a row, cut to `max_length`, is longer than the
                positions of a model: an index error deep inside of it, or text it was never made for, would not say
                so.
        """
        if found.lowest < 0 or found.highest >= self.vocab_size:
            raise ValueError(
                f"`{self.name}` holds token {found.lowest if found.lowest < 0 else found.highest}, but the target's "
                f"vocabulary has {self.vocab_size} tokens, 0 to {self.vocab_size - 1}: these texts come from another "
                "target or tokenizer. Make them with `ppow data` for this one."
            )
        kept = min(found.longest, self.max_length)
        for model, count in self.positions.items():
            if kept > count:
                raise ValueError(
                    f"`{self.name}` has rows of {found.longest} tokens, cut to `max_length`={self.max_length}, but "
                    f"the {model} has {count} positions (`max_position_embeddings`). Set `max_length` to at most "
                    f"{count}; or raise `config.max_position_embeddings` of a model whose positions are rotary, if it "
                    "is known to reach further."
                )


class CheckedBatches:
    """
    A data collator that checks its batches: of a dataset that is streamed nothing can be said before.

    Args:
        collator (`Callable`): Makes the batches.
        limits ([`TextLimits`]): What they must keep to.
    """

    def __init__(self, collator: Callable[[list[dict]], dict[str, Any]], limits: TextLimits):
        self.collator, self.limits = collator, limits

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        for row in rows:
            if len(row["input_ids"]) != len(row["loss_mask"]):
                raise _uneven(f"A row of `{self.limits.name}`", len(row["input_ids"]), len(row["loss_mask"]))
        batch = self.collator(rows)
        ids = batch["input_ids"]
        if ids.numel():
            self.limits.check(TextExtremes(int(ids.min()), int(ids.max()), ids.shape[1]))
        return batch


def check_texts(
    trainer: Trainer,
    target: PreTrainedModel,
    positions: dict[str, int] | None = None,
    held_out_positions: dict[str, int] | None = None,
) -> None:
    """
    Checks the datasets of a trainer, and has those that are streamed checked batch by batch.

    Args:
        trainer ([`~transformers.Trainer`]): The trainer.
        target ([`~transformers.PreTrainedModel`]): The target.
        positions (`dict[str, int]`, *optional*): Positions by model, which training rows must keep to.
        held_out_positions (`dict[str, int]`, *optional*): The same for held-out rows, where there is a loss on them.
            Their prompts are decoded as far as positions go.

    Raises:
        ValueError: As [`TextLimits.check`] and [`check_masks`].
    """
    vocab_size, max_length = target.config.get_text_config().vocab_size, trainer.args.max_length
    for name, dataset in (("train_dataset", trainer.train_dataset), ("eval_dataset", trainer.eval_dataset)):
        kept = positions if name == "train_dataset" else held_out_positions
        limits = TextLimits(name, vocab_size, max_length, kept or {})
        if isinstance(dataset, IterableDataset):
            trainer.data_collator = CheckedBatches(trainer.data_collator, limits)
        elif dataset is not None:
            limits.check(text_extremes(dataset))
            check_masks(dataset, name)
