# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Checkpoint files of other projects: read whole and without running code, written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..data.files import PROVENANCE_FILE, explain_disk_full
from ..json_files import read_json_object
from .card_facts import public_record

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# Licences and provenance travel with the weights, in both directions.
CARRIED_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "provenance.json")
# Pickles that trainers leave beside the weights.
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "random_states_0.bin")
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_COPY_AGAIN = "Download or copy it again."
_SINGLE_FILES = (WEIGHTS_FILE, "pytorch_model.bin")


def locate_checkpoint(source: str | os.PathLike, *, revision: str | None = None, weights: bool = True) -> Path:
    """
    The folder of a checkpoint, downloaded if it is a Hub repository.

    Args:
        source (`str` or `os.PathLike`): Folder or Hub repository id.
        revision (`str`, *optional*): Branch, tag or commit of the repository.
        weights (`bool`, *optional*, defaults to `True`): Whether the weights are wanted too, or only the small files.

    Returns:
        `Path`: An existing folder.

    Raises:
        OSError: If there is no such folder, or the repository cannot be read.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"`source` is the file {text!r}: give the folder that holds it and its config.json.")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1:
        raise FileNotFoundError(
            f"`source` is {text!r}: there is no such folder. Give a checkpoint's folder or a Hub repository id such "
            "as org/name."
        )
    small = [CONFIG_FILE, "*.index.json", *CARRIED_FILES]
    try:
        folder = Path(snapshot_download(text, revision=revision, allow_patterns=small))
        if weights:
            folder = Path(snapshot_download(text, revision=revision, allow_patterns=[*small, "*.safetensors"]))
            if not any(folder.glob("*.safetensors")):
                folder = Path(snapshot_download(text, revision=revision, allow_patterns=[*small, "*.bin"]))
    except (OSError, ValueError) as error:
        raise OSError(
            f"`source` is {text!r}: neither a folder here nor a Hub repository that can be read now. Check the name, "
            f"the network and, for a gated repository, your login. The cause: {error}"
        ) from error
    return folder


def read_config(folder: Path) -> dict:
    """
    The `config.json` of a checkpoint.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a JSON object.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG_FILE}: it is not a checkpoint. Give the folder that does.")
    return read_json_object(path, _COPY_AGAIN)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """
    All tensors of a checkpoint, from safetensors or, failing these, from `.bin` files read with `weights_only=True`.

    Args:
        folder (`Path`): The checkpoint; its weights may be sharded with an index.

    Returns:
        `dict[str, torch.Tensor]`: On the CPU, in the dtypes of the files.

    Raises:
        OSError: If there are no weights, a shard is missing, or a file is truncated.
        ValueError: If a pickle holds anything but plain tensors.
    """
    for index, single in zip(_INDEX_FILES, _SINGLE_FILES, strict=True):
        if (folder / single).is_file():
            return _read_file(folder / single)
        if (folder / index).is_file():
            return _read_shards(folder, index)
    loose = sorted(folder.glob("*.safetensors")) or [
        path for path in sorted(folder.glob("*.bin")) if path.name not in _NOT_WEIGHTS
    ]
    if len(loose) == 1:
        return _read_file(loose[0])
    if loose:
        raise FileNotFoundError(
            f"{folder} holds {len(loose)} weight files ({', '.join(path.name for path in loose[:4])}) and no index "
            "that says which belong together: copy the checkpoint's *.index.json too."
        )
    raise FileNotFoundError(
        f"{folder} holds no weights: neither *.safetensors nor *.bin was found beside config.json."
    )


def _read_shards(folder: Path, index: str) -> dict[str, torch.Tensor]:
    weight_map = read_json_object(folder / index, _COPY_AGAIN).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{folder / index} has no `weight_map` from weights to files: it is damaged.")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ValueError(f"{folder / index} names files outside of its folder ({outside[0]!r}): they are not read.")
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{folder} lacks {', '.join(absent)}, which {index} names: download or copy it again.")
    weights: dict[str, torch.Tensor] = {}
    for name in names:
        shard = _read_file(folder / name)
        twice = weights.keys() & shard.keys()
        if twice:
            raise ValueError(f"{folder}: `{sorted(twice)[0]}` is in two shards. The checkpoint is damaged.")
        weights.update(shard)
    lost = sorted(weight_map.keys() - weights.keys())
    if lost:
        raise OSError(f"{folder}: {index} names weights that no shard holds: {', '.join(lost)}. Download it again.")
    return weights


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    truncated = f"{path} cannot be read: it is truncated or damaged. Download or copy it again."
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise OSError(f"{truncated} The cause: {error}") from error
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise OSError(truncated) from error
        raise ValueError(
            f"{path} holds more than plain tensors, and unpickling it could run code: it was not read. Ask for a "
            "safetensors version of the checkpoint."
        ) from error
    except PermissionError:
        raise
    except (RuntimeError, EOFError, OSError) as error:  # Reading past the end is "invalid argument".
        raise OSError(f"{truncated} The cause: {error}") from error
    if isinstance(weights, dict) and set(weights) == {"state_dict"}:
        weights = weights["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path} is not a dictionary from names to tensors: it is not a file of weights.")
    return dict(weights)


@contextmanager
def new_folder(output: str | os.PathLike, argument: str = "output") -> Iterator[Path]:
    """
    A folder that appears whole when the block ends, and not at all if it fails.

    Args:
        output (`str` or `os.PathLike`): Where to; must not exist, or be an empty folder.
        argument (`str`, *optional*, defaults to `"output"`): The caller's name for it, for the messages.

    Raises:
        FileExistsError: If there is something already.
        OSError: If the disk is full.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"`{argument}` is {str(output)!r}, which exists and is not empty: give another folder or delete it."
        )
    with explain_disk_full(output, "Nothing was left behind: free some space and run the same command again."):
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        try:
            temporary.chmod(0o755)
            yield temporary
            os.replace(temporary, output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_checkpoint(folder: Path, config: dict, weights: dict[str, torch.Tensor]) -> None:
    """Writes `config.json` and one `model.safetensors`, which every engine reads, into a folder of [`new_folder`]."""
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def carry_files(source: Path, folder: Path) -> list[str]:
    """Copies licence and provenance files, the latter without paths of this machine; returns their names."""
    found = sorted({path for pattern in CARRIED_FILES for path in source.glob(pattern) if path.is_file()})
    for path in found:
        if path.name == PROVENANCE_FILE:
            record = public_record(read_json_object(path, "Delete it, or copy it again."))
            (folder / path.name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(path, folder / path.name)
    return [path.name for path in found]
