# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Where the time of a cycle goes: draft step by parts, and everything that is neither drafting nor verification.

    python -m ppow_hf.scripts.profile_cycle --prompts prompts.jsonl --limit 4 --output runs/profile

Writes `profile.json`, `profile.md` and `profile.png`. A prompt file is a suite file, as for `ppow bench`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from transformers import set_seed

from ppow_hf.console import chat_inputs
from ppow_hf.evaluation.cycle_profile import CycleProfile, profile_cycles, profile_tables
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.plots import save_figure
from ppow_hf.evaluation.stopwatches import DRAFT, LOOP, OURS, THEIRS
from ppow_hf.evaluation.suites import load_suite
from ppow_hf.scripts.command_line import load_models, run
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.whole_files import write_json_whole, write_text_whole

_COLORS = {DRAFT: "#0072B2", OURS: "#D55E00", THEIRS: "#999999", LOOP: "#CCCCCC"}


def write_profile(result: CycleProfile, output: Path, arguments: dict[str, Any], device: torch.device) -> None:
    """
    Writes a profile.

    Args:
        result ([`CycleProfile`]): The profile.
        output (`Path`): Folder to write `profile.json`, `profile.md` and `profile.png` into.
        arguments (`dict`): How it was made, for the record.
        device (`torch.device`): Where.
    """
    content = {"environment": describe_environment(device), "arguments": arguments, **result.to_dict()}
    write_json_whole(output / "profile.json", content)
    write_text_whole(output / "profile.md", profile_tables(result) + "\n")
    save_figure(_figure(result), output / "profile.png")


def _figure(result: CycleProfile) -> Figure:
    """Bars of the parts beside verification, longest first within each phase."""
    rows = [row for row in result.rows() if row[0] in _COLORS]
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows), 0, -1)
    axes.barh(places, [row[2] for row in rows], color=[_COLORS[row[0]] for row in rows], height=0.7)
    axes.set_yticks(list(places), [row[1] for row in rows])
    for phase, color in _COLORS.items():
        axes.barh(0, 0, color=color, label=phase)
    axes.set_ylim(0.3, len(rows) + 0.7)
    axes.set_xlabel("milliseconds per cycle")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result.shares.items())
    axes.set_title(f"Where a cycle's time goes besides verification ({shares})", fontsize=10, loc="left")
    axes.legend(frameon=False, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def main(
    prompts: Annotated[str, typer.Option(help="Suite name or JSONL file of prompts.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    target: Annotated[str, typer.Option(help="Target: a Hub id, a folder, or an embedded one.")] = DEFAULT_TARGET,
    drafter: Annotated[str | None, typer.Option(help="Drafter. Default: the reference drafter.")] = None,
    window: Annotated[str, typer.Option(help="Window, as for `ppow generate`.")] = "cost_aware",
    temperature: Annotated[float, typer.Option(help="0 for greedy decoding.", min=0.0)] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="New tokens per prompt.", min=2)] = 64,
    limit: Annotated[int, typer.Option(help="Prompts.", min=1)] = 4,
    operators: Annotated[int, typer.Option(help="Operators to list, by torch.profiler; 0 for none.", min=0)] = 15,
    dtype: Annotated[str, typer.Option(help="Dtype of both models.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, ...")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of prompts, and of sampling.")] = 0,
) -> None:
    """Profile the cycles of speculative decoding."""
    examples = load_suite(prompts, limit=limit, seed=seed)
    target_model, tokenizer, drafter_model = load_models(Console(), target, drafter, dtype, device)
    options = {"window": window, "do_sample": temperature > 0}
    if temperature > 0:
        options["temperature"] = temperature
    set_seed(seed)
    result = profile_cycles(
        target_model,
        drafter_model,
        [chat_inputs(tokenizer, example.turns[0], target_model.device) for example in examples],
        max_new_tokens=max_new_tokens,
        operators=operators,
        **options,
    )
    arguments = {
        "target": target,
        "drafter": drafter,
        "prompts": Path(prompts).stem,
        "num_prompts": len(examples),
        "window": window,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "dtype": str(target_model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    write_profile(result, output, arguments, target_model.device)
    print(profile_tables(result))


if __name__ == "__main__":
    run(main)
