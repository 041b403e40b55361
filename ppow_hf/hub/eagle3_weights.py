# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Weights of foreign EAGLE-3 checkpoints under this library's names, each accounted for, and back."""

from __future__ import annotations

import re

import torch

from ..drafters import Eagle3Drafter, Eagle3DrafterConfig, check_vocabulary_maps, vocabulary_maps
from .exchange_report import ExchangeReport

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
# Kept in memory by speculators for training, and no part of the drafter.
_TRAINING_ONLY = ("verifier_lm_head.", "verifier_norm.")
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_REASONS = {
    ".q_norm.": "normed queries and keys (the Qwen3 form) are not part of this architecture",
    ".k_norm.": "normed queries and keys (the Qwen3 form) are not part of this architecture",
    "_scale": "quantised weights are not read: import the checkpoint they were made from",
    "fc.bias": "`fc` has no bias here",
    "o_proj.bias": "the attention's output projection has no bias here, and this one is not zero",
    "embed_layernorm.": "an EAGLE-1 variant, not EAGLE-3",
}


def own_names(weights: dict[str, torch.Tensor], report: ExchangeReport) -> dict[str, torch.Tensor]:
    """
    Renames foreign weights.

    Args:
        weights (`dict[str, torch.Tensor]`): With the first layer as `midlayer.` (flat form) or `layers.0.`
            (speculators, later engines) and further ones as `layers.1.`, ...
        report ([`ExchangeReport`]): Told what was left out.

    Raises:
        ValueError: If the weights are not those of an EAGLE-3 drafter, or one is there twice.
    """
    _check_kind(weights)
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if name.startswith(_TRAINING_ONLY):
            report.note(f"`{name.split('.')[0]}` was left out: it belongs to the target and is only used in training.")
            continue
        if name.endswith("rotary_emb.inv_freq"):
            continue  # Computed from the configuration; `check_frequencies` compares.
        if name.endswith("self_attn.o_proj.bias") and not tensor.any():
            report.note(f"`{name}` was left out: it is zero.")
            continue
        found = _LAYER.fullmatch(name)
        own = name
        if found:
            index = int(found[1])
            own = f"midlayer.{found[2]}" if index == 0 else f"layers.{index - 1}.{found[2]}"
        if own in renamed:
            raise ValueError(f"The checkpoint holds `{own}` twice, as `midlayer.` and as `layers.0.`: it is damaged.")
        renamed[own] = tensor
    return renamed


def check_frequencies(weights: dict[str, torch.Tensor], config: Eagle3DrafterConfig, report: ExchangeReport) -> None:
    """
    Compares rotary frequencies that old checkpoints store with those of the configuration.

    Raises:
        ValueError: If they differ: the weights were trained with another `rope_theta`.
    """
    stored = [tensor for name, tensor in weights.items() if name.endswith("rotary_emb.inv_freq")]
    theta, width = config.rope_parameters["rope_theta"], config.head_dim
    expected = 1.0 / theta ** (torch.arange(0, width, 2).double() / width)
    for tensor in stored if config.rope_parameters["rope_type"] == "default" else ():
        # Half precision rounds to three digits, another theta changes the lowest frequency by far more.
        if tensor.shape != expected.shape or not torch.allclose(tensor.double(), expected, rtol=1e-2, atol=1e-6):
            found = float(tensor.double()[-1]) ** (-width / (width - 2)) if width > 2 and tensor.numel() > 1 else None
            raise ValueError(
                f"The checkpoint's stored rotary frequencies are not those of `rope_theta`={theta:g}"
                + (f" but of about {found:.4g}: pass `rope_parameters` with that." if found else ".")
            )
    if stored:
        report.note("Stored rotary frequencies were left out: they follow from `rope_theta`.")


def _check_kind(weights: dict[str, torch.Tensor]) -> None:
    names = weights.keys()
    if any(name.startswith("model.layers.") for name in names) and "fc.weight" not in names:
        raise ValueError(
            "This checkpoint is a whole language model, not an EAGLE-3 drafter. A small one can draft as it is: "
            "`AutoDrafter.from_pretrained` loads it, no import is needed."
        )
    fc = weights.get("fc.weight")
    if (
        fc is not None
        and fc.ndim == 2
        and fc.shape[1] == 2 * fc.shape[0]
        and not any("hidden_norm" in n for n in names)
    ):
        raise ValueError(
            "This checkpoint is an EAGLE-1 or EAGLE-2 head (its `fc` joins an embedding and one feature, and there is "
            "no `hidden_norm`), another architecture than EAGLE-3."
        )
    if fc is None and not any(name.startswith(("midlayer.", "layers.0.")) for name in names):
        some = ", ".join(sorted(names)[:4]) or "none at all"
        raise ValueError(f"This checkpoint is not an EAGLE-3 drafter: it has no `fc.weight`. Its weights: {some}, ...")


