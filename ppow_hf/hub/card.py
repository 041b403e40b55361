# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Model cards of drafters, filled from the facts in the drafter's own folder.

The template, `templates/drafter_card.md`, is part of the package, so that an installed wheel has it. It holds no
figures: every number of a card comes from [`read_facts`].
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from ..evaluation.suites import SUITES
from .card_facts import CardFacts, is_repo_id, machine_paths, read_facts
from .card_measured import Benchmark
from .card_sections import card_context
from .remote_code import write_if_changed

CARD_NAME = "README.md"
TEMPLATE = Path(__file__).with_name("templates") / "drafter_card.md"
TAGS = ("speculative-decoding", "assisted-generation", "ppow")


def write_card(folder: str | os.PathLike, *, repo_id: str | None = None) -> Path:
    """
    Writes the `README.md` of a drafter's folder.

    Args:
        folder (`str` or `os.PathLike`): A saved drafter; see [`~ppow_hf.hub.card_facts.read_facts`] for what is read.
        repo_id (`str`, *optional*): Where it will be on the Hub, for title and examples. Defaults to the folder's
            name, with the owner left open.

    Returns:
        `Path`: The card. Written whole or not at all; a card that is already as it should be is not touched.

    Raises:
        OSError: If the folder lacks configuration or weights, or a file in it is truncated.
        ValueError: If it is no drafter, holds results of another drafter or target, or the card would not be valid.
    """
    folder = Path(folder)
    path = folder / CARD_NAME
    write_if_changed(path, render_card(read_facts(folder), repo_id=repo_id))
    return path


def render_card(facts: CardFacts, *, repo_id: str | None = None) -> str:
    """
    Args:
        facts ([`CardFacts`]): From [`read_facts`].
        repo_id (`str`, *optional*): As in [`write_card`].

    Returns:
        `str`: The card, metadata included.

    Raises:
        ValueError: If the card would not be valid, or hold a path of this machine.
    """
    if repo_id is not None:
        validate_repo_id(repo_id)
    repo = repo_id or f"OWNER/{facts.folder.resolve().name}"
    title = repo.rpartition("/")[2]
    data = card_data(facts, title)
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), **card_context(facts, title, repo))
    text = re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"
    check_card(text, data)
    return f"{text}\n{_mark(text)}\n"


def is_as_written(text: str) -> bool:
    """Whether a card is one of [`render_card`] that nobody has edited: only such a one may be written anew unasked."""
    body, _, mark = text.rstrip("\n").rpartition("\n\n")
    return mark == _mark(f"{body}\n")


def _mark(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"<!-- Written by ppow-hf, {digest}. A card that was edited stays. -->"


def card_data(facts: CardFacts, title: str) -> ModelCardData:
    """
    The card's metadata.

    Args:
        facts ([`CardFacts`]): From [`read_facts`].
        title (`str`): Name of the model in the `model-index`.
    """
    tags = [*TAGS, *(["eagle3"] if facts.config["model_type"] == "ppow_eagle3" else [])]
    if facts.custom_generate:
        tags.append("custom_generate")
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": facts.provenance.get("license"),
        # No `base_model_relation`: the Hub knows adapter, finetune, merge and quantized; a drafter is none of them.
        "base_model": facts.target_id,
        "datasets": training_datasets(facts) or None,
        "tags": tags,
        "co2_eq_emissions": facts.provenance.get("co2_eq_emissions"),
    }
    results = eval_results(facts)
    if results:
        values |= {"model_name": title, "eval_results": results}
    return ModelCardData(**{key: value for key, value in values.items() if value is not None})


def training_datasets(facts: CardFacts) -> list[str]:
    """Datasets of the Hub among the sources of the training data."""
    names = [str(name).partition("::")[0] for entry in facts.responses for name in entry.get("sources") or {}]
    names += [name for entry in facts.responses for name in entry.get("datasets") or []]
    return sorted({name for name in names if is_repo_id(name) and not Path(name).suffix})


def eval_results(facts: CardFacts) -> list[EvalResult]:
    """
    The `model-index`: what every benchmark measured with the drafter's own window, or, where it was not measured,
    with all window policies.
    """
    found = []
    for benchmark in facts.benchmarks:
        rows = benchmark.window_rows()
        own = [row for row in rows if row["method"] == facts.method_in(benchmark)]
        for row in own or rows:
            found += _eval_results_of(benchmark, row)
    return found


def _eval_results_of(benchmark: Benchmark, row: dict[str, Any]) -> list[EvalResult]:
    source = SUITES[row["suite"]].sources[0] if row["suite"] in SUITES else None
    hosted = source is not None and is_repo_id(source.path)
    settings = {
        "window": row["method"],
        "temperature": row["temperature"],
        "dtype": row["dtype"],
        "max_new_tokens": benchmark.results["arguments"].get("max_new_tokens"),
        "num_prompts": row["num_prompts"],
        "hardware": benchmark.results["environment"].get("device_name"),
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    in_float32 = settings | {"dtype": "float32", "num_prompts": row.get("lossless_float32_prompts")}
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=source.path if hosted else row["suite"],
            dataset_name=row["suite"],
            dataset_config=source.config if hosted else None,
            dataset_split=source.split if hosted else None,
            metric_type=name,
            metric_name=f"{label} ({row['method']}, temperature {row['temperature']:g}{dtype})",
            metric_value=row[name],
            metric_args=in_float32 if name == "lossless_float32" else settings,
        )
        for name, label, dtype in (
            ("acceptance_length", "Acceptance length", f", {row['dtype']}"),
            ("speedup", "Speedup over plain generate", f", {row['dtype']}"),
            ("lossless_float32", "Identical text in float32", ""),
        )
        if row.get(name) is not None
    ]


def check_card(text: str, data: ModelCardData) -> None:
    """
    What can be checked of a card without the Hub: its metadata is YAML that `huggingface_hub` reads back as the same
    values, the `model-index` included; the names of base model and datasets are possible ones; no path of this machine
    is in it.

    Args:
        text (`str`): The card.
        data (`ModelCardData`): The metadata it was made from.

    Raises:
        ValueError: If it is not so.
    """
    read = ModelCard(text).data
    if read.to_dict() != data.to_dict():
        different = [key for key in data.to_dict() if read.to_dict().get(key) != data.to_dict()[key]]
        raise ValueError(f"The card's metadata does not survive being written as YAML: {', '.join(different)}.")
    for name in (*_as_list(data.get("base_model")), *_as_list(data.get("datasets"))):
        validate_repo_id(name)
    paths = machine_paths(text)
    if paths:
        raise ValueError(
            f"The card would hold paths of this machine: {', '.join(sorted(set(paths)))}. Replace them in the "
            "folder's provenance.json, or in the results.json they come from."
        )


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
