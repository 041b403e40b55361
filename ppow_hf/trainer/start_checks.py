# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a trainer checks of its models, data and configuration before it begins, and warns of."""

import copy
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from transformers.utils import logging

from ..drafters import DrafterModel
from .drafter_training_config import DrafterTrainingConfig

logger = logging.get_logger(__name__)


def on_one_device(args: DrafterTrainingConfig) -> DrafterTrainingConfig:
    """Keeps a single process to a single GPU: `nn.DataParallel` would cut a batch's column masks along their steps."""
    if args.n_gpu <= 1:
        return args
    logger.warning(
        f"This process sees {args.n_gpu} GPUs and trains on the first one alone. To train on all of them, start one "
        f"process per GPU: `accelerate launch --num_processes {args.n_gpu} trainers/sft_drafter.py ...` (or "
        "`trainers/ppow.py`)."
    )
    # A copy: the caller's configuration stays as it was given.
    args = copy.copy(args)
    args._n_gpu = 1
    return args


def warn_of_what_goes_unnoticed(args: DrafterTrainingConfig) -> None:
    """Says before training where no later warning can say that it has made the drafter worse."""
    if not args.eval_decode_prompts:
        return  # turned off by name
    first = "" if args.eval_on_start else ", and `eval_on_start=True`"
    if args.eval_strategy == "no":
        logger.warning(
            '`eval_strategy` is "no": the acceptance length on `eval_dataset` is not measured while training goes on, '
            "so that nothing will tell when it falls below that of the drafter this training begins with, and the "
            'last weights are kept. Set `eval_strategy="steps"` with `eval_steps`, `load_best_model_at_end=True` to '
            f"keep the best ones{first}."
        )
    elif first:
        logger.warning(
            "`eval_on_start` is False: the acceptance length of the drafter this training begins with is not measured "
            "on `eval_dataset`, so that nothing will tell when it falls below that, and that drafter is not kept. Set "
            "`eval_on_start=True`."
        )


def check_configuration(args: Any, wanted: type[DrafterTrainingConfig], trainer: str) -> None:
    """
    Raises:
        ValueError: If `args` is another trainer's configuration, or none.
    """
    if not isinstance(args, wanted):
        raise ValueError(f"`args` of {trainer} must be a `{wanted.__name__}`, got {type(args).__name__}.")


def check_models(model: Any, target: Any) -> None:
    """
    Ties a drafter to its target.

    Raises:
        ValueError: If it is no drafter, or none for this target, or the target is no model.
    """
    if not isinstance(model, DrafterModel):
        remedy = "Build one with `from_target(target)`"
        remedy += f", or load `AutoDrafter.from_pretrained({model!r})`." if isinstance(model, str) else "."
        raise ValueError(
            f"`model` must be a drafter (`Eagle3Drafter`, `CausalLMDrafter`), got {type(model).__name__}. {remedy}"
        )
    if not isinstance(target, PreTrainedModel):
        given = repr(target) if isinstance(target, str) else type(target).__name__
        raise ValueError(
            f"`target_model` must be a loaded model of transformers, got {given}. Load it with "
            "`AutoModelForCausalLM.from_pretrained(...)`."
        )
    if next(model.parameters(), None) is None:
        raise ValueError(
            f"`model` is a `{type(model).__name__}`, which has no weights to train. Give another drafter."
        )
    model.bind_target(target)


def train_in_float32(model: DrafterModel) -> None:
    """
    Makes narrow weights float32, in place: in bfloat16 most of a step as small as a drafter's is rounded away, and
    nothing would tell. (`bf16=True` computes in bfloat16 all the same.)

    Args:
        model ([`DrafterModel`]): The drafter to train.
    """
    narrow = {p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize < 4}
    if not narrow:
        return
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in narrow))
    logger.warning(
        f"`model` has weights in {names}, in which steps of training are rounded away. They are float32 from here on, "
        "and saved as such: load a drafter to train with `dtype=torch.float32`. `trainers/finish_drafter.py` stores "
        "the trained one in bfloat16 again."
    )
    model.float()


def check_streams(dataset: Dataset | IterableDataset | None, num_processes: int) -> None:
    """
    Raises:
        ValueError: If `train_dataset` is streamed to several processes, whose batches differ in length.
    """
    if isinstance(dataset, IterableDataset) and num_processes > 1:
        raise ValueError(
            f"`train_dataset` is streamed, which cannot be combined with {num_processes} processes: the parts of a "
            "batch would have to be of one length. Give a `Dataset`, for example "
            "`Dataset.from_list(list(stream.take(100_000)))`, or train in one process."
        )


def check_rows_repeat(dataset: Dataset | IterableDataset | None, num_iterations: int) -> None:
    """
    Raises:
        ValueError: If several optimiser steps are to be taken on the same rows, and `train_dataset` is streamed.
    """
    if isinstance(dataset, IterableDataset) and num_iterations > 1:
        raise ValueError(
            f"`train_dataset` is streamed, which cannot be combined with `num_iterations` ({num_iterations}): the "
            "rows of a step come only once. Give a `Dataset`, whose rows can be repeated, or set `num_iterations=1`."
        )


def columns_of(dataset: Dataset | IterableDataset) -> list[str]:
    """The columns of a dataset. One that is streamed may not know them: then those of its first row."""
    known = dataset.column_names or list(dataset.features or ())
    return known or list(next(iter(dataset), {}))


def check_columns(dataset: Dataset | IterableDataset, name: str) -> None:
    """
    Checks that a dataset holds the target's own responses.

    Raises:
        ValueError: If it is no dataset, or a column is missing; the message names the argument, `name`.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        several = isinstance(dataset, dict)
        remedy = "Give one of them, and the others to `evaluate`." if several else "`Dataset.from_list` makes one."
        raise ValueError(
            f"`{name}` must be one `datasets.Dataset`, got {sorted(dataset) if several else type(dataset).__name__}. "
            f"{remedy}"
        )
    if isinstance(dataset, Dataset) and not len(dataset):
        raise ValueError(f"`{name}` has no rows. Give one that has, or none at all.")
    columns = columns_of(dataset)
    missing = {"input_ids", "loss_mask"} - set(columns)
    if missing:
        raise ValueError(
            f"`{name}` has no column {sorted(missing)}; it has {columns}. Make it with `ppow data`, which writes the "
            "target's own responses with token ids and loss mask."
        )
