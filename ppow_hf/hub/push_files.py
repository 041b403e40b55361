# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Which files of a folder belong on the Hub, and which of them the Hub already has."""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import RepoFile
from huggingface_hub.constants import SPACES_SDK_TYPES
from huggingface_hub.repocard import metadata_load
from safetensors import SafetensorError, safe_open
from yaml import YAMLError

from ..json_files import read_json_object

WEIGHT_FILES = ("model*.safetensors", "model*.safetensors.index.json")
MODEL_FILES = (
    *WEIGHT_FILES,
    "config.json",
    "generation_config.json",
    "README.md",
    "LICENSE",
    "LICENSE.*",
    "NOTICE",
    "cost_model.json",
    "provenance.json",
    "training_log.json",
    "*.py",  # Remote code lies flat beside the weights.
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)
MODEL_FOLDERS = {
    "benchmarks": {".json", ".jsonl", ".md", ".png", ".svg", ".csv"},
    "custom_generate": {".py", ".txt", ".md"},
    "additional_chat_templates": {".jinja"},
}
_TEXT = {".md", ".txt", ".py", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".csv", ".css", ".js", ".html", ".jinja"}
SPACE_SUFFIXES = _TEXT | {".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".ico", ".whl", ".safetensors"}
# Named so that the report says why; the lists above leave them out in any case.
NEVER = (
    ("checkpoint-*", "training checkpoint"),
    ("optimizer*", "optimizer state"),
    ("scheduler*", "optimizer state"),
    ("rng_state*", "optimizer state"),
    ("scaler*", "optimizer state"),
    ("trainer_state.json", "trainer state"),
    ("training_args*", "pickled arguments, which may hold a token"),
    ("*.pt", "pickle"),
    ("*.pth", "pickle"),
    ("*.bin", "pickle"),
    ("*.pkl", "pickle"),
    ("*.ckpt", "pickle"),
    ("*token", "may hold a token"),
    ("__pycache__", "cache"),
    (".*", "hidden"),
)
# What the Hub keeps as LFS objects: these endings, anything binary, anything of 10 MB or more.
LFS_SUFFIXES = {".safetensors", ".bin", ".model", ".npy", ".npz", ".parquet", ".zip", ".gz", ".whl", ".ckpt", ".pt"}
LFS_BYTES = 10_000_000
_SECRET = re.compile(rb"hf_[A-Za-z0-9]{30,}")
_SECRET_SCAN_BYTES = 20_000_000


@dataclass(frozen=True)
class PlannedFile:
    """
    One file of a push.

    Args:
        path (`str`): Path in the repository.
        size (`int`): Bytes; 0 for deletions.
        mode (`str`): `"regular"` or `"lfs"`. For files the Hub does not have yet, what its default rules say.
        status (`str`): `"new"`, `"changed"`, `"unchanged"` or `"deleted"`.
    """

    path: str
    size: int
    mode: str
    status: str


@dataclass(frozen=True)
class FolderFiles:
    """
    A folder sorted into what is sent and what stays.

    Args:
        files (`dict[str, Path]`): Path in the repository to local file, in order of path.
        left_out (`list[tuple[str, str]]`): Paths that stay, with the reason. A folder of which nothing is sent appears
            once, with a `/` at its end.
    """

    files: dict[str, Path]
    left_out: list[tuple[str, str]]


def select_files(folder: str | os.PathLike, *, space: bool = False) -> FolderFiles:
    """
    Sorts a folder by explicit lists: whatever is not known to belong on the Hub stays.

    Args:
        folder (`str` or `os.PathLike`): A drafter's folder, or a Space's.
        space (`bool`, *optional*, defaults to `False`): By the rules for Spaces: code, text and pictures.

    Returns:
        `FolderFiles`: What is sent and what is left out.

    Raises:
        ValueError: If there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"`folder` must be a folder with a saved drafter or Space, got `{folder}`: no such folder.")
    files: dict[str, Path] = {}
    left_out: list[tuple[str, str]] = []
    for base, folders, names in os.walk(root):
        relative = Path(base).relative_to(root)
        for name in sorted(folders):
            path = (relative / name).as_posix()
            reason = _never(name)
            if reason is None and not space and path not in MODEL_FOLDERS and relative == Path("."):
                reason = "not part of a drafter repository"
            if reason is not None:
                left_out.append((f"{path}/", reason))
                folders.remove(name)
        for name in names:
            path = (relative / name).as_posix()
            reason = _never(name) or _unknown(path, space)
            if reason is None:
                files[path] = root / path
            else:
                left_out.append((path, reason))
    return FolderFiles(dict(sorted(files.items())), sorted(left_out))


def _never(name: str) -> str | None:
    return next((reason for pattern, reason in NEVER if fnmatch(name.lower(), pattern)), None)


def _unknown(path: str, space: bool) -> str | None:
    top, _, rest = path.partition("/")
    suffix = os.path.splitext(path)[1].lower()
    if space:
        known = suffix in SPACE_SUFFIXES or path == "LICENSE"
    elif rest:
        known = suffix in MODEL_FOLDERS[top]
    else:
        known = any(fnmatch(path, pattern) for pattern in MODEL_FILES)
    return None if known else f"not part of a {'Space' if space else 'drafter repository'}"


def check_model_files(folder: str | os.PathLike, files: Mapping[str, Path]) -> None:
    """
    Refuses folders that `from_pretrained` could not load.

    Args:
        folder (`str` or `os.PathLike`): The folder, for messages.
        files (`Mapping[str, Path]`): What would be sent.

    Raises:
        ValueError: If configuration, weights or a shard are missing, or a weight file is damaged.
    """
    weights = [path for path in files if fnmatch(path, WEIGHT_FILES[0])]
    if "config.json" not in files or not weights:
        missing = "config.json" if "config.json" not in files else "model.safetensors"
        hint = " It has an app.py: push a Space with `space=True` (`--space`)." if "app.py" in files else ""
        raise ValueError(
            f"`{folder}` holds no drafter: {missing} is missing. `drafter.save_pretrained` writes one.{hint}"
        )
    for path in (path for path in files if fnmatch(path, WEIGHT_FILES[1])):
        try:
            shards = set(read_json_object(files[path], "Save the drafter again.")["weight_map"].values())
        except (KeyError, AttributeError) as error:
            raise ValueError(f"`{files[path]}` is not a weight index ({error}). Save the drafter again.") from error
        if absent := sorted(shards - set(weights)):
            raise ValueError(f"`{path}` names shards that are not in `{folder}`: {absent}. Save the drafter again.")
    for path in weights:
        try:
            with safe_open(files[path], framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"The weight file `{files[path]}` cannot be read ({error}). It is truncated or damaged: save the "
                "drafter again."
            ) from error


def check_space_files(folder: str | os.PathLike, files: Mapping[str, Path]) -> str:
    """
    Refuses folders that would not start as a Space.

    Returns:
        `str`: The SDK that the Space's README names.

    Raises:
        ValueError: If README.md is missing, names no SDK or names a missing application file.
    """
    metadata = card_metadata(files)
    sdk = metadata.get("sdk")
    if sdk not in SPACES_SDK_TYPES:
        raise ValueError(
            f"`{folder}` is no Space: README.md must begin with metadata whose `sdk` is in {SPACES_SDK_TYPES}, got "
            f"{sdk!r}."
        )
    app = metadata.get("app_file", "app.py" if sdk == "gradio" else None)
    if app is not None and app not in files:
        raise ValueError(f"`{folder}` is no Space: its `app_file` `{app}` is missing.")
    return sdk


def card_metadata(files: Mapping[str, Path]) -> dict:
    """
    The metadata at the top of README.md; empty when there is none.

    Raises:
        ValueError: If it is not a YAML mapping.
    """
    if "README.md" not in files:
        return {}
    try:
        return metadata_load(files["README.md"]) or {}
    except (ValueError, YAMLError) as error:
        raise ValueError(f"The metadata of `{files['README.md']}` is not valid YAML: {error}") from error


def check_no_secrets(files: Mapping[str, Path], token: str | None = None) -> None:
    """
    Refuses files with a Hub token in them, such as a log that recorded its arguments.

    Args:
        files (`Mapping[str, Path]`): What would be sent.
        token (`str`, *optional*): The token in use.

    Raises:
        ValueError: If there is one. It names the file, never the token.
    """
    for path, local in files.items():
        if local.suffix == ".safetensors" or local.stat().st_size > _SECRET_SCAN_BYTES:
            continue
        content = local.read_bytes()
        if _SECRET.search(content) or (token and token.encode() in content):
            raise ValueError(
                f"`{local}` contains a Hub token and is not sent. Remove it from the file, and revoke the token at "
                f"https://huggingface.co/settings/tokens if anybody else could read `{path}`."
            )


def plan_files(
    files: Mapping[str, Path], remote: Mapping[str, RepoFile], *, drop_stale_weights: bool = True
) -> list[PlannedFile]:
    """
    Compares local files with a repository's.

    Args:
        files (`Mapping[str, Path]`): What belongs on the Hub.
        remote (`Mapping[str, RepoFile]`): What is there.
        drop_stale_weights (`bool`, *optional*, defaults to `True`): Delete weights the folder does not have.
            transformers prefers a single file to shards: an old one left beside new shards would be loaded.

    Returns:
        `list[PlannedFile]`: One entry per file, in order of path.
    """
    plan = []
    for path, local in files.items():
        there, size = remote.get(path), local.stat().st_size
        if there is not None and _same(local, size, there):
            plan.append(PlannedFile(path, size, "lfs" if there.lfs else "regular", "unchanged"))
        else:
            plan.append(PlannedFile(path, size, upload_mode(local, size), "new" if there is None else "changed"))
    if drop_stale_weights:
        for path, there in remote.items():
            weights = "/" not in path and any(fnmatch(path, pattern) for pattern in WEIGHT_FILES)
            if weights and path not in files:
                plan.append(PlannedFile(path, 0, "lfs" if there.lfs else "regular", "deleted"))
    return sorted(plan, key=lambda file: file.path)


def _same(local: Path, size: int, there: RepoFile) -> bool:
    """The Hub names large files by the sha256 of their bytes and the others as git does."""
    if there.size != size:
        return False
    if there.lfs is not None:
        digest = hashlib.sha256()
        with open(local, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest() == there.lfs.sha256
    return git_blob_id(local.read_bytes()) == there.blob_id


def git_blob_id(content: bytes) -> str:
    """The name git gives a file of this content (sha1 over a header and the bytes)."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def upload_mode(local: Path, size: int) -> str:
    """`"lfs"` or `"regular"`, by the Hub's default rules."""
    if size == 0:
        return "regular"
    if local.suffix in LFS_SUFFIXES or size >= LFS_BYTES:
        return "lfs"
    with open(local, "rb") as file:
        return "lfs" if b"\0" in file.read(512) else "regular"


def link_or_copy(source: Path, destination: Path) -> None:
    """
    Puts a file beside others that are to be pushed. Weights are only read: a link spares the copy where links are
    allowed.

    Args:
        source (`Path`): The file.
        destination (`Path`): Where to; its folder is made if there is none.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".safetensors":
        try:
            os.symlink(source.resolve(), destination)
            return
        except OSError:
            pass
    shutil.copyfile(source, destination)
