# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a training writes down about itself, beside the drafter that came out of it: the source of its card."""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from ..data.files import TRAINING_LOG_FILE, TRAINING_PROVENANCE_FILE
from ..whole_files import write_json_whole

if TYPE_CHECKING:
    from .drafter_trainer import DrafterTrainer


class TrainingRecord:
    """
    The facts of a training that is done, in the form that [`~ppow_hf.hub.card_facts`] reads.

    Args:
        trainer ([`DrafterTrainer`]): The trainer, behind its last step.
        result (`dict[str, float]`): The figures that `train` returns.
        started_from (`dict`, *optional*): The same facts of the training that the drafter came from.
    """

    def __init__(self, trainer: "DrafterTrainer", result: dict[str, float], started_from: dict[str, Any] | None):
        state, given = trainer.state, trainer.provenance
        chain = {} if started_from is None else {"started_from": started_from}
        self.facts: dict[str, Any] = {
            **({} if given.keys() & {"started_from", "continued_from"} else chain),
            **given,
            "stage": trainer.stage,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            **_data_facts(trainer.train_dataset),
            "training": trainer.args.to_sanitized_dict(),
            "steps": state.global_step,
            "cost": trainer.training_cost.facts(),
            "initial": trainer.initial_figures(),
            "best": {"step": state.best_global_step, "metric": state.best_metric},
            "result": result,
        }
        # Of the machine's paths only the last part: the log goes to the Hub.
        best = state.best_model_checkpoint
        self.log = dataclasses.asdict(
            dataclasses.replace(state, best_model_checkpoint=None if best is None else Path(best).name)
        )

    def write(self, folder: str | Path) -> None:
        """
        Writes `training_provenance.json` and `training_log.json`.

        Args:
            folder (`str` or `Path`): The folder that the drafter was saved to.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        # The one that says that the training is done comes last.
        for name, content in ((TRAINING_LOG_FILE, self.log), (TRAINING_PROVENANCE_FILE, self.facts)):
            write_json_whole(Path(folder, name), content, allow_nan=True)


def recorded_weights(folder: str | Path) -> dict[str, str] | None:
    """
    The weights that a training's record in a folder tells of.

    Args:
        folder (`str` or `Path`): The folder.

    Returns:
        `dict[str, str]`: Checksum of every weight file; `None` if there is no record.
    """
    if not Path(folder, TRAINING_PROVENANCE_FILE).is_file():
        return None
    checksums = {}
    for path in Path(folder).glob("model*.safetensors"):
        with path.open("rb") as file:
            checksums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def remove_record(folder: str | Path) -> None:
    """Removes a training's record from a folder."""
    for name in (TRAINING_PROVENANCE_FILE, TRAINING_LOG_FILE):
        Path(folder, name).unlink(missing_ok=True)


def _data_facts(dataset: Any) -> dict[str, int]:
    """Rows and tokens of the target's own, of a dataset whose end is known."""
    if not isinstance(dataset, Dataset):
        return {}
    batches = dataset.select_columns("loss_mask").with_format("arrow").iter(batch_size=1000)
    masks = (batch["loss_mask"].combine_chunks().flatten().to_numpy(zero_copy_only=False) for batch in batches)
    return {"train_rows": len(dataset), "train_response_tokens": sum(int(mask.sum()) for mask in masks)}