def one_dtype(weights: dict[str, torch.Tensor], report: ExchangeReport) -> tuple[dict[str, torch.Tensor], torch.dtype]:
    """Brings all floating-point weights to one dtype, the narrowest that holds every value exactly."""
    dtype = None
    for name, tensor in weights.items():
        if name in ("d2t", "t2d"):
            continue
        if tensor.dtype not in _FLOATS:
            raise ValueError(
                f"`{name}` is stored as {str(tensor.dtype).removeprefix('torch.')}: quantised weights are not read. "
                "Import the checkpoint they were made from."
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"`{name}` holds values that are not finite: the checkpoint is damaged.")
        dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
    mixed = {t.dtype for name, t in weights.items() if name not in ("d2t", "t2d")} - {dtype}
    if mixed:
        narrow = ", ".join(sorted(str(d).removeprefix("torch.") for d in mixed))
        report.note(
            f"Weights in {narrow} were widened to {str(dtype).removeprefix('torch.')}, which changes no value."
        )
    same = {name: t if name in ("d2t", "t2d") else t.to(dtype) for name, t in weights.items()}
    return same, dtype or torch.float32


def own_vocabulary(weights: dict[str, torch.Tensor], config: Eagle3DrafterConfig, report: ExchangeReport) -> None:
    """
    Completes and checks `d2t` and `t2d`, in place.

    Raises:
        ValueError: If they are missing, contradict each other or do not fit the configuration.
    """
    d2t, t2d = weights.get("d2t"), weights.get("t2d")
    if config.draft_vocab_size == config.vocab_size:
        for name, tensor, neutral in (("d2t", d2t, 0), ("t2d", t2d, 1)):
            if tensor is None:
                continue
            if tensor.shape != (config.vocab_size,) or (tensor != neutral).any():
                raise ValueError(
                    f"`{name}` describes a reduced draft vocabulary, but `draft_vocab_size` is the whole "
                    f"{config.vocab_size}: config.json does not belong to these weights."
                )
            del weights[name]
            report.note(f"`{name}` was left out: it maps every token to itself.")
        return
    if d2t is None and t2d is None:
        raise ValueError(
            f"Missing weights: `d2t` and `t2d`. With a draft vocabulary of {config.draft_vocab_size} of "
            f"{config.vocab_size} tokens, one of them must say which tokens these are."
        )
    for name, tensor, size in (("d2t", d2t, config.draft_vocab_size), ("t2d", t2d, config.vocab_size)):
        if tensor is not None and tensor.shape != (size,):
            raise ValueError(f"`{name}` has shape {tuple(tensor.shape)} instead of {(size,)}.")
        if tensor is not None and tensor.dtype.is_floating_point:
            raise ValueError(f"`{name}` must hold integers, not {str(tensor.dtype).removeprefix('torch.')}.")
    if t2d is not None:
        t2d = t2d.bool()
    if d2t is None:
        ids = t2d.nonzero().squeeze(-1)
        if len(ids) != config.draft_vocab_size:
            raise ValueError(f"`t2d` keeps {len(ids)} tokens, but `draft_vocab_size` is {config.draft_vocab_size}.")
        d2t = vocabulary_maps(ids, config.vocab_size)[0]
        report.note("`d2t` was missing: made from `t2d`, whose kept tokens are in the order of the rows of `lm_head`.")
    d2t = d2t.long()
    if t2d is None:
        t2d = vocabulary_maps(d2t + torch.arange(len(d2t)), config.vocab_size)[1]
        report.note("`t2d` was missing: made from `d2t`.")
    check_vocabulary_maps(d2t, t2d)
    weights["d2t"], weights["t2d"] = d2t, t2d


def check_names_and_shapes(weights: dict[str, torch.Tensor], config: Eagle3DrafterConfig) -> None:
    """
    Compares weights with what the configuration calls for.

    Raises:
        ValueError: Naming every weight that is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in Eagle3Drafter(config).state_dict().items()}
    problems = []
    missing = sorted(wanted.keys() - weights.keys())
    if missing:
        problems.append("missing weights " + ", ".join(f"`{name}`" for name in missing))
    unknown = sorted(weights.keys() - wanted.keys())
    if unknown:
        problems.append("unknown weights " + ", ".join(f"`{name}`" for name in unknown))
    reasons = {reason for name in unknown for part, reason in _REASONS.items() if part in name}
    for name in sorted(wanted.keys() & weights.keys()):
        if tuple(weights[name].shape) != wanted[name]:
            problems.append(f"`{name}` has shape {tuple(weights[name].shape)} instead of {wanted[name]}")
    if problems:
        why = f" ({'; '.join(sorted(reasons))})" if reasons else ""
        raise ValueError(
            f"The checkpoint does not fit its config.json: {'; '.join(problems)}{why}. Nothing was imported, because "
            "a drafter with weights left out or random would run, and be slower than none."
        )


def foreign_names(weights: dict[str, torch.Tensor], first_layer: str) -> dict[str, torch.Tensor]:
    """
    This library's weights under the names of other projects.

    Args:
        weights (`dict[str, torch.Tensor]`): State dict of an [`Eagle3Drafter`].
        first_layer (`str`): `"midlayer"` (flat form) or `"layers.0"` (speculators).
    """
    renamed = {}
    for name, tensor in weights.items():
        found = _LAYER.fullmatch(name)
        if found:
            name = f"layers.{int(found[1]) + 1}.{found[2]}"
        elif name.startswith("midlayer."):
            name = f"{first_layer}.{name.removeprefix('midlayer.')}"
        renamed[name] = tensor
    return renamed
