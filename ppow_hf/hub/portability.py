# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Which options of a drafter each engine computes: what is not portable is refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..drafters import Eagle3DrafterConfig
from .layer_ids import engine_default

FORMATS = ("eagle", "sglang", "vllm", "speculators")


@dataclass(frozen=True)
class Limit:
    """
    An option that some formats cannot express or their engines do not compute.

    Args:
        used (`Callable`): Whether a configuration uses the option.
        option (`str`): How to name it.
        reasons (`dict[str, str]`): Why, for every format that has no place for it.
    """

    used: Callable[[Eagle3DrafterConfig], bool]
    option: str
    reasons: dict[str, str]


def _custom_layers(config: Eagle3DrafterConfig) -> bool:
    layers = config.target_num_hidden_layers
    return layers is None or config.aux_layer_ids != engine_default(layers)


_EAGLE = "the EAGLE repository's code"
_LIMITS = (
    Limit(
        lambda c: c.norm_before_residual,
        "`norm_before_residual`",
        {"eagle": f"{_EAGLE} starts the residual from the raw state", "sglang": "SGLang starts it from the raw state"},
    ),
    Limit(lambda c: c.norm_before_fc, "`norm_before_fc`", {"eagle": f"{_EAGLE} has no such norm"}),
    Limit(lambda c: c.fc_norm, "`fc_norm`", {"eagle": f"{_EAGLE} has no such norms"}),
    Limit(lambda c: c.norm_output, "`norm_output`", {"eagle": f"{_EAGLE} feeds back the state before the norm"}),
    Limit(
        lambda c: c.attention_bias,
        "`attention_bias`",
        {"eagle": f"{_EAGLE} has no such bias", "sglang": "SGLang's drafter has no bias in query, key and value"},
    ),
    Limit(
        lambda c: c.mlp_bias,
        "`mlp_bias`",
        {"eagle": f"{_EAGLE} has no such bias", "sglang": "SGLang's drafter has no bias in the MLP"},
    ),
    Limit(
        lambda c: c.num_hidden_layers > 1,
        "more than one layer",
        {"eagle": f"{_EAGLE} has one layer", "sglang": "SGLang norms further layers by other weights"},
    ),
    Limit(
        _custom_layers,
        "`aux_layer_ids` other than the default (or a target whose number of layers is not recorded)",
        {"eagle": f"{_EAGLE} always reads layers 2, n // 2 and n - 3"},
    ),
    Limit(
        lambda c: c.aux_layer_ids[0] == 0,
        "the embedding output (0) in `aux_layer_ids`",
        {"sglang": "SGLang numbers outputs of layers, and the embedding is none"},
    ),
    Limit(
        lambda c: len(c.aux_layer_ids) * c.target_hidden_size == c.hidden_size,
        "features as wide as the drafter",
        dict.fromkeys(("eagle", "sglang"), "the engine tells features from drafter states by their width"),
    ),
    Limit(
        lambda c: c.head_dim * c.num_attention_heads != c.hidden_size,
        "`head_dim` other than hidden_size / num_attention_heads",
        {"eagle": f"{_EAGLE} asserts that they agree"},
    ),
    Limit(
        lambda c: c.rope_parameters.get("rope_type", "default") != "default",
        "scaled RoPE",
        {"eagle": f"{_EAGLE} ignores `rope_theta` together with `rope_scaling`"},
    ),
    Limit(
        lambda c: not c.shares_target_embedding,
        "`target_hidden_size` other than `hidden_size`",
        {"speculators": "speculators takes both to be the same"},
    ),
    Limit(
        lambda c: c.hidden_act != "silu",
        "`hidden_act` other than silu",
        dict.fromkeys(FORMATS, "the engines compute SiLU only"),
    ),
)


def check_portable(config: Eagle3DrafterConfig, export_format: str) -> None:
    """
    Refuses a drafter that an engine would load and compute otherwise.

    Args:
        config ([`Eagle3DrafterConfig`]): The drafter's.
        export_format (`str`): One of `FORMATS`.

    Raises:
        ValueError: Naming every option that is in the way, why, and the formats that take the drafter.
    """
    found = [limit for limit in _LIMITS if limit.used(config)]
    problems = [
        f"{limit.option} ({limit.reasons[export_format]})" for limit in found if export_format in limit.reasons
    ]
    if not problems:
        return
    others = [name for name in FORMATS if not any(name in limit.reasons for limit in found)]
    advice = f"These formats take it: {', '.join(others)}." if others else "No format takes it."
    raise ValueError(f"This drafter cannot be exported as {export_format!r}: {'; '.join(problems)}. {advice}")
