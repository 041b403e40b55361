# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Acceptance length of several drafters on the same greedy texts of their target, with paired intervals.

    ppow compare --drafter first=runs/sft --drafter second=runs/ppow --suite prompts.jsonl --output runs/compare

The texts are made once and kept. A drafter is replayed on them at some four texts a second on two cores, where
decoding takes minutes. What was measured is kept per drafter and taken again as long as its weights are the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ppow_hf.data import generate_responses, load_prompts
from ppow_hf.drafters import DrafterModel
from ppow_hf.evaluation.compare import AcceptanceFigure, PromptOutcome, acceptance_figures, measure_acceptance
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.precision import fingerprint, settings_hash
from ppow_hf.scripts.command_line import load_drafter
from ppow_hf.whole_files import write_json_whole, write_text_whole


def greedy_answers(target, tokenizer, suites: Sequence[str], folder: Path, max_new_tokens: int) -> Dataset:
    """
    The target's greedy answers to the suites' prompts, made or, where they are the same, read from `folder`. For
    evaluation only.
    """
    prompts = [prompt for suite in suites for prompt in load_prompts(suite)]
    try:
        return generate_responses(
            target, tokenizer, prompts, folder, max_new_tokens=max_new_tokens, temperatures={0.0: 1.0}
        )
    except FileExistsError as error:
        raise ValueError(
            f"`{folder}` holds other answers than those of this target to these suites: give another `--output`, or "
            "remove the folder."
        ) from error


def outcomes_of(target, drafter: DrafterModel, answers: Dataset, window: int, kept: Path) -> list[PromptOutcome]:
    """Cycles of one drafter on every text; read from `kept` if they are those of the same drafter and texts."""
    identity = {
        "drafter_hash": fingerprint(drafter),
        "drafter_settings": settings_hash(drafter),
        "answers": answers._fingerprint,
        "window": window,
    }
    stored = kept / f"{identity['drafter_hash']}-fixed{window}.json"
    if stored.exists():
        content = json.loads(stored.read_text(encoding="utf-8"))
        if content["identity"] == identity:
            return [PromptOutcome(**entry) for entry in content["outcomes"]]
    found = measure_acceptance(target, drafter, answers, window, progress=True)
    write_text_whole(stored, json.dumps({"identity": identity, "outcomes": [vars(outcome) for outcome in found]}))
    return found


def compare_drafters(
    target,
    tokenizer,
    drafters: Mapping[str, str | os.PathLike],
    suites: Sequence[str],
    output: Path,
    *,
    window: int = 5,
    baseline: str | None = None,
    max_new_tokens: int = 128,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Measures, and writes `results.json` and `report.md`.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        drafters (`Mapping[str, str]`): Name and folder of each drafter.
        suites (`Sequence[str]`): Prompt files or datasets, as for `ppow data`.
        output (`Path`): Folder to write.
        window (`int`, *optional*, defaults to 5): Draft tokens per window.
        baseline (`str`, *optional*): Name of the drafter the others are compared with; the first by default.
        max_new_tokens (`int`, *optional*, defaults to 128): Length of the answers.
        seed (`int`, *optional*, defaults to 0): Of the bootstrap.

    Returns:
        `dict`: The contents of `results.json`.

    Raises:
        ValueError: If there is no drafter, or the baseline is none of them.
    """
    if not drafters:
        raise ValueError("`drafters` is empty: give at least one as NAME=FOLDER.")
    baseline = baseline if baseline is not None else next(iter(drafters))
    if baseline not in drafters:
        raise ValueError(f"`baseline` is {baseline!r}, but the drafters are {', '.join(drafters)}.")
    # All of them before the texts, which take minutes: a wrong folder is told at once.
    loaded = {name: load_drafter(folder, target) for name, folder in drafters.items()}
    answers = greedy_answers(target, tokenizer, suites, output / "answers", max_new_tokens)
    outcomes = {
        name: outcomes_of(target, drafter, answers, window, output / "outcomes") for name, drafter in loaded.items()
    }
    figures = acceptance_figures(outcomes, baseline=baseline, seed=seed)
    results = {
        "environment": describe_environment(torch.device(target.device)),
        "arguments": {
            "drafters": {name: str(folder) for name, folder in drafters.items()},
            "suites": [Path(suite).stem for suite in suites],
            "window": window,
            "baseline": baseline,
            "max_new_tokens": max_new_tokens,
            "dtype": str(target.dtype).removeprefix("torch."),
            "seed": seed,
        },
        "results": {name: [figure.to_dict() for figure in entries] for name, entries in figures.items()},
    }
    write_json_whole(output / "results.json", results)
    write_text_whole(output / "report.md", comparison_table(figures, baseline, window) + "\n")
    return results


def comparison_table(figures: Mapping[str, Sequence[AcceptanceFigure]], baseline: str, window: int) -> str:
    """The comparison as a Markdown table."""
    suites = [figure.suite for figure in next(iter(figures.values()))]
    lines = [
        f"Acceptance length (tau, bonus token included) of windows of {window} on the same greedy texts; brackets: "
        f"95% bootstrap interval over prompts, differences to `{baseline}` paired by prompt.",
        "",
        "| drafter | " + " | ".join(suites) + f" | over `{baseline}` |",
        "|---|" + "---|" * (len(suites) + 1),
    ]
    for name, entries in figures.items():
        cells = [f"{f.acceptance_length:.3f}" for f in entries]
        last = entries[-1]
        gain = ""
        if last.difference is not None:
            gain = f"{last.difference:+.3f} [{last.difference_low:+.3f}, {last.difference_high:+.3f}]"
        lines.append("| " + " | ".join([f"`{name}`", *cells, gain]) + " |")
    return "\n".join(lines)
