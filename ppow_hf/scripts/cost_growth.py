# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Measures how cost grows with the prompt's length and the window's size.

    python -m ppow_hf.scripts.cost_growth --prompts data/chat.jsonl --output runs/growth

Writes `growth.json`, `growth.md` and two pictures. A killed run goes on where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from transformers import set_seed

from ppow_hf.data import load_prompts
from ppow_hf.evaluation.growth import LENGTHS, METHODS, measure_growth
from ppow_hf.scripts.command_line import load_models, run
from ppow_hf.targets import DEFAULT_TARGET


def main(
    prompts: Annotated[list[str], typer.Option("--prompts", "-p", help="Text, as for `ppow data`; several times.")],
    output: Annotated[Path, typer.Option(help="Folder of growth.json, growth.md and the pictures.")] = Path(
        "runs/growth"
    ),
    target: Annotated[str, typer.Option(help="Target: a Hub id, a folder, or the embedded one.")] = DEFAULT_TARGET,
    drafter: Annotated[str | None, typer.Option(help="Drafter. Default: the reference drafter.")] = None,
    method: Annotated[
        str, typer.Option(help="Comma-separated methods of `ppow bench`, and stored: the drafter's own window.")
    ] = ",".join(METHODS),
    lengths: Annotated[str, typer.Option(help="Comma-separated prompt lengths.")] = ",".join(map(str, LENGTHS)),
    windows: Annotated[str, typer.Option(help="Fixed windows: comma-separated sizes, A-B, or none.")] = "1-16",
    window_length: Annotated[int, typer.Option(help="Prompt length for the windows.", min=1)] = 256,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.", min=2)] = 64,
    repeats: Annotated[int, typer.Option(help="Prompts of every length, of different text.", min=1)] = 3,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, ...")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the texts.")] = 0,
) -> None:
    """Measure tokens per second, time to the first token and memory against prompt length and window size."""
    sizes = {"lengths": _numbers("--lengths", lengths), "windows": _numbers("--windows", windows)}
    set_seed(seed)
    texts = ["\n\n".join(prompt.turns) for source in prompts for prompt in load_prompts(source)]
    target_model, tokenizer, drafter_model = load_models(Console(), target, drafter, dtype, device)
    measure_growth(
        target_model,
        tokenizer,
        drafter_model,
        texts,
        output,
        methods=method.split(","),
        window_length=window_length,
        new_tokens=new_tokens,
        repeats=repeats,
        seed=seed,
        **sizes,
    )
    print(f"Report: {output / 'growth.md'}")


def _numbers(name: str, text: str) -> list[int]:
    if text == "none":
        return []
    values: list[int] = []
    try:
        for part in text.split(","):
            low, dash, high = part.partition("-")
            values += range(int(low), int(high) + 1) if dash else [int(low)]
    except ValueError:
        raise ValueError(f"`{name}` takes comma-separated whole numbers or A-B, got {text!r}.") from None
    return values


if __name__ == "__main__":
    run(main)
