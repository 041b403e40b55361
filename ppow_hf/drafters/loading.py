# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Loading without surprises: checkpoints that do not fit, and targets that cannot be drafted for, are refused."""

import os
from collections.abc import Callable

from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Arguments of `from_pretrained` that say where files come from, for the files beside the weights.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def load_checked(loader: Callable, source: str | os.PathLike, *args, allow_unknown: bool = False, **kwargs):
    """
    Calls a `from_pretrained` and refuses a result with weights that did not come from the checkpoint.

    Args:
        loader (`Callable`): A `from_pretrained`.
        source (`str` or `os.PathLike`): Folder or repository.
        allow_unknown (`bool`, *optional*, defaults to `False`):
            Accept weights that the model has no place for, with a warning.

    Returns:
        `tuple[PreTrainedModel, dict]`: The model and transformers' loading information.

    Raises:
        ValueError: If weights are missing, unknown or of another shape.
        OSError: If there is no such folder or repository, or a weight file is missing or truncated.
    """
    # transformers names mis-shaped weights only in a log; here they belong into the error.
    kwargs = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = loader(source, *args, **kwargs)
    except SafetensorError as error:
        raise OSError(
            f"The weight file in `{source}` cannot be read ({error}). It is truncated or damaged: download or copy "
            "it again."
        ) from error
    except OSError as error:
        if not os.path.isdir(source):
            raise
        raise OSError(
            f"The folder `{os.fspath(source)}` holds no weights that can be loaded. Pass the folder that "
            f"`save_pretrained` or the trainer wrote, with all its files. The cause: {error}"
        ) from error
    problems = []
    if info["missing_keys"]:
        problems.append(f"missing weights {sorted(info['missing_keys'])}")
    if unknown := sorted(info["unexpected_keys"]):
        if not allow_unknown:
            problems.append(f"unknown weights {unknown}")
        else:
            some = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            logger.warning(
                f"`{source}` holds {len(unknown)} weights that {type(model).__name__} has no use for: {some}."
            )
    for name, found, wanted in sorted(info["mismatched_keys"]):
        problems.append(f"`{name}` has shape {tuple(found)} instead of {tuple(wanted)}")
    if problems:
        raise ValueError(
            f"The checkpoint `{source}` does not fit {type(model).__name__}: {'; '.join(problems)}. Check that "
            "config.json belongs to these weights, or convert foreign EAGLE-3 checkpoints first."
        )
    return model, info


def check_target(target: PreTrainedModel) -> None:
    """
    Refuses targets that windows cannot be verified with.

    Args:
        target ([`~transformers.PreTrainedModel`]): The model to check.

    Raises:
        ValueError: If it is an encoder-decoder or keeps a recurrent state that cannot be rolled back.
    """
    if getattr(target.config, "is_encoder_decoder", False):
        raise ValueError(
            f"`target` is a `{type(target).__name__}`, an encoder-decoder model, which drafters do not work with. "
            "Use a decoder-only one, such as `AutoModelForCausalLM` loads."
        )
    if getattr(target, "_is_stateful", False):
        raise ValueError(
            f"`target` is a `{type(target).__name__}`, which keeps a recurrent state that cannot be rolled back "
            "after a rejected draft token. Use a target whose cache can be cropped, one with attention in every layer."
        )
