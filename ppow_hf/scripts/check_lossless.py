# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Is the text the target's own? Every method against plain `generate`, token for token, in float32.

    python -m ppow_hf.scripts.check_lossless --suite gsm8k --suite my_prompts.jsonl --output runs/lossless

Takes long on a CPU, so it can be stopped and started again, on another machine too, and shared among processes: start
it once with `--part 1 --parts 2` and once with `--part 2 --parts 2`. The last to finish writes the report.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import set_seed

from ppow_hf.evaluation.lossless import check_lossless, differing, render_lossless
from ppow_hf.evaluation.suites import load_suite
from ppow_hf.scripts.command_line import load_models, run
from ppow_hf.targets import DEFAULT_TARGET

METHODS = "fixed:5,heuristic,confidence,divergence,cost_aware,lookup,mixed,tree,mixed_tree"


def main(
    suite: Annotated[list[str], typer.Option(help="Suite name or JSONL file; several times.")],
    output: Annotated[Path, typer.Option(help="Folder of the logs, lossless.json and lossless.md.")],
    target: Annotated[str, typer.Option(help="Target: a Hub id, a folder, or an embedded one.")] = DEFAULT_TARGET,
    drafter: Annotated[str | None, typer.Option(help="Drafter. Default: the reference drafter.")] = None,
    method: Annotated[str, typer.Option(help="Comma-separated, as for `ppow bench`.")] = METHODS,
    max_new_tokens: Annotated[int, typer.Option(help="New tokens per turn.", min=2)] = 128,
    limit: Annotated[int | None, typer.Option(help="At most this many prompts of each suite.")] = None,
    part: Annotated[int, typer.Option(help="Which share of the prompts this process does, from 1.", min=1)] = 1,
    parts: Annotated[int, typer.Option(help="Into how many shares they are divided.", min=1)] = 1,
    threads: Annotated[int | None, typer.Option(help="Torch threads of this process.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, ...")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample of prompts under `--limit`.")] = 0,
) -> None:
    """Compare the text of every method with plain generate's, token for token, in float32."""
    set_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    examples = [example for name in suite for example in load_suite(name, limit, seed)]
    target_model, tokenizer, drafter_model = load_models(Console(), target, drafter, "float32", device)
    results = check_lossless(
        target_model,
        tokenizer,
        drafter_model,
        examples,
        method.split(","),
        output,
        max_new_tokens=max_new_tokens,
        part=part,
        parts=parts,
        drafter_name=drafter,
    )
    if results is None:
        print(f"Part {part} is done; other parts are not. The last to finish writes {output / 'lossless.md'}.")
        return
    print(render_lossless(results))
    if wrong := differing(results):
        raise RuntimeError(f"The text is not the target's own with {', '.join(wrong)}: see {output / 'lossless.md'}.")


if __name__ == "__main__":
    run(main)
