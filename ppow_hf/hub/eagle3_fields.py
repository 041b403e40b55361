# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Fields of config.json that every EAGLE-3 form has: sizes, norms, RoPE, token ids, and what identifies the target."""

from __future__ import annotations

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..drafters import DrafterModel, Eagle3DrafterConfig
from ..generation import WindowConfig
from ..generation.drafter_window import stored_window
from .exchange_report import ExchangeReport
from .rope_fields import read_rope, write_rope
from .target_facts import TargetFacts

# Key of what other engines have no field for. They ignore it.
OWN_FIELD = "ppow_hf"
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
# Left out by writers where they equal the defaults of the model class that the file names.
_DEFAULTED = ("rms_norm_eps", "hidden_act", "max_position_embeddings")
_OPTIONAL = ("attention_bias", "mlp_bias", "attention_dropout", "initializer_range")
FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
# Fields that would change the computation, with the values under which they do not, and what they do.
_ALTERING: dict[str, tuple[tuple, str]] = {
    "bias": ((None, False), "a bias in `fc`"),
    "qkv_bias": ((None, False), "biases that `attention_bias` does not announce"),
    "logit_scale": ((None, 1, 1.0), "scaled logits"),
    "quantization_config": ((None,), "quantised weights"),
    "compression_config": ((None,), "quantised weights"),
    "use_aux_norm": ((None, False), "per-feature norms under other names"),
    "parallel_drafting": ((None, False), "several tokens drafted in one pass"),
    "is_causal": ((None, True), "bidirectional attention"),
}
# Known, and without effect on what is computed here.
_HARMLESS = {
    "architectures", "model_type", "draft_vocab_size", "target_hidden_size", "num_hidden_layers", "head_dim",
    "num_key_value_heads", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "mrope_section",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "torch_dtype", "dtype",
    "transformers_version", "pretraining_tp", "auto_map", "_name_or_path", "_attn_implementation",
    "original_max_position_embeddings", "target_vocab_size", "num_lookahead_tokens", "sliding_window", "layer_types",
    "use_sliding_window", "max_window_layers", "eagle_config", "eagle_aux_hidden_state_layer_ids",
    "num_aux_hidden_states", OWN_FIELD,
}  # fmt: skip


def read_layer_fields(config: dict, report: ExchangeReport) -> dict:
    """
    Sizes, norms, RoPE and token ids of a foreign drafter.

    Args:
        config (`dict`): config.json, or the part of it that describes the layers.
        report ([`ExchangeReport`]): Told what was filled in or left out.

    Returns:
        `dict`: Fields of [`Eagle3DrafterConfig`].

    Raises:
        ValueError: If a size is missing or a field asks for what this library does not compute.
    """
    missing = [name for name in _REQUIRED if config.get(name) is None]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(f'`{name}`' for name in missing)}: it is not a drafter's.")
    _refuse_altering(config)
    values = {name: config[name] for name in _REQUIRED}
    values["num_hidden_layers"] = config.get("num_hidden_layers") or 1
    values["num_key_value_heads"] = config.get("num_key_value_heads")
    values["head_dim"] = config.get("head_dim")
    defaults, filled = _class_defaults(config.get("model_type")), []
    for name in _DEFAULTED:
        values[name] = config.get(name)
        if values[name] is None:
            values[name] = getattr(defaults, name)
            filled.append(f"`{name}`={values[name]}")
    if filled:
        report.note(f"config.json lacks {', '.join(filled)}: took the defaults of `{defaults.model_type}`.")
    for name in _OPTIONAL:
        if config.get(name) is not None:
            values[name] = config[name]
    values["rope_parameters"] = read_rope(config, report)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values[name] = config.get(name)
    _note_sliding_window(config, report)
    if config.get("tie_word_embeddings"):
        report.note("`tie_word_embeddings` was taken as false: a drafter's `lm_head` is its own.")
    return values


def _class_defaults(model_type: str | None) -> PreTrainedConfig:
    found = CONFIG_MAPPING[model_type]() if model_type in CONFIG_MAPPING else None
    usable = found is not None and all(hasattr(found, name) for name in _DEFAULTED)
    return found if usable else CONFIG_MAPPING["llama"]()


