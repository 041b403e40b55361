# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""EAGLE-3 checkpoints of other projects as drafters of this library."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..drafters import Eagle3Drafter, Eagle3DrafterConfig
from ..generation import WindowConfig
from ..json_files import read_json_object
from .checkpoint_files import carry_files, locate_checkpoint, new_folder, read_config, read_weights
from .eagle3_fields import OWN_FIELD
from .eagle3_flat import read_flat_config
from .eagle3_speculators import is_speculators, read_speculators_config
from .eagle3_weights import check_frequencies, check_names_and_shapes, one_dtype, own_names, own_vocabulary
from .exchange_report import ExchangeReport
from .target_facts import TargetFacts, target_facts

PROVENANCE_FILE = "provenance.json"
# A drafter has one layer or a few: more is a language model, not worth downloading to find out.
_MOST_LAYERS = 8


def import_drafter(
    source: str | os.PathLike,
    *,
    target: PreTrainedModel | PreTrainedConfig | str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    layer_id_convention: str = "auto",
    revision: str | None = None,
    **overrides,
) -> Eagle3Drafter:
    """
    Reads an EAGLE-3 checkpoint in the flat form (SafeAILab/EAGLE, SpecForge, SGLang) or the speculators form.

    Every weight of the checkpoint must have its place and every place its weight. What config.json lacks is filled in
    by the rules of the code the checkpoint was made for, and said: in the log, and in `drafter.import_report`.

    Args:
        source (`str` or `os.PathLike`): Folder or Hub repository: safetensors or `.bin`, sharded or not.
        target (`PreTrainedModel`, `PreTrainedConfig`, `str` or `os.PathLike`, *optional*):
            The target the drafter is for. Needed where the checkpoint does not name its feature layers; a loaded model
            is bound to the drafter.
        output (`str` or `os.PathLike`, *optional*): Folder to save the drafter in; it appears whole or not at all.
        layer_id_convention (`str`, *optional*, defaults to `"auto"`): How the checkpoint numbers feature layers:
            `"input"` (`k` is `hidden_states[k]`: vLLM, speculators), `"output"` (`k` is the output of layer `k`:
            SGLang, SpecForge), or by the field it uses.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        overrides: Fields of [`Eagle3DrafterConfig`] that are known better than config.json, such as `aux_layer_ids`,
            `rope_parameters` or `norm_output`.

    Returns:
        [`Eagle3Drafter`] in the checkpoint's dtype and in evaluation mode, with an `import_report`
        ([`ExchangeReport`]).

    Raises:
        OSError: If the checkpoint cannot be read or is truncated.
        ValueError: If it is not an EAGLE-3 drafter, a weight is missing, unknown or mis-shaped, or it does not fit the
            target.

    Example:

    ```python
    >>> from ppow_hf.hub.importer import import_drafter

    >>> drafter = import_drafter("org/EAGLE3-head", target="org/target", output="my-drafter")
    ```
    """
    unknown = sorted(overrides.keys() - {field.name for field in dataclasses.fields(Eagle3DrafterConfig)})
    if unknown:
        raise ValueError(f"Unknown field(s) of Eagle3DrafterConfig: {', '.join(unknown)}.")
    raw = read_config(locate_checkpoint(source, revision=revision, weights=False))
    _check_config(raw, source)
    folder = locate_checkpoint(source, revision=revision)
    facts = target_facts(target)
    report = ExchangeReport("speculators" if is_speculators(raw) else "flat")
    foreign = read_weights(folder)
    try:
        config, weights, dtype = _convert(raw, foreign, facts, report, layer_id_convention, overrides)
        drafter = _build(config, weights, dtype)
        _restore_window(drafter, raw)
        if isinstance(target, PreTrainedModel):
            drafter.bind_target(target)
    except ValueError as error:
        raise ValueError(f"`{_name(source)}`: {error}") from error
    drafter.import_report = report
    report.log(f"Imported `{_name(source)}` ({report.form} form):")
    if output is not None:
        _save(drafter, folder, source, revision, output)
    return drafter


def _name(source: str | os.PathLike) -> str:
    """A source's name without the path of this machine."""
    return Path(source).resolve().name if os.path.isdir(source) else os.fspath(source)


def _check_config(raw: dict, source: str | os.PathLike) -> None:
    if str(raw.get("model_type", "")).startswith("ppow_"):
        raise ValueError(
            f"`{_name(source)}` is a drafter of this library already: `AutoDrafter.from_pretrained` loads it."
        )
    layers = (raw.get("transformer_layer_config") or raw).get("num_hidden_layers")
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise ValueError(
            f"`{_name(source)}` has {layers} layers: it is a language model (`{raw.get('model_type')}`), not an "
            "EAGLE-3 drafter. A small one can draft as it is: `AutoDrafter.from_pretrained` loads it."
        )


