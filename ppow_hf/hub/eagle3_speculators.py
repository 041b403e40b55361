# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""config.json in the form of vLLM's `speculators` library."""

from __future__ import annotations

from ..drafters import Eagle3Drafter, Eagle3DrafterConfig
from .eagle3_fields import (
    FLAGS,
    OWN_FIELD,
    own_fields,
    read_draft_vocab_size,
    read_layer_fields,
    read_target_fields,
    unknown_fields,
    write_layer_fields,
)
from .exchange_report import ExchangeReport
from .layer_ids import IDS_FIELD, read_layer_ids
from .target_facts import TargetFacts, architectures_of, model_type_of

# The release whose fields and names are written.
FORMAT_VERSION = "0.9.0"
_FIELDS = frozenset(
    {"speculators_model_type", "speculators_version", "speculators_config", "transformer_layer_config",
     "embed_requires_grad", "has_no_defaults_at_init"}
)  # fmt: skip


def is_speculators(config: dict) -> bool:
    """Whether a config.json is in the speculators form."""
    return "speculators_model_type" in config or "speculators_config" in config


def read_speculators_config(
    config: dict,
    weights: dict,
    target: TargetFacts | None,
    report: ExchangeReport,
    layer_id_convention: str = "auto",
    overrides: dict | None = None,
) -> Eagle3DrafterConfig:
    """
    This library's configuration of a drafter in the speculators form. Arguments as for `read_flat_config`.

    Raises:
        ValueError: If it is another algorithm than EAGLE-3 or a field is missing.
    """
    overrides = overrides or {}
    algorithm = config.get("speculators_model_type") or (config.get("speculators_config") or {}).get("algorithm")
    if algorithm != "eagle3":
        raise ValueError(f"This speculators checkpoint is a {algorithm!r} drafter; only 'eagle3' can be imported.")
    layers = config.get("transformer_layer_config")
    if not isinstance(layers, dict):
        raise ValueError("config.json lacks `transformer_layer_config`, the description of the drafter's layers.")
    if "rope_parameters" in overrides:
        layers = {**layers, "rope_parameters": overrides["rope_parameters"], "rope_theta": None, "rope_scaling": None}
    values = read_layer_fields(layers, report)
    values["draft_vocab_size"] = read_draft_vocab_size(config, values, weights, report)
    for name in FLAGS:
        values[name] = bool(config.get(name))
    if config.get("norm_before_residual") is None and "norm_before_residual" not in overrides:
        # speculators' class says false and vLLM's reader says true: guessing would be wrong half of the time.
        raise ValueError(
            "config.json lacks `norm_before_residual`, which speculators takes as false and vLLM as true. Find out "
            "how the drafter was trained and pass norm_before_residual=True or False."
        )
    values.update(_verifier_fields(config))
    values.update(read_target_fields(config, target))
    values["target_hidden_size"] = config.get("target_hidden_size") or (target.config.hidden_size if target else None)
    if overrides.get("aux_layer_ids") is None:
        known = values.get("target_num_hidden_layers")
        values["aux_layer_ids"] = read_layer_ids(config, known, report, layer_id_convention)
    unknown_fields(config, _FIELDS, report)
    unknown_fields(layers, frozenset(), report)
    return Eagle3DrafterConfig(**{**values, **overrides})


def _verifier_fields(config: dict) -> dict:
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    fields = {
        "target_name_or_path": verifier.get("name_or_path"),
        "target_model_type": model_type_of(verifier.get("architectures") or []),
    }
    return {name: value for name, value in fields.items() if value}


def speculators_config(
    drafter: Eagle3Drafter, dtype: str, target: TargetFacts | None, speculative_tokens: int
) -> dict:
    """
    A drafter's config.json in the speculators form, every flag explicit.

    Args:
        drafter ([`Eagle3Drafter`]): The drafter.
        dtype (`str`): Dtype of the weights, such as `"bfloat16"`.
        target ([`TargetFacts`], *optional*): Its target.
        speculative_tokens (`int`): Draft tokens per window that vLLM takes from this file.

    Raises:
        ValueError: If the name of the target is not known.
    """
    config = drafter.config
    name = config.target_name_or_path or (target.name if target else None)
    if not name:
        raise ValueError(
            "The speculators form names its target, and this drafter has none on record: pass `target` with its Hub "
            "id."
        )
    layers = {"model_type": "llama", **write_layer_fields(config, dtype)}
    if len(config.aux_layer_ids) != 3:
        layers["num_aux_hidden_states"] = len(config.aux_layer_ids)
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": FORMAT_VERSION,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": speculative_tokens,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "verifier": {
                "name_or_path": name,
                "architectures": target.architectures if target else architectures_of(config.target_model_type),
            },
        },
        "transformer_layer_config": layers,
        "draft_vocab_size": config.draft_vocab_size,
        **{flag: getattr(config, flag) for flag in FLAGS},
        "embed_requires_grad": False,
        "target_hidden_size": None,
        IDS_FIELD: list(config.aux_layer_ids),
        "tie_word_embeddings": False,
        "dtype": dtype,
        OWN_FIELD: own_fields(drafter),
    }
