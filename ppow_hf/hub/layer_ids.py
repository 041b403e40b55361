# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Which target features a checkpoint reads: the two numberings that are in use, converted both ways.

This library, vLLM and speculators say `k` for `hidden_states[k]`, the residual stream *entering* layer `k`
(`"input"`). SGLang and SpecForge say `k` for the *output* of layer `k`, which is `hidden_states[k + 1]` (`"output"`).
The defaults of all of them name the same tensors; explicit lists differ by one.
"""

from __future__ import annotations

from ..drafters.target_features import check_layer_ids
from .exchange_report import ExchangeReport

CONVENTIONS = ("auto", "input", "output")
IDS_FIELD = "eagle_aux_hidden_state_layer_ids"


def engine_default(num_hidden_layers: int) -> list[int]:
    """The layers every engine reads when a checkpoint names none, in the `"input"` numbering."""
    n = num_hidden_layers
    return [2, n // 2, n - 3]


def read_layer_ids(
    config: dict, num_hidden_layers: int | None, report: ExchangeReport, convention: str = "auto"
) -> list[int]:
    """
    The feature layers of a foreign checkpoint, in this library's numbering.

    Args:
        config (`dict`): Its config.json.
        num_hidden_layers (`int`, *optional*): Layers of the target, where it is known.
        report ([`ExchangeReport`]): Told about every conversion.
        convention (`str`, *optional*, defaults to `"auto"`): `"input"` or `"output"` where the numbering is known;
            `"auto"` takes top-level lists (vLLM, speculators) as `"input"` and lists inside `eagle_config` (SGLang,
            SpecForge) as `"output"`.

    Returns:
        `list[int]`: Indices into the target's `hidden_states`, ascending.

    Raises:
        ValueError: If no layers can be told, or two lists contradict each other.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"`layer_id_convention` must be one of {', '.join(CONVENTIONS)}, got {convention!r}.")
    top = config.get(IDS_FIELD) or None
    nested = (config.get("eagle_config") or {}).get(IDS_FIELD) or None
    if top is None and nested is None:
        return _default_ids(num_hidden_layers, report)
    found = _id_list(top if top is not None else nested)
    default = engine_default(num_hidden_layers) if num_hidden_layers is not None else None
    default_outputs = [k - 1 for k in default] if default else None
    if convention == "auto" and top is not None:
        if nested is not None and _id_list(nested) not in ([k - 1 for k in found], found):
            raise ValueError(
                f"config.json names two sets of feature layers: `{IDS_FIELD}`={top} and, inside `eagle_config`, "
                f"{nested}, which is neither the same nor one lower. Say which numbering is meant with "
                "`layer_id_convention` ('input' or 'output', applied to the former)."
            )
        convention = "input"
        if found == default_outputs:
            report.note(
                f"Feature layers {found} were read as `hidden_states` indices, as vLLM does. They are the default of "
                "SGLang and SpecForge in their own numbering: if drafts are rarely accepted, import again with "
                "layer_id_convention='output'."
            )
    elif convention == "auto" and found == default:
        convention = "input"
        report.note(f"Feature layers {found} inside `eagle_config` are vLLM's default for this target: read as such.")
    elif convention == "auto":
        convention = "output"
        why = "SpecForge's default for this target" if found == default_outputs else "SGLang's meaning of this field"
        report.note(
            f"Feature layers {found} inside `eagle_config` were read as layer outputs ({why}), that is "
            f"`aux_layer_ids`={[k + 1 for k in found]}. If the checkpoint was made for vLLM, import it with "
            "layer_id_convention='input'."
        )
    ids = sorted({k + (convention == "output") for k in found})
    if len(ids) != len(found) or ids != [k + (convention == "output") for k in found]:
        report.note(f"Feature layers {found} were sorted and made unique, as the engines do: {ids}.")
    if num_hidden_layers is not None:
        check_layer_ids(ids, num_hidden_layers)
    return ids


def _default_ids(num_hidden_layers: int | None, report: ExchangeReport) -> list[int]:
    if num_hidden_layers is None:
        raise ValueError(
            "config.json names no feature layers, so they are the default for its target, whose number of layers is "
            "not known: pass `target` (a model, its config, folder or Hub id), or `aux_layer_ids`."
        )
    ids = engine_default(num_hidden_layers)
    if ids != sorted(set(ids)) or ids[-1] >= num_hidden_layers:
        raise ValueError(
            f"config.json names no feature layers, and the default {ids} does not work for a target of "
            f"{num_hidden_layers} layers: pass `aux_layer_ids`."
        )
    report.note(
        f"config.json names no feature layers: took the default for {num_hidden_layers} layers, `aux_layer_ids`={ids}."
    )
    return ids


def _id_list(value) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(k, int) and not isinstance(k, bool) for k in value):
        raise ValueError(f"config.json: `{IDS_FIELD}` must be a list of integers, got {value!r}.")
    return value


def flat_layer_fields(layer_ids: list[int], num_hidden_layers: int | None, both: bool = True) -> dict:
    """
    The fields of a flat config.json that name feature layers.

    With default layers nothing is written: then every engine agrees. Custom layers are written in both numberings, in
    the field that each engine reads first.

    Args:
        layer_ids (`list[int]`): In this library's numbering.
        num_hidden_layers (`int`, *optional*): Layers of the target; without it layers count as custom.
        both (`bool`, *optional*, defaults to `True`): Write SGLang's field too. It cannot name the embeddings (0).
    """
    if num_hidden_layers is not None and layer_ids == engine_default(num_hidden_layers):
        return {}
    fields = {IDS_FIELD: list(layer_ids), "eagle_config": {"use_aux_hidden_state": True}}
    if both and layer_ids[0] > 0:
        fields["eagle_config"][IDS_FIELD] = [k - 1 for k in layer_ids]
    if len(layer_ids) != 3:
        fields["num_aux_hidden_states"] = len(layer_ids)
    return fields
