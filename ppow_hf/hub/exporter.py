# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Drafters of this library in the forms that SGLang, vLLM, speculators and the EAGLE repository load."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..drafters import AutoDrafter, CausalLMDrafter, DrafterModel, Eagle3Drafter
from ..generation import WindowConfig
from ..generation.drafter_window import stored_window
from .checkpoint_files import carry_files, new_folder, write_checkpoint
from .eagle3_flat import flat_config
from .eagle3_speculators import speculators_config
from .eagle3_weights import foreign_names
from .exchange_report import ExchangeReport
from .layer_ids import IDS_FIELD
from .portability import FORMATS, check_portable
from .target_facts import TargetFacts, target_facts

_ALIASES = {"eagle3": "eagle"}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def export_drafter(
    drafter: DrafterModel | str | os.PathLike,
    output: str | os.PathLike,
    format: str = "eagle",
    *,
    target: PreTrainedModel | PreTrainedConfig | str | os.PathLike | None = None,
    speculative_tokens: int = 5,
) -> ExchangeReport:
    """
    Writes a drafter for another project. Weights are copied bit for bit.

    Args:
        drafter ([`DrafterModel`], `str` or `os.PathLike`): The drafter, its folder or Hub repository.
        output (`str` or `os.PathLike`): Folder to write; must not exist, appears whole or not at all.
        format (`str`, *optional*, defaults to `"eagle"`):
            `"eagle"` (or `"eagle3"`): the subset of the flat form that the EAGLE repository, SpecForge, SGLang and
            vLLM all read. `"sglang"`, `"vllm"`: the flat form with whatever that engine computes. `"speculators"`: the
            form of vLLM's speculators library. A [`CausalLMDrafter`] is written as the plain causal LM it is, for
            `"sglang"` or `"vllm"`.
        target (`PreTrainedModel`, `PreTrainedConfig`, `str` or `os.PathLike`, *optional*):
            The drafter's target. The speculators form needs its weights, because it holds a copy of its embedding.
        speculative_tokens (`int`, *optional*, defaults to 5): Draft tokens per window in the commands of the report
            and, for speculators, in the file. These engines draft windows of fixed size.

    Returns:
        [`ExchangeReport`]: What was converted, and the commands that serve the result.

    Raises:
        ValueError: If the format is unknown, cannot express the drafter, or the target is missing or another one.
        OSError: If something is in `output` already or it cannot be written.
    """
    format = _ALIASES.get(format, format)
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}, got {format!r}.")
    if isinstance(speculative_tokens, bool) or not isinstance(speculative_tokens, int) or speculative_tokens < 1:
        raise ValueError(f"`speculative_tokens` must be a positive whole number, got {speculative_tokens!r}.")
    folder = Path(drafter) if not isinstance(drafter, DrafterModel) and os.path.isdir(drafter) else None
    if not isinstance(drafter, DrafterModel):
        drafter = AutoDrafter.from_pretrained(drafter)
    report = ExchangeReport(format)
    if isinstance(drafter, CausalLMDrafter):
        _check_causal(format)
        with new_folder(output) as temporary:
            drafter.model.save_pretrained(temporary)
            _carry(folder, temporary, report)
        report.note("A causal-LM drafter is a plain causal language model: it was written as one.")
    elif isinstance(drafter, Eagle3Drafter):
        facts = target_facts(target)
        config, weights = _converted(drafter, format, facts, report, speculative_tokens)
        with new_folder(output) as temporary:
            write_checkpoint(temporary, config, weights)
            _carry(folder, temporary, report)
    else:
        raise ValueError(f"{type(drafter).__name__} drafters cannot be exported, only EAGLE-3 and causal-LM ones.")
    name = drafter.config.target_name_or_path or "TARGET"
    report.usage = _usage(format, name, os.fspath(output), speculative_tokens, isinstance(drafter, CausalLMDrafter))
    return report


def _check_causal(format: str) -> None:
    if format in ("eagle", "speculators"):
        raise ValueError(
            f"A causal-LM drafter cannot be exported as {format!r}, which is a form of EAGLE-3 drafters. As a plain "
            "causal LM it exports for format='sglang' or format='vllm'."
        )


