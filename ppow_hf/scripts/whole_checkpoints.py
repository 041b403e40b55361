# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Which checkpoint a training goes on from: the last one that was written to its end."""

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME, logging

logger = logging.get_logger(__name__)


def checkpoint_to_resume(training_args: TrainingArguments) -> str | None:
    """
    The checkpoint that a training goes on from.

    Args:
        training_args ([`~transformers.TrainingArguments`]): Its configuration.

    Returns:
        `str`, *optional*: `resume_from_checkpoint`, or the last whole one in `output_dir` (also for `true`); `None` to
        begin, with `false` whatever is there.

    Raises:
        ValueError: If `resume_from_checkpoint` is not whole.
    """
    asked = training_args.resume_from_checkpoint
    # YAML and the command line can say so, too, as `Trainer.train` takes it.
    if asked in (None, True) or str(asked).lower() == "true":
        return last_whole_checkpoint(training_args.output_dir)
    if asked is False or str(asked).lower() == "false":
        return None
    if flaw := _flaw(Path(asked)):
        raise ValueError(
            f"`resume_from_checkpoint` is {asked!r}, which is not a whole checkpoint: {flaw}. Name another one, or "
            "leave it out: the newest whole one in `output_dir` is resumed then."
        )
    return asked


def is_at_the_end(checkpoint: str | os.PathLike, training_args: TrainingArguments) -> bool:
    """
    Whether a training has nothing left to do: `Trainer` would take another step all the same.

    Args:
        checkpoint (`str` or `os.PathLike`): A whole checkpoint.
        training_args ([`~transformers.TrainingArguments`]): What is asked for, in steps, epochs or `max_seconds`.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    budget = state.stateful_callbacks.get("TimeBudget")
    seconds = getattr(training_args, "max_seconds", None)
    if seconds and isinstance(budget, dict) and budget["attributes"]["spent"] >= seconds:
        return True
    if training_args.max_steps > 0:
        return state.global_step >= training_args.max_steps
    return state.epoch is not None and state.epoch >= training_args.num_train_epochs


def last_whole_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The newest checkpoint of a run that was written to its end. A run killed while it saves leaves one that was not:
    `Trainer` writes weights first and its own state last.

    Args:
        output_dir (`str` or `os.PathLike`): The run's folder; it need not exist.

    Returns:
        `str`, *optional*: Its folder, or `None` where there is none. Broken ones are named in a warning.
    """
    numbered = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if folder.is_dir() and number.isdecimal():
            numbered[int(number)] = folder
    for _, folder in sorted(numbered.items(), reverse=True):
        if (flaw := _flaw(folder)) is None:
            return str(folder)
        logger.warning(f"`{folder}` is not whole ({flaw}) and is passed over: the run was ended while it saved.")
    return None


def _flaw(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words."""
    state = checkpoint / TRAINER_STATE_NAME
    if not state.is_file():
        return f"{TRAINER_STATE_NAME} is missing"
    try:
        TrainerState.load_from_json(str(state))
    except (ValueError, TypeError) as error:
        return f"{TRAINER_STATE_NAME} cannot be read: {error}"
    weights = checkpoint / SAFE_WEIGHTS_NAME
    try:
        # Sharded trainings write other files, which their own loaders check.
        if weights.is_file():
            safe_open(weights, framework="pt")
    except SafetensorError as error:
        return f"{SAFE_WEIGHTS_NAME} cannot be read: {error}"
    return None
