# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the training scripts of all stages share: reading responses, resuming, and recording what was done."""

import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ppow_hf.data import load_responses
from ppow_hf.trainer import DrafterTrainer

PROVENANCE_FILE, LOG_FILE = "training_provenance.json", "training_log.json"


def load_all_responses(paths: list[str]) -> tuple[Dataset, list[dict | None]]:
    """The responses of several folders as one dataset, and the provenance of each."""
    parts, provenance = [], []
    for path in paths:
        parts.append(load_responses(path).select_columns(["prompt", "input_ids", "loss_mask"]))
        file = Path(path) / "provenance.json"
        provenance.append(json.loads(file.read_text()) if file.exists() else None)
    return (parts[0] if len(parts) == 1 else concatenate_datasets(parts)), provenance


def read_provenance(drafter: str) -> dict | None:
    """What is recorded about the training of a drafter in a local folder: a finished one, or a training run's."""
    for name in ("provenance.json", PROVENANCE_FILE):
        file = Path(drafter) / name
        if file.exists():
            return json.loads(file.read_text())
    return None


def run_training(trainer: DrafterTrainer, training_args: TrainingArguments, facts: dict[str, Any]) -> None:
    """
    Trains (or resumes), saves the drafter, and writes what was done beside it.

    Args:
        trainer ([`~ppow_hf.trainer.DrafterTrainer`]): The trainer.
        training_args ([`~transformers.TrainingArguments`]): Its configuration. Without `resume_from_checkpoint` the
            last checkpoint in `output_dir` is resumed, if there is one.
        facts (`dict`): What to record beside the configuration and the result.
    """
    resume = training_args.resume_from_checkpoint
    if resume is None and os.path.isdir(training_args.output_dir):
        resume = get_last_checkpoint(training_args.output_dir)
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if trainer.is_world_process_zero():
        dataset = trainer.train_dataset
        facts = {
            **facts,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "train_rows": len(dataset),
            "train_response_tokens": int(sum(map(sum, dataset["loss_mask"]))),
            "training": training_args.to_sanitized_dict(),
            "initial": trainer.initial_figures(),
            "best": {"step": trainer.state.best_global_step, "metric": trainer.state.best_metric},
            "result": result.metrics,
        }
        _write_json(Path(training_args.output_dir, PROVENANCE_FILE), facts)
        trainer.state.save_to_json(str(Path(training_args.output_dir, LOG_FILE)))
    if training_args.push_to_hub:
        trainer.push_to_hub()


def _write_json(path: Path, content: dict) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
