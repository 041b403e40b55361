# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""RoPE fields of a config.json: the old pair `rope_theta`/`rope_scaling` and the newer `rope_parameters`."""

from __future__ import annotations

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .exchange_report import ExchangeReport

# What the engines and the training codes compute with where a checkpoint says nothing, whatever the target uses.
DEFAULT_THETA = 10000.0
_ALIASES = {"su": "longrope", "mrope": "default"}
_READABLE = ("default", *(name for name in ROPE_INIT_FUNCTIONS if name != "proportional"))


def read_rope(config: dict, report: ExchangeReport) -> dict:
    """
    RoPE parameters of a foreign checkpoint.

    Args:
        config (`dict`): Its config.json, or the part that describes the layers.
        report ([`ExchangeReport`]): Told what was missing.

    Returns:
        `dict`: As in `Eagle3DrafterConfig.rope_parameters`.

    Raises:
        ValueError: If the fields contradict each other or name a RoPE this library does not compute.
    """
    new = config.get("rope_parameters") or {}
    if new and all(isinstance(value, dict) for value in new.values()):
        if "full_attention" not in new:
            raise ValueError(f"config.json: `rope_parameters` has no entry for full attention, only {sorted(new)}.")
        report.note("Of the RoPE parameters per kind of attention, those of full attention were taken.")
        new = new["full_attention"]
    old = config.get("rope_scaling") or {}
    thetas = {source["rope_theta"] for source in (new, config, old) if source.get("rope_theta") is not None}
    if len(thetas) > 1:
        raise ValueError(
            f"config.json gives several values for `rope_theta` ({', '.join(str(t) for t in sorted(thetas))}): "
            "correct it, or pass `rope_parameters`."
        )
    parameters = {**old, **new}
    kind = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters.pop("type", None)
    if parameters.pop("mrope_section", None) is not None:
        report.note("`mrope_section` was left out: for text, all its position ids are the same and it has no effect.")
    kind = _ALIASES.get(kind, kind)
    if kind not in _READABLE:
        raise ValueError(f"config.json: RoPE type {kind!r} is not one of {', '.join(_READABLE)}.")
    for source in (parameters, config):
        if source.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise ValueError(
                f"config.json: `partial_rotary_factor`={source['partial_rotary_factor']}, but EAGLE-3 drafters rotate "
                "whole heads."
            )
    parameters.pop("partial_rotary_factor", None)
    theta = thetas.pop() if thetas else None
    if theta is None:
        theta = DEFAULT_THETA
        report.note(
            f"config.json has no `rope_theta`: took {DEFAULT_THETA:.0f}, which is what the EAGLE-3 training code uses "
            "whatever the target's theta is (the official Llama 3 drafters are trained so)."
        )
    if kind in ("longrope", "yarn", "dynamic", "llama3") and "original_max_position_embeddings" not in parameters:
        original = config.get("original_max_position_embeddings")
        if original is not None:
            parameters["original_max_position_embeddings"] = original
    return {"rope_type": kind, **parameters, "rope_theta": float(theta)}


def write_rope(parameters: dict) -> dict:
    """
    RoPE fields that old and new engines read alike.

    Args:
        parameters (`dict`): `Eagle3DrafterConfig.rope_parameters`.

    Returns:
        `dict`: `rope_theta` and `rope_scaling` (older readers) and `rope_parameters` (transformers 5 and later).
    """
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    return {
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": None if parameters.get("rope_type", "default") == "default" else scaling,
        "rope_parameters": dict(parameters),
    }
