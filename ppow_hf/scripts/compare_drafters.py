# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Acceptance length of several drafters on the same texts of their target, with paired intervals.

    ppow compare --drafter first=runs/sft --drafter second=runs/ppow --suite prompts.jsonl --output runs/compare

The texts are made once and kept, and the target passes over them once for all drafters: seconds where decoding takes
minutes. What was measured is kept per drafter and taken again as long as its weights are the same. At a temperature
above 0 the texts are sampled, and what is compared is the expected acceptance length on them
([`~ppow_hf.evaluation.replay`]).
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


def target_answers(
    target,
    tokenizer,
    suites: Sequence[str],
    output: Path,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """
    The target's answers to the suites' prompts, made or, where they are the same, read from `output`. For evaluation
    only.
    """
    prompts = [prompt for suite in suites for prompt in load_prompts(suite)]
    folder = output / ("answers" if temperature == 0 else f"answers-temperature-{temperature:g}")
    try:
        return generate_responses(
            target,
            tokenizer,
            prompts,
            folder,
            max_new_tokens=max_new_tokens,
            temperatures={float(temperature): 1.0},
            seed=seed if temperature else 0,  # greedy answers to the same prompts are the same whatever the seed
        )
    except FileExistsError as error:
        raise ValueError(
            f"`{folder}` holds other answers than those of this target to these suites: give another `--output`, or "
            "remove the folder."
        ) from error


def outcomes_of(
    target,
    drafters: Mapping[str, DrafterModel],
    answers: Dataset,
    windows: Sequence[int],
    kept: Path,
    temperature: float = 0.0,
) -> dict[str, dict[int, list[PromptOutcome]]]:
    """
    Cycles of drafters on every text, by name and window; read from `kept` where they are those of the same drafter and
    texts.
    """
    found: dict[str, dict[int, list[PromptOutcome]]] = {}
    places = {name: _Kept(drafter, answers, kept, temperature) for name, drafter in drafters.items()}
    missing = {}
    for name, place in places.items():
        found[name] = {window: known for window in windows if (known := place.read(window)) is not None}
        if len(found[name]) < len(windows):
            missing[name] = drafters[name]
    if missing:
        measured = measure_acceptance(target, missing, answers, windows, temperature, progress=True)
        for name, by_window in measured.items():
            for window, outcomes in by_window.items():
                places[name].write(window, outcomes)
        found |= measured
    return found


class _Kept:
    """Outcomes of one drafter on disk."""

    def __init__(self, drafter: DrafterModel, answers: Dataset, folder: Path, temperature: float):
        self.folder, self.temperature = folder, temperature
        self.identity = {
            "drafter_hash": fingerprint(drafter),
            "drafter_settings": settings_hash(drafter),
            "answers": answers._fingerprint,
        }

    def read(self, window: int) -> list[PromptOutcome] | None:
        path = self._path(window)
        if not path.exists():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["identity"] != {**self.identity, "window": window}:
            return None
        return [PromptOutcome(**entry) for entry in content["outcomes"]]

    def write(self, window: int, outcomes: Sequence[PromptOutcome]) -> None:
        content = {"identity": {**self.identity, "window": window}, "outcomes": [vars(entry) for entry in outcomes]}
        write_text_whole(self._path(window), json.dumps(content))

    def _path(self, window: int) -> Path:
        at = f"-temperature-{self.temperature:g}" if self.temperature else ""
        return self.folder / f"{self.identity['drafter_hash']}-fixed{window}{at}.json"


def compare_drafters(
    target,
    tokenizer,
    drafters: Mapping[str, str | os.PathLike],
    suites: Sequence[str],
    output: Path,
    *,
    window: int = 5,
    temperature: float = 0.0,
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
        temperature (`float`, *optional*, defaults to 0.0): Of the texts and of drafting.
        baseline (`str`, *optional*): Name of the drafter the others are compared with; the first by default.
        max_new_tokens (`int`, *optional*, defaults to 128): Length of the answers.
        seed (`int`, *optional*, defaults to 0): Of the bootstrap, and of sampled texts.

    Returns:
        `dict`: The contents of `results.json`.

    Raises:
        ValueError: If there is no drafter, the baseline is none of them, or the temperature is negative.
    """
    if not drafters:
        raise ValueError("`drafters` is empty: give at least one as NAME=FOLDER.")
    baseline = baseline if baseline is not None else next(iter(drafters))
    if baseline not in drafters:
        raise ValueError(f"`baseline` is {baseline!r}, but the drafters are {', '.join(drafters)}.")
    if temperature < 0:
        raise ValueError(f"`temperature` must not be negative, got {temperature}: 0 compares on greedy texts.")
    # All of them before the texts, which take minutes: a wrong folder is told at once.
    loaded = {name: load_drafter(folder, target) for name, folder in drafters.items()}
    answers = target_answers(target, tokenizer, suites, output, max_new_tokens, temperature, seed)
    outcomes = outcomes_of(target, loaded, answers, [window], output / "outcomes", temperature)
    figures = acceptance_figures(
        {name: by_window[window] for name, by_window in outcomes.items()}, baseline=baseline, seed=seed
    )
    results = {
        "environment": describe_environment(torch.device(target.device)),
        "arguments": {
            "drafters": {name: str(folder) for name, folder in drafters.items()},
            "suites": [Path(suite).stem for suite in suites],
            "window": window,
            "temperature": temperature,
            "baseline": baseline,
            "max_new_tokens": max_new_tokens,
            "dtype": str(target.dtype).removeprefix("torch."),
            "seed": seed,
        },
        "results": {name: [figure.to_dict() for figure in entries] for name, entries in figures.items()},
    }
    write_json_whole(output / "results.json", results)
    write_text_whole(output / "report.md", comparison_table(figures, baseline, window, temperature) + "\n")
    return results


def comparison_table(
    figures: Mapping[str, Sequence[AcceptanceFigure]], baseline: str, window: int, temperature: float = 0.0
) -> str:
    """The comparison as a Markdown table."""
    texts = "greedy texts" if temperature == 0 else f"texts, sampled at temperature {temperature:g}, in expectation"
    suites = [figure.suite for figure in next(iter(figures.values()))]
    lines = [
        f"Acceptance length (tau, bonus token included) of windows of {window} on the same {texts}; brackets: "
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
