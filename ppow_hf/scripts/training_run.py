# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the training scripts of all stages share: reading responses, resuming, and recording what was done."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from ppow_hf.data import load_responses, split_holdout
from ppow_hf.data.files import PROVENANCE_FILE, TRAINING_PROVENANCE_FILE
from ppow_hf.data.fingerprint import weights_fingerprint
from ppow_hf.json_files import read_json_object
from ppow_hf.scripts.whole_checkpoints import checkpoint_to_resume, is_at_the_end
from ppow_hf.trainer import DrafterTrainer
from ppow_hf.whole_files import write_json_whole

logger = logging.get_logger(__name__)

_RUN_FILE = "run.json"  # What a run began with, beside its checkpoints.


def load_all_responses(paths: list[str]) -> tuple[Dataset, list[dict | None]]:
    """The responses of several folders as one dataset, and the provenance of each."""
    parts, provenance = [], []
    for path in paths:
        parts.append(load_responses(path).select_columns(["prompt", "input_ids", "loss_mask"]))
        file = Path(path) / PROVENANCE_FILE
        remedy = "Delete it, and nothing is recorded of where the responses come from, or copy them again."
        provenance.append(read_json_object(file, remedy) if file.exists() else None)
    return (parts[0] if len(parts) == 1 else concatenate_datasets(parts)), provenance


def warn_of_other_targets(responses: list[dict | None], paths: list[str], target: PreTrainedModel) -> None:
    """
    Warns of responses that another target gave, whose tokens fit all the same: the drafter would learn to draft for
    that one.

    Args:
        responses (`list[dict | None]`): Provenance of the responses, from [`load_all_responses`].
        paths (`list[str]`): Their folders.
        target ([`~transformers.PreTrainedModel`]): The target to train for.
    """
    dtype, weights = str(target.dtype).removeprefix("torch."), None
    for path, facts in zip(paths, responses, strict=True):
        settings = (facts or {}).get("settings") or {}
        kind = settings.get("target_model_type")
        other = kind not in (None, target.config.model_type)
        # Rounded to another precision, the same weights have another fingerprint.
        if not other and "target_weights" in settings and settings.get("dtype") == dtype:
            weights = weights or weights_fingerprint(target)
            other = settings["target_weights"] != weights
        if other:
            logger.warning(
                f"The responses in `{path}` were given by another target ({settings.get('target') or kind}) than the "
                f"one to train for ({target.config._name_or_path or target.config.model_type}): a drafter learns what "
                "its target writes. Make responses of this target with `ppow data`."
            )


def held_out_seed(training_args: TrainingArguments) -> int:
    """
    What chooses the held-out prompts: `data_seed`, and never `seed`. Runs of other seeds and stages on the same
    responses, with the same `holdout`, then hold out the same: they can be compared, and no stage trains on what
    another is judged by. Of other responses, or another number of them, other prompts are held out.
    """
    return training_args.data_seed or 0


def hold_out(
    responses: Dataset, size: int, training_args: TrainingArguments
) -> tuple[Dataset, Dataset, dict[str, int]]:
    """
    Parts responses into rows to train on and rows to evaluate on.

    Args:
        responses ([`~datasets.Dataset`]): From [`load_all_responses`].
        size (`int`): About how many to hold out.
        training_args ([`~transformers.TrainingArguments`]): Says by which seed, see [`held_out_seed`].

    Returns:
        `tuple[Dataset, Dataset, dict]`: Both parts without the prompts' text, and what to record of it.
    """
    seed = held_out_seed(training_args)
    train, held_out = (part.remove_columns("prompt") for part in split_holdout(responses, size, seed=seed))
    return train, held_out, {"rows": len(held_out), "seed": seed}


def recorded_held_out_seed(record: dict[str, Any]) -> int:
    """
    The seed that chose the held-out prompts of a training.

    Args:
        record (`dict`): What the training recorded, see [`~ppow_hf.hub.card_facts.read_provenance`]. Before the seed
            was recorded, the supervised stage took `seed`.
    """
    if "held_out" in record:
        return record["held_out"]["seed"]
    seed = (record.get("training") or {}).get("seed" if record.get("stage") == "supervised" else "data_seed")
    return seed if isinstance(seed, int) else 0