def _convert(
    raw: dict,
    foreign: dict[str, torch.Tensor],
    facts: TargetFacts | None,
    report: ExchangeReport,
    layer_id_convention: str,
    overrides: dict,
) -> tuple[Eagle3DrafterConfig, dict[str, torch.Tensor], torch.dtype]:
    """Configuration, weights under our names, and their dtype."""
    read = read_speculators_config if is_speculators(raw) else read_flat_config
    weights = own_names(foreign, report)
    config = read(raw, weights, facts, report, layer_id_convention, overrides)
    if facts is not None:
        _check_target(config, facts)
    check_frequencies(foreign, config, report)
    weights, dtype = one_dtype(weights, report)
    own_vocabulary(weights, config, report)
    _shared_embedding(raw, weights, config, facts, report)
    _borrowed_head(weights, config, facts, dtype, report)
    check_names_and_shapes(weights, config)
    return config, weights, dtype


def _check_target(config: Eagle3DrafterConfig, facts: TargetFacts) -> None:
    for name, mine, theirs in (
        ("vocab_size", config.vocab_size, facts.config.vocab_size),
        ("target_hidden_size", config.target_hidden_size, facts.config.hidden_size),
    ):
        if mine != theirs:
            raise ValueError(
                f"it was made for `{name}`={mine}, but the target `{facts.name}` has {theirs}: it belongs to another "
                "target."
            )


def _shared_embedding(
    raw: dict, weights: dict, config: Eagle3DrafterConfig, facts: TargetFacts | None, report: ExchangeReport
) -> None:
    """Drops a copy of the target's embedding, after comparing it where the target is at hand."""
    stored = weights.get("embed_tokens.weight")
    if stored is None or not config.shares_target_embedding:
        return
    trained = bool(raw.get("embed_requires_grad"))
    if facts is not None and (facts.model is not None or (trained and facts.has_weights)):
        theirs = facts.weight("embedding")
        if stored.shape != theirs.shape or not torch.equal(stored.cpu(), theirs.cpu().to(stored.dtype)):
            raise ValueError(
                f"`embed_tokens.weight` is not the embedding of the target `{facts.name}`: either the drafter was "
                "made for another target, or its embedding was trained, which this library does not read."
            )
        report.note("`embed_tokens` was left out: it equals the target's embedding, which the drafter shares.")
    elif trained:
        raise ValueError(
            "the drafter's embedding was trained (`embed_requires_grad`), while drafters here share their target's. "
            "Pass `target`: if the two are equal after all, the import goes on."
        )
    else:
        report.note(
            "`embed_tokens` was left out: it is a copy of the target's embedding, which the drafter shares (not "
            "compared, because the target's weights were not given)."
        )
    del weights["embed_tokens.weight"]


def _borrowed_head(
    weights: dict, config: Eagle3DrafterConfig, facts: TargetFacts | None, dtype: torch.dtype, report: ExchangeReport
) -> None:
    """Copies the target's output embedding into a drafter that was saved without one, as the engines do."""
    whole = config.draft_vocab_size == config.vocab_size and config.shares_target_embedding
    if "lm_head.weight" in weights or not whole or facts is None or not facts.has_weights:
        return
    head = facts.weight("head")
    if head.shape == (config.vocab_size, config.hidden_size):
        weights["lm_head.weight"] = head.cpu().to(dtype).clone()
        report.note("`lm_head` was missing: copied from the target, as the engines do for whole vocabularies.")


def _build(config: Eagle3DrafterConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> Eagle3Drafter:
    config.dtype = dtype
    with torch.random.fork_rng(devices=[]):
        drafter = Eagle3Drafter._from_config(config, dtype=dtype)
    drafter.load_state_dict(weights, strict=True)
    return drafter.eval()


def _restore_window(drafter: Eagle3Drafter, raw: dict) -> None:
    window = (raw.get(OWN_FIELD) or {}).get("window")
    if window is not None:
        drafter.generation_config.window = WindowConfig.from_dict(window)


def _save(drafter: Eagle3Drafter, folder: Path, source, revision: str | None, output: str | os.PathLike) -> None:
    with new_folder(output) as temporary:
        drafter.save_pretrained(temporary)
        carry_files(folder, temporary)
        provenance = {"imported_from": {"source": _name(source), "revision": revision}}
        provenance["imported_from"].update(drafter.import_report.to_dict())
        kept = temporary / PROVENANCE_FILE
        if kept.is_file():
            provenance = {**read_json_object(kept, "Correct or delete it."), **provenance}
        kept.write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
