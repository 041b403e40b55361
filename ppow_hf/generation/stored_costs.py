# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Where a measured [`CostModel`] is kept, and what names the machine and models it holds for."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from transformers.utils import logging

from ..drafters.prepacking import is_prepacked
from ..whole_files import write_text_whole
from .cost_model import COST_MODEL_FILE, CostModel, is_plausible

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..drafters import DrafterModel

logger = logging.get_logger(__name__)

# Part of what names a stored cost model: raise it whenever drafting or the work around it becomes cheaper or dearer.
_REVISION = 5
# Fields of a target's configuration that its costs depend on.
_SIZES = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_experts_per_tok",
    "vocab_size",
)
# Folder within a drafter's for what decoding keeps there, as the Hub's own downloads have one.
_OWN_CACHE = ".cache/ppow_hf"


@lru_cache
def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _identity(target: PreTrainedModel, drafter: DrafterModel) -> str:
    """Short hash of what determines the costs: our own code, both architectures and their sizes, not their weights."""
    text_config = target.config.get_text_config()
    facts = [getattr(text_config, name, None) for name in _SIZES]
    # Experts and key-value heads show in the number of parameters.
    facts += [_REVISION, text_config._attn_implementation, sum(p.numel() for p in target.parameters())]
    facts += [type(drafter).__name__, sum(p.numel() for p in drafter.parameters()), list(drafter.feature_layer_ids)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _is_compiled(model: PreTrainedModel) -> bool:
    """Whether `torch.compile` has been there, on the module or on its forward pass. Private marks of torch's."""
    return model._compiled_call_impl is not None or hasattr(model.forward, "_torchdynamo_orig_callable")


def cost_model_key(target: PreTrainedModel, drafter: DrafterModel) -> str:
    """
    Names the circumstances a cost model is valid in: device, dtypes, library versions, the sizes of both models, and
    how the target computes attention.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
    """
    device = target.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} {_cpu_name()} x{torch.get_num_threads()}"
    dtypes = f"{str(target.dtype).removeprefix('torch.')}/{str(drafter.dtype).removeprefix('torch.')}"
    if is_prepacked(target):
        dtypes += ", target prepacked"
    if _is_compiled(target):
        dtypes += ", target compiled"
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    return " | ".join((name, dtypes, versions, _identity(target, drafter)))


def _folder(drafter: DrafterModel) -> Path | None:
    """The folder that a drafter was loaded from."""
    source = getattr(drafter, "name_or_path", None) or drafter.config._name_or_path
    return Path(source) if source and os.path.isdir(source) else None


def _in_cache() -> Path:
    from ..targets import cache_dir

    return cache_dir() / COST_MODEL_FILE


def find_cost_model(target: PreTrainedModel, drafter: DrafterModel) -> CostModel:
    """
    The cost model of these models on this machine: remembered, stored beside the drafter or in the user's cache, or
    measured now (about a second for a small model) and stored in both for the next time.

    Beside a drafter they lie in `.cache/ppow_hf/`, which tells Git to leave it out and is not published. Its
    `cost_model.json` itself, which is published and stated on its card, is written only for who asks for it, with
    `ppow calibrate --drafter FOLDER` or [`CostModel.save`], and goes before all others. The user's cache knows costs
    by the sizes of the models and not by a path, so that the drafters a training writes one after another, and copies
    of them, are measured once, all together; the folder knows them where the cache is gone, as in a container.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.

    Returns:
        [`CostModel`].
    """
    key = cost_model_key(target, drafter)
    remembered = drafter.__dict__.setdefault("_cost_models", {})
    if key in remembered:
        return remembered[key]
    found = stored_cost_model(target, drafter)
    if found is None:
        found = CostModel.measure(target, drafter)
        kept = _store(found, drafter) if found.key else "Not stored: they are measured again in the next process."
        logger.warning(
            f"Measured the costs of this drafter on this machine: draft step {found.gamma:.3f}, verification of 4 "
            f"tokens {found.verify(4):.3f}, overhead {found.overhead:.3f} of a target step of "
            f"{1000 * found.target_step_seconds:.1f} ms. {kept}"
        )
    remembered[key] = found
    return found


def stored_cost_model(target: PreTrainedModel, drafter: DrafterModel) -> CostModel | None:
    """
    The cost model of these models on this machine, if one is stored beside the drafter or in the user's cache. A file
    that cannot be read is passed over with a warning, and so are costs that cannot be; nothing is measured.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter, in the dtype that it decodes in.
    """
    key = cost_model_key(target, drafter)
    folder, places = _folder(drafter), [_in_cache()]
    if folder is not None:
        places = [folder / COST_MODEL_FILE, *places, folder / _OWN_CACHE / COST_MODEL_FILE]
    for place in places:
        try:
            found = CostModel.load(place, key)
        except (ValueError, OSError) as error:
            logger.warning(f"Ignoring a stored cost model: {error}")
            continue
        if found is not None and is_plausible(found.verify_curve):
            return found
        if found is not None:
            logger.warning(
                f"Ignoring the cost model stored in `{place}`: it was measured while something else kept the machine "
                "busy, so that verifying n tokens seems to cost more than n + 1 plain target steps."
            )
    return None


def _store(cost_model: CostModel, drafter: DrafterModel) -> str:
    """Stores costs in the user's cache and, for a drafter from a folder, beside it. Returns in words where."""
    folder, stored = _folder(drafter), []
    # Either place may be read-only: the costs count all the same, and what is said tells where they are.
    with suppress(OSError):
        stored.append(f"`{cost_model.save(_in_cache())}`")
    if folder is not None:
        with suppress(OSError):
            stored.append(f"`{cost_model.save(folder / _OWN_CACHE)}`")
            write_text_whole(folder / _OWN_CACHE / ".gitignore", "*\n")
    if not stored:
        return "They could not be stored; set PPOW_HF_CACHE to a writable folder."
    return f"Stored in {' and '.join(stored)}."