def warn_of_other_held_out_rows(
    record: dict[str, Any] | None, held_out: dict[str, int], responses: list[dict | None]
) -> None:
    """
    Warns where a drafter that training goes on with may have been trained on what is now held out.

    Args:
        record (`dict`, *optional*): What is recorded of its training, see
            [`~ppow_hf.hub.card_facts.read_provenance`]; the trainings before that are in it.
        held_out (`dict`): From [`hold_out`].
        responses (`list[dict | None]`): Provenance of the responses, from [`load_all_responses`].
    """
    while record:
        differences = []
        trained = {"seed": recorded_held_out_seed(record)} if "training" in record else {}
        before = record.get("held_out", trained)
        if any(held_out.get(name) != value for name, value in before.items()):
            differences.append(f"held out {_said(before)}, and now it is {_said(held_out)}")
        if "responses" in record and _sorted(record["responses"]) != _sorted(responses):
            differences.append("took other responses, of which other prompts are held out")
        if differences:
            logger.warning(
                f"The drafter's {record.get('stage', 'earlier')} training {'; it '.join(differences)}. It may have "
                "been trained on prompts that are now held out, and its held-out figures are then too good. Use the "
                "same `responses`, `holdout` and `data_seed`, or judge the drafter by prompts that no stage has seen."
            )
            return
        record = record.get("started_from") or record.get("continued_from")


def _said(held_out: dict[str, int]) -> str:
    return f"{held_out.get('rows', 'some')} rows by `data_seed` {held_out['seed']}"


def _sorted(responses: list[dict | None] | None) -> list[str]:
    """The provenance of responses in an order that does not depend on how their folders were named."""
    # A licence is added by whoever shares the drafter.
    entries = [{k: v for k, v in (entry or {}).items() if k != "license"} for entry in responses or []]
    return sorted(json.dumps(entry, sort_keys=True) for entry in entries)


def _check_same_run(output_dir: Path, facts: dict[str, Any]) -> None:
    """Refuses to go on with checkpoints of a run that began otherwise: they hold its weights, not those asked for."""
    for name in (_RUN_FILE, TRAINING_PROVENANCE_FILE):
        if (path := output_dir / name).is_file():
            remedy = "Delete it, and the last checkpoint is gone on from whatever it began with."
            before = read_json_object(path, remedy).get("arguments") or {}
            break
    else:
        return
    now = json.loads(json.dumps(facts.get("arguments") or {}))
    changed = sorted(key for key in before.keys() & now.keys() if before[key] != now[key])
    if changed:
        said = "; ".join(f"`{key}` was {before[key]!r}, now {now[key]!r}" for key in changed)
        raise ValueError(
            f"`output_dir` is {str(output_dir)!r}, which holds checkpoints of a run with other arguments: {said}. "
            "Give another `output_dir`, or name the checkpoint to go on from with `resume_from_checkpoint`."
        )


def run_training(trainer: DrafterTrainer, training_args: TrainingArguments, facts: dict[str, Any]) -> None:
    """
    Trains (or resumes) and saves the drafter, with what was done beside it.

    Args:
        trainer ([`~ppow_hf.trainer.DrafterTrainer`]): The trainer.
        training_args ([`~transformers.TrainingArguments`]): Its configuration. Without `resume_from_checkpoint` the
            last whole checkpoint in `output_dir` is resumed, if there is one.
        facts (`dict`): What to record beside what the trainer knows: its `provenance`.

    Raises:
        ValueError: If `resume_from_checkpoint` names a checkpoint that is not whole, or `output_dir` holds those of a
            run that began with another drafter or other responses and none is named.
    """
    resume = checkpoint_to_resume(training_args)
    if resume is not None:
        if training_args.resume_from_checkpoint is None:
            _check_same_run(Path(training_args.output_dir), facts)
        saved = Path(training_args.output_dir, TRAINING_PROVENANCE_FILE)
        if saved.is_file() and is_at_the_end(resume, training_args):
            logger.warning(
                f"`{training_args.output_dir}` holds the finished drafter of this training: nothing is left to do. "
                "Ask for more steps or time, or give another `output_dir`."
            )
            _end(trainer)
            return
        logger.warning(f"Going on from `{resume}`.")
    if trainer.is_world_process_zero():
        Path(training_args.output_dir).mkdir(parents=True, exist_ok=True)
        write_json_whole(Path(training_args.output_dir, _RUN_FILE), {"arguments": facts.get("arguments")})
    trainer.provenance = facts
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if training_args.push_to_hub:
        trainer.push_to_hub()
    _end(trainer)


def _end(trainer: DrafterTrainer) -> None:
    """
    Takes the processes apart in order. A process that just ends may be aborted by a communication thread of its own,
    and with it all others, one that is still saving the drafter included.
    """
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
