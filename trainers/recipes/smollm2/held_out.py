# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Prompts to choose by: none of those trained on, and none of a benchmark's, which are for the end.

    python trainers/recipes/smollm2/held_out.py --prompts gsm8k_train.jsonl::question --prompts vicuna.jsonl::text \\
        --exclude runs/responses --exclude gsm8k.jsonl --exclude humaneval.jsonl --exclude mt_bench.jsonl \\
        --output runs/held_out

Writes one file per source, as `ppow compare`, `ppow bench` and ppow_vs_cst.py read them.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from ppow_hf.data import load_prompts, select_prompts
from ppow_hf.scripts.command_line import SeedOption, run
from ppow_hf.whole_files import write_text_whole


def main(
    prompts: Annotated[list[str], typer.Option(help="Prompts, as for `ppow data`; several times. FILE::COLUMN too.")],
    exclude: Annotated[
        list[str],
        typer.Option(help="What they must not be in: folders of responses, evaluation files; several times."),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the files.")],
    count: Annotated[int, typer.Option(help="Prompts of each source.", min=1)] = 24,
    seed: SeedOption = 0,
) -> None:
    """Choose prompts that were not trained on."""
    output.mkdir(parents=True, exist_ok=True)
    for source in prompts:
        name, _, column = source.partition("::")
        found = load_prompts(name, column=column or None, argument="--prompts")
        chosen = select_prompts(found, exclude=exclude, limit=count, seed=seed)
        suite = Path(name).stem
        rows = [
            {"id": f"{suite}/{number}", "suite": suite, "turns": list(prompt.turns[:1])}
            for number, prompt in enumerate(chosen)
        ]
        write_text_whole(output / f"{suite}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        print(f"{len(rows)} prompts of {len(found)}: {output / f'{suite}.jsonl'}")


if __name__ == "__main__":
    run(main)
