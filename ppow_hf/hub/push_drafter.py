# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""From a drafter or a trainer to the Hub: save, complete with remote code and card, push."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..data.files import PROVENANCE_FILE, TRAINING_PROVENANCE_FILE
from .card import CARD_NAME, is_as_written, write_card
from .card_facts import public_record, read_facts, read_provenance
from .card_measured import read_drafter_config
from .push import check_repo_id, push_folder, resolve_token
from .push_errors import HubPushError
from .push_files import MODEL_FOLDERS, check_model_files, check_no_secrets, git_blob_id, link_or_copy, select_files
from .push_session import PushResult
from .remote_code import write_remote_code

logger = logging.get_logger(__name__)
# What belongs to one set of weights and would be wrong beside another.
FACTS = ("cost_model.json", "provenance.json", "training_log.json", "LICENSE", "NOTICE")


def push_drafter(
    drafter: PreTrainedModel,
    repo_id: str,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    facts_from: str | os.PathLike | None = None,
    max_shard_size: int | str = "50GB",
    **kwargs: Any,
) -> PushResult:
    """
    Saves a drafter to a temporary folder, adds remote code and card, and pushes it in one commit.

    Benchmarks, cost model and provenance that lie in the folder the drafter was loaded from go along if the weights
    are still those of that folder, and stay if they are not: they would be another drafter's.

    Args:
        drafter ([`DrafterModel`]): What to share.
        repo_id (`str`): `"namespace/name"`, or `"name"` in your own namespace.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): A tokenizer to add. The target's
            repository has it already.
        facts_from (`str` or `os.PathLike`, *optional*): Folder with the benchmarks. Default: where the drafter was
            loaded from.
        max_shard_size (`int` or `str`, *optional*, defaults to `"50GB"`): As for `save_pretrained`.
        kwargs: Arguments of `push_folder`: `private`, `create_pr`, `revision`, `token`, `dry_run`, `commit_message`,
            `max_retries`.

    Returns:
        `PushResult`: What was sent.

    Raises:
        ValueError: If an argument is unusable.
        HubPushError: If the Hub refuses or cannot be reached.
    """
    origin = Path(facts_from if facts_from is not None else drafter.name_or_path or ".")
    with tempfile.TemporaryDirectory(prefix="ppow_push_") as name:
        folder = Path(name)
        drafter.save_pretrained(folder, max_shard_size=max_shard_size)
        if processing_class is not None:
            processing_class.save_pretrained(folder)
        if (origin / "config.json").is_file():
            copy_facts(origin, folder)
        complete_folder(folder, repo_id, shown=origin)
        return push_folder(folder, repo_id, **kwargs)


def push_saved(
    folder: str | os.PathLike, repo_id: str, *, card: str = "if_missing", require_results: bool = False, **kwargs: Any
) -> PushResult:
    """
    Pushes a saved drafter, with remote code and card added where they are missing. The folder itself stays as it is.

    Args:
        folder (`str` or `os.PathLike`): What `save_pretrained` or a trainer wrote.
        repo_id (`str`): The repository.
        card (`str`, *optional*, defaults to `"if_missing"`): When to write README.md from the folder's facts:
            `"if_missing"` (also where it is one of ours that nobody has edited: it may tell of another repository, or
            of weights before these), `"always"` or `"never"`.
        require_results (`bool`, *optional*, defaults to `False`):
            Refuse a drafter without benchmark results, in place of a warning.
        kwargs: Arguments of `push_folder`.

    Returns:
        `PushResult`: What was sent.

    Raises:
        ValueError: If the folder or an argument is unusable.
        HubPushError: If the Hub refuses or cannot be reached.
    """
    selected = select_files(folder)
    check_model_files(folder, selected.files)
    record = Path(folder, TRAINING_PROVENANCE_FILE)
    sent = selected.files | ({TRAINING_PROVENANCE_FILE: record} if record.is_file() else {})
    check_no_secrets(sent, resolve_token(kwargs.get("token")))
    with tempfile.TemporaryDirectory(prefix="ppow_push_") as name:
        stage = Path(name)
        for path, local in selected.files.items():
            if path == "README.md" and card == "always":
                continue
            link_or_copy(local, stage / path)
        _take_record(Path(folder), stage)
        readme = stage / CARD_NAME
        if card != "never" and readme.exists() and is_as_written(readme.read_text(encoding="utf-8")):
            readme.unlink()
        complete_folder(
            stage,
            repo_id,
            card=card != "never" and not readme.exists(),
            shown=Path(folder),
            require_results=require_results,
            check=card != "never",
        )
        result = push_folder(stage, repo_id, **kwargs)
    result.left_out = [entry for entry in selected.left_out if entry[0] not in sent]
    return result