def _refuse_altering(config: dict) -> None:
    for name, (neutral, effect) in _ALTERING.items():
        if config.get(name) not in neutral:
            raise ValueError(
                f"config.json has `{name}`={config[name]!r} ({effect}), which this library does not compute. Leaving "
                "it out would change what is drafted."
            )
    if (config.get("eagle_config") or {}).get("use_aux_hidden_state") is False:
        raise ValueError(
            "config.json has `eagle_config.use_aux_hidden_state`=false: the drafter reads one hidden state without "
            "`fc`, another architecture than EAGLE-3 here."
        )


def _note_sliding_window(config: dict, report: ExchangeReport) -> None:
    width = config.get("sliding_window")
    used = config.get("use_sliding_window", True) and width
    if "layer_types" in config and not any("sliding" in str(kind) for kind in config["layer_types"] or ()):
        used = False
    if used and (config.get("layer_types") or config.get("use_sliding_window")):
        report.note(
            f"The drafter was made with attention over the last {width} tokens only. Here it attends to all of them: "
            f"the same up to {width} tokens, and not what it was trained for beyond."
        )


def unknown_fields(config: dict, known: set[str] | frozenset[str], report: ExchangeReport) -> None:
    """Notes the fields of a config.json that nothing here reads, so that none is dropped in silence."""
    read = {*_REQUIRED, *_DEFAULTED, *_OPTIONAL, *FLAGS, *_ALTERING, *_HARMLESS, *known}
    standard = set(CONFIG_MAPPING["llama"]().to_dict())
    unknown = sorted(config.keys() - read - standard)
    if unknown:
        report.note(
            f"Fields of config.json that are not known here were left out: {', '.join(f'`{n}`' for n in unknown)}. If "
            "one of them changes what the drafter computes, the import is not faithful."
        )


def read_draft_vocab_size(config: dict, sizes: dict, weights: dict, report: ExchangeReport) -> int:
    """The size of the draft vocabulary, from the file or, where it is silent, from `d2t`."""
    size = config.get("draft_vocab_size")
    if size is not None:
        return size
    if "d2t" in weights:
        report.note(f"config.json lacks `draft_vocab_size`: took {len(weights['d2t'])}, the length of `d2t`.")
        return len(weights["d2t"])
    report.note("config.json lacks `draft_vocab_size` and there is no `d2t`: took the target's whole vocabulary.")
    return sizes["vocab_size"]


def read_target_fields(config: dict, target: TargetFacts | None) -> dict:
    """Which target the drafter is for: the given one, else what an export of this library wrote down."""
    if target is None:
        own = config.get(OWN_FIELD) or {}
        names = ("target_name_or_path", "target_model_type", "target_num_hidden_layers")
        return {name: own[name] for name in names if own.get(name) is not None}
    return {
        "target_name_or_path": target.name,
        "target_model_type": target.config.model_type,
        "target_num_hidden_layers": target.config.num_hidden_layers,
    }


def write_layer_fields(config: Eagle3DrafterConfig, dtype: str) -> dict:
    """Sizes, norms, RoPE and token ids as engines read them, all explicit, RoPE in the old form and the new."""
    values = {name: getattr(config, name) for name in (*_REQUIRED, *_DEFAULTED, *_OPTIONAL)}
    values.update(
        num_hidden_layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        tie_word_embeddings=False,
        use_cache=True,
        torch_dtype=dtype,
        dtype=dtype,
        **write_rope(config.rope_parameters),
    )
    return values


def own_fields(drafter: DrafterModel) -> dict:
    """What only this library reads: which target the drafter is for, and its calibrated window."""
    config = drafter.config
    values = {
        "target_name_or_path": config.target_name_or_path,
        "target_model_type": config.target_model_type,
        "target_num_hidden_layers": config.target_num_hidden_layers,
    }
    window = stored_window(drafter)
    if window != WindowConfig():  # not the one that every drafter begins with
        values["window"] = window.to_dict()
    return {name: value for name, value in values.items() if value is not None}
