# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""config.json in the flat form of SafeAILab/EAGLE, SpecForge and SGLang, which vLLM reads too."""

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
from .layer_ids import flat_layer_fields, read_layer_ids
from .target_facts import TargetFacts

ARCHITECTURE = "LlamaForCausalLMEagle3"


def read_flat_config(
    config: dict,
    weights: dict,
    target: TargetFacts | None,
    report: ExchangeReport,
    layer_id_convention: str = "auto",
    overrides: dict | None = None,
) -> Eagle3DrafterConfig:
    """
    This library's configuration of a drafter in the flat form.

    Args:
        config (`dict`): Its config.json.
        weights (`dict[str, torch.Tensor]`): Its weights, under this library's names.
        target ([`TargetFacts`], *optional*): Its target.
        report ([`ExchangeReport`]): Told what was filled in, converted or left out.
        layer_id_convention (`str`, *optional*, defaults to `"auto"`): As in [`read_layer_ids`].
        overrides (`dict`, *optional*): Fields of the result that the caller knows better.
    """
    overrides = overrides or {}
    if "rope_parameters" in overrides:
        config = {**config, "rope_parameters": overrides["rope_parameters"], "rope_theta": None, "rope_scaling": None}
    values = read_layer_fields(config, report)
    values["draft_vocab_size"] = read_draft_vocab_size(config, values, weights, report)
    nested = config.get("eagle_config") or {}
    for name in FLAGS:
        values[name] = bool(config.get(name) or nested.get(name))
    if values["norm_output"]:
        report.note(
            "`norm_output` was read as vLLM and SGLang read it: the normed state is fed back. SpecForge writes the "
            "same field for drafters trained without that: then import with norm_output=False."
        )
    values.update(read_target_fields(config, target))
    values["target_hidden_size"] = config.get("target_hidden_size") or (target.config.hidden_size if target else None)
    if overrides.get("aux_layer_ids") is None:
        layers = values.get("target_num_hidden_layers")
        values["aux_layer_ids"] = read_layer_ids(config, layers, report, layer_id_convention)
    unknown_fields(config, set(), report)
    return Eagle3DrafterConfig(**{**values, **overrides})


def flat_config(drafter: Eagle3Drafter, dtype: str, both_numberings: bool) -> dict:
    """
    A drafter's config.json in the flat form.

    Args:
        drafter ([`Eagle3Drafter`]): The drafter.
        dtype (`str`): Dtype of the weights, such as `"bfloat16"`.
        both_numberings (`bool`): Whether custom feature layers are written for SGLang too.
    """
    config = drafter.config
    values = {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        **write_layer_fields(config, dtype),
        "draft_vocab_size": config.draft_vocab_size,
        # Always there: where it is missing, engines disagree about it.
        "norm_before_residual": config.norm_before_residual,
        **flat_layer_fields(config.aux_layer_ids, config.target_num_hidden_layers, both_numberings),
        OWN_FIELD: own_fields(drafter),
    }
    # Only where they are on: a false `norm_output` means something else to SpecForge than its absence.
    values.update({name: True for name in FLAGS[1:] if getattr(config, name)})
    if not config.shares_target_embedding:
        values["target_hidden_size"] = config.target_hidden_size
    return values