def _converted(
    drafter: Eagle3Drafter, format: str, facts: TargetFacts | None, report: ExchangeReport, speculative_tokens: int
) -> tuple[dict, dict[str, torch.Tensor]]:
    """config.json and weights in the given form."""
    config = drafter.config
    check_portable(config, format)
    dtype = drafter.lm_head.weight.dtype
    if dtype not in _DTYPES:
        raise ValueError(f"The drafter's weights are {dtype}; the engines load float32, bfloat16 and float16.")
    dtype_name = str(dtype).removeprefix("torch.")
    weights = dict(drafter.state_dict())
    if facts is not None:
        _check_target(drafter, facts)
    if format == "speculators":
        values = speculators_config(drafter, dtype_name, facts, speculative_tokens)
        weights = foreign_names(weights, "layers.0")
        weights["embed_tokens.weight"] = _embedding(drafter, facts, dtype)
        report.note("A copy of the target's embedding was added, as this form wants it.")
    else:
        values = flat_config(drafter, dtype_name, both_numberings=True)
        weights = foreign_names(weights, "midlayer")
        _note_layers(values, report)
        longest = getattr(facts.config, "max_position_embeddings", None) if facts else None
        if format != "vllm" and longest and longest > config.max_position_embeddings:
            report.note(
                f"The drafter was made for contexts of {config.max_position_embeddings} tokens and the target for "
                f"{longest}: SGLang takes the former as its limit."
            )
    if config.attention_bias:
        # Both engines put the switch on the output projection as well; zeros leave the result as it is.
        for name in [name for name in weights if name.endswith("o_proj.weight")]:
            weights[name.replace(".weight", ".bias")] = torch.zeros(config.hidden_size, dtype=dtype)
        report.note(
            "Zeros were added as the bias of `o_proj`, which the engine has wherever there is `attention_bias`."
        )
    for flag, versions in (("norm_before_fc", "SGLang 0.5.23"), ("norm_output", "SGLang 0.5.23 and vLLM 0.33")):
        if getattr(config, flag) and format in ("sglang", "vllm"):
            report.note(f"`{flag}` was checked in the code of {versions}; older releases may ignore it.")
    if stored_window(drafter) != WindowConfig():
        report.note("These engines draft windows of fixed size: the window policy is kept in the file, but not used.")
    return values, weights


def _check_target(drafter: Eagle3Drafter, facts: TargetFacts) -> None:
    config = drafter.config
    for name, mine, theirs in (
        ("vocab_size", config.vocab_size, facts.config.vocab_size),
        ("target_hidden_size", config.target_hidden_size, facts.config.hidden_size),
        ("target_num_hidden_layers", config.target_num_hidden_layers, facts.config.num_hidden_layers),
        ("target_model_type", config.target_model_type, facts.config.model_type),
    ):
        if mine is not None and mine != theirs:
            raise ValueError(
                f"`target` is `{facts.name}`, which has {theirs} where the drafter was made for `{name}`={mine}: give "
                f"the drafter's own target, `{config.target_name_or_path}`."
            )


def _embedding(drafter: Eagle3Drafter, facts: TargetFacts | None, dtype: torch.dtype) -> torch.Tensor:
    """The target's embedding in the drafter's dtype, which is what the drafter computes with."""
    if facts is not None and facts.has_weights:
        return facts.weight("embedding").to(dtype).clone()
    if drafter._shared_embedding is not None:
        return drafter._shared_embedding.weight.detach().to(dtype).clone()
    raise ValueError(
        "The speculators form holds a copy of the target's embedding: pass `target` (the model, its folder or its Hub "
        f"id; the drafter was made for `{drafter.config.target_name_or_path}`)."
    )


def _note_layers(values: dict, report: ExchangeReport) -> None:
    if IDS_FIELD in values:
        nested = values["eagle_config"].get(IDS_FIELD)
        also = f" and, one lower, in `eagle_config` for SGLang ({nested})" if nested else ""
        report.note(f"Feature layers {values[IDS_FIELD]} were written in vLLM's numbering{also}.")


def _carry(folder: Path | None, temporary: Path, report: ExchangeReport) -> None:
    names = carry_files(folder, temporary) if folder is not None else []
    if names:
        report.note(f"Carried along: {', '.join(names)}.")


def _usage(format: str, target: str, output: str, tokens: int, causal: bool) -> list[str]:
    """Commands that serve the export."""
    method = "draft_model" if causal else "eagle3"
    vllm = (
        f'vllm serve {target} --speculative-config \'{{"method": "{method}", "model": "{output}", '
        f'"num_speculative_tokens": {tokens}}}\''
    )
    algorithm = "STANDALONE" if causal else "EAGLE3"
    sglang = (
        f"python -m sglang.launch_server --model-path {target} --speculative-algorithm {algorithm} "
        f"--speculative-draft-model-path {output} --speculative-num-steps {tokens} --speculative-eagle-topk 1 "
        f"--speculative-num-draft-tokens {tokens + 1}"
    )
    return {"eagle": [sglang, vllm], "sglang": [sglang]}.get(format, [vllm])
