# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Is it worth prepacking or compiling the target here? The same prompts with and without, in turns.

    python -m ppow_hf.scripts.target_ways --prompts prompts.jsonl --limit 4 --output runs/ways

Writes `ways.json` and `ways.md`. A prompt file is a suite file, as for `ppow bench`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import set_seed

from ppow_hf.console import chat_inputs
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.runner import padding_token
from ppow_hf.evaluation.suites import load_suite
from ppow_hf.evaluation.target_ways import WAYS, compare_ways, render_ways, ways_rows
from ppow_hf.scripts.command_line import load_models, run
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.whole_files import write_json_whole, write_text_whole


def main(
    prompts: Annotated[list[str], typer.Option(help="Suite name or JSONL file of prompts; several times.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    target: Annotated[str, typer.Option(help="Target: a Hub id, a folder, or an embedded one.")] = DEFAULT_TARGET,
    drafter: Annotated[str | None, typer.Option(help="Drafter. Default: the reference drafter.")] = None,
    way: Annotated[str, typer.Option(help="Comma-separated: prepack, compile (takes minutes).")] = "prepack",
    method: Annotated[
        str, typer.Option(help="Comma-separated, as for `ppow bench`.")
    ] = "target,cost_aware,mixed_tree",
    max_new_tokens: Annotated[int, typer.Option(help="New tokens per prompt.", min=2)] = 128,
    limit: Annotated[int, typer.Option(help="Prompts of each suite.", min=1)] = 4,
    dtype: Annotated[str, typer.Option(help="Dtype of both models.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, ...")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of prompts.")] = 0,
) -> None:
    """Measure decoding with the target as it is, prepacked and compiled."""
    names = way.split(",")
    if unknown := [name for name in names if name not in WAYS]:
        raise ValueError(f"`--way` takes {', '.join(WAYS)}, got {unknown[0]!r}.")
    set_seed(seed)
    examples = [example for suite in prompts for example in load_suite(suite, limit=limit, seed=seed)]
    target_model, tokenizer, drafter_model = load_models(Console(), target, drafter, dtype, device)
    rows = compare_ways(
        target_model,
        drafter_model,
        [chat_inputs(tokenizer, example.turns[0], target_model.device)["input_ids"] for example in examples],
        method.split(","),
        {name: WAYS[name] for name in names},
        max_new_tokens=max_new_tokens,
        pad_token_id=padding_token(tokenizer),
    )
    environment = describe_environment(target_model.device)
    arguments = {
        "target": target,
        "drafter": drafter,
        "prompts": [Path(suite).stem for suite in prompts],
        "num_prompts": len(examples),
        "max_new_tokens": max_new_tokens,
        "dtype": str(target_model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    content = {"environment": environment, "arguments": arguments, "rows": ways_rows(rows)}
    write_json_whole(output / "ways.json", content)
    text = render_ways(content)
    write_text_whole(output / "ways.md", text)
    print(text)


if __name__ == "__main__":
    run(main)
