# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Adds the oracle line to a benchmark: the speed of a window policy that knows what will be accepted.

    python -m ppow_hf.scripts.oracle_line runs/bench --suite gsm8k --suite humaneval --suite mt_bench

The greedy texts are made again and the drafter replayed on them; `results.json`, `report.md` and the pictures in the
folder are then written anew. Done prompts are kept in `oracle.jsonl`, so that a killed run goes on where it stopped.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from transformers import set_seed

from ppow_hf.evaluation.oracle import add_oracle
from ppow_hf.evaluation.window_comparison import CHEAPEST, ORACLE
from ppow_hf.scripts.command_line import load_models, run
from ppow_hf.targets import DEFAULT_TARGET


def main(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output of `ppow bench`, temperature 0 included.")],
    suite: Annotated[list[str], typer.Option(help="The benchmark's suites, as given to it; several times.")],
    target: Annotated[str, typer.Option(help="The benchmark's target.")] = DEFAULT_TARGET,
    drafter: Annotated[str | None, typer.Option(help="Its drafter. Default: the reference drafter.")] = None,
    max_size: Annotated[
        int | None, typer.Option(help="Largest window of the oracle. Default: the drafter's.", min=1)
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, ...")] = None,
    seed: Annotated[int, typer.Option(help="Greedy texts draw nothing; prompts are the benchmark's sample.")] = 0,
) -> None:
    """Add the oracle line to a benchmark's results.json, report and picture."""
    set_seed(seed)
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no results.json: run `ppow bench` with `--output {folder}` first.")
    dtype = json.loads(path.read_text(encoding="utf-8"))["arguments"]["dtype"]
    target_model, tokenizer, drafter_model = load_models(Console(), target, drafter, dtype, device)
    results = add_oracle(folder, target_model, tokenizer, drafter_model, suite, max_size=max_size)
    for row in results["oracle"]["rows"]:
        if row["policy"] in (ORACLE, CHEAPEST, "cost_aware"):
            name = row["suite"] or "mean over suites"
            print(f"{name}, {row['policy']}: {row['speedup']:.3f}x, {row['share_of_oracle']:.3f} of the oracle's")
    print(f"Report: {folder / 'report.md'}")


if __name__ == "__main__":
    run(main)
