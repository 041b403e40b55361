# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
How fast `ppow data` is against a bare batched `generate` loop over the same prompts.

    python -m ppow_hf.scripts.data_throughput --prompts prompts.jsonl --limit 64 --output runs/data_throughput.json
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import set_seed

from ppow_hf.data import load_prompts, measure_throughput, select_prompts
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.precision import public_name
from ppow_hf.scripts.command_line import run
from ppow_hf.targets import DEFAULT_TARGET, inference_dtype, load_target
from ppow_hf.whole_files import write_json_whole


def main(
    prompts: Annotated[
        list[str],
        typer.Option("--prompts", "-p", help="Prompts, as for `ppow data`; several times. FILE::COLUMN too."),
    ],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    target: Annotated[str, typer.Option(help="Target: a Hub id, a folder, or an embedded one.")] = DEFAULT_TARGET,
    limit: Annotated[int, typer.Option(help="At most this many prompts in all.", min=1)] = 64,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 128,
    batch_size: Annotated[int, typer.Option(help="Conversations decoded together.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="How often each is timed, in both orders by turns.", min=1)] = 4,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, ...")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of prompts.")] = 0,
) -> None:
    """Time the generation of responses against a bare loop."""
    set_seed(seed)
    found = []
    for source in prompts:
        name, _, column = source.partition("::")
        found += load_prompts(name, column=column or None)
    found = select_prompts(found, limit=limit, seed=seed)
    # As `ppow data` takes it: the fastest dtype the hardware computes in.
    dtype = inference_dtype(device or "auto") if dtype == "auto" else dtype
    target_model, tokenizer = load_target(target, dtype=dtype, device=device or "auto")
    figures = measure_throughput(
        target_model, tokenizer, found, max_new_tokens=max_new_tokens, batch_size=batch_size, rounds=rounds
    )
    arguments = {
        "target": public_name(target_model, target),
        "prompts": [Path(source).name for source in prompts],
        "num_prompts": len(found),
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "rounds": rounds,
        "dtype": str(target_model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    content = {"environment": describe_environment(target_model.device), "arguments": arguments, "results": figures}
    write_json_whole(output, content)
    print(
        f"{figures['tokens_per_second']:.0f} tokens/s, a bare loop {figures['bare_tokens_per_second']:.0f}: "
        f"{figures['ratio']:.2f} of its speed (median of {rounds}). {output}"
    )


if __name__ == "__main__":
    run(main)