def complete_folder(
    folder: Path,
    repo_id: str,
    *,
    card: bool = True,
    shown: Path | None = None,
    require_results: bool = False,
    check: bool = True,
) -> None:
    """
    Adds what makes a saved drafter a repository.

    Args:
        folder (`Path`): Changed in place. Folders of another model type, such as those of `ppow export`, get no code.
        repo_id (`str`): The repository that the card's examples name.
        card (`bool`, *optional*, defaults to `True`): Write README.md.
        shown (`Path`, *optional*): The folder to name in errors, where `folder` is a copy that will be gone by then.
        require_results (`bool`, *optional*, defaults to `False`): Whether a drafter without results is an error.
        check (`bool`, *optional*, defaults to `True`): Check what a card would tell of a drafter, whoever wrote it.

    Raises:
        ValueError: If the folder's facts contradict each other, or a file is damaged.
    """
    try:
        config = read_drafter_config(folder)
        ours = str(config.get("model_type", "")).startswith("ppow_")
        if ours:
            write_remote_code(folder)
        if card or (check and ours):
            measured = any((folder / "benchmarks").rglob("results.json"))
            remedy = f"`ppow bench --drafter {shown or folder} --output {shown or folder}/benchmarks` measures it"
            if require_results and not measured:
                raise ValueError(
                    f"`{shown or folder}` has no benchmarks/results.json, so that nothing says how fast it is. "
                    f"{remedy}; `--unmeasured` pushes it as it is."
                )
            if card:
                write_card(folder, repo_id=repo_id)
            else:
                read_facts(folder)  # which writing a card does by itself
            if not measured:
                logger.warning(
                    f"`{shown or folder}` has no benchmarks/results.json: nothing says how fast it is. {remedy}."
                )
    except (ValueError, OSError) as error:
        raise ValueError(str(error).replace(str(folder), str(shown or folder))) from error


def push_trainer(
    trainer: Trainer,
    *,
    commit_message: str | None = "End of training",
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    **kwargs: Any,
) -> PushResult | None:
    """
    A trainer's `push_to_hub`: saves the drafter to `output_dir` and pushes what belongs on the Hub of it.

    Checkpoints, optimizer state and pickled arguments stay. Every process has to call it; the first one pushes.

    Args:
        trainer ([`~transformers.Trainer`]): A trainer of drafters.
        commit_message (`str`, *optional*): First line of the commit.
        token (`str`, *optional*): Default: `args.hub_token`.
        revision (`str`, *optional*): Default: `args.hub_revision`.
        private (`bool`, *optional*): Default: `args.hub_private_repo`.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request.
        kwargs: Further arguments of `push_folder`.

    Returns:
        `PushResult`: What was sent; `None` on processes other than the first.
    """
    args = trainer.args
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    return push_saved(
        args.output_dir,
        hub_repo_id(args),
        card="always",  # A card from before this training would tell of other weights.
        commit_message=commit_message,
        token=token or args.hub_token,
        revision=revision or args.hub_revision,
        private=bool(args.hub_private_repo if private is None else private),
        create_pr=create_pr,
        **kwargs,
    )


def push_checkpoint(trainer: Trainer, checkpoint_folder: str | os.PathLike) -> PushResult | None:
    """
    A trainer's push while it trains, after a checkpoint was saved. A failure is logged, be it the Hub's, a name's, a
    file's or the disk's: it must not end the training.

    Args:
        trainer ([`~transformers.Trainer`]): A trainer of drafters.
        checkpoint_folder (`str` or `os.PathLike`): The checkpoint; only the drafter in it is sent.

    Returns:
        `PushResult`: What was sent; `None` if nothing was, as with `hub_strategy="end"`.
    """
    args = trainer.args
    if not trainer.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
        return None
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    try:
        return push_saved(
            checkpoint_folder,
            hub_repo_id(args),
            card="never",
            commit_message=f"Training in progress, step {trainer.state.global_step}",
            token=args.hub_token,
            revision=args.hub_revision,
            private=bool(args.hub_private_repo),
        )
    except (HubPushError, ValueError, OSError) as error:
        logger.warning(f"The checkpoint of step {trainer.state.global_step} was not pushed: {error} Training goes on.")
        return None


def hub_repo_id(args: TrainingArguments) -> str:
    """
    The repository of a trainer: `hub_model_id`, or the name of `output_dir`.

    Args:
        args ([`~transformers.TrainingArguments`]): The trainer's arguments.

    Raises:
        ValueError: If the Hub has no repositories of that name.
    """
    if args.hub_model_id:
        check_repo_id(args.hub_model_id, "hub_model_id")
        return args.hub_model_id
    name = Path(args.output_dir).absolute().name
    try:
        check_repo_id(name, "hub_model_id")
    except ValueError:
        raise ValueError(
            f"Without `hub_model_id` the repository has the name of `output_dir`, and {name!r} is none that the Hub "
            "takes (letters, digits, `-`, `_` and `.`). Set `hub_model_id`, or choose another folder."
        ) from None
    return name


def copy_facts(origin: Path, folder: Path) -> None:
    """Copies benchmarks and the like, provided both folders hold the same weights."""
    if _weights(origin) != _weights(folder):
        logger.warning(
            f"Benchmarks and provenance in `{origin}` belong to other weights than this drafter's (trained further, "
            "or loaded in another dtype) and stay. Benchmark it with `ppow bench`, or push that folder itself."
        )
        return
    for path, local in select_files(origin).files.items():
        if path in FACTS or path.partition("/")[0] in set(MODEL_FOLDERS) - {"custom_generate"}:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(local, folder / path)
    _take_record(origin, folder)


def _take_record(origin: Path, folder: Path) -> None:
    """What training and calibration have recorded becomes `provenance.json`, without the paths of this machine."""
    if (origin / TRAINING_PROVENANCE_FILE).is_file() or (origin / PROVENANCE_FILE).is_file():
        text = json.dumps(public_record(read_provenance(origin)), indent=2) + "\n"
        path = folder / PROVENANCE_FILE
        path.unlink(missing_ok=True)  # it may be a link to the folder's own
        path.write_text(text, encoding="utf-8")


def _weights(folder: Path) -> dict[str, str]:
    return {path.name: git_blob_id(path.read_bytes()) for path in sorted(folder.glob("model*.safetensors"))}
