# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Was an evaluation prompt trained on? All prompts of the sources against all of the evaluation's, one by one.

    python trainers/recipes/smollm2/check_exclusion.py --prompts gsm8k_train.jsonl::question --prompts sharegpt \\
        --evaluation gsm8k.jsonl --evaluation humaneval.jsonl --evaluation mt_bench.jsonl --output runs/exclusion

`ppow data --exclude` leaves them out beforehand and says so in the provenance. This is for what was made without: a
prompt counts when one of its messages equals one of the evaluation's, holds one or is part of one, letter case,
punctuation and spaces aside. Writes `exclusion.json`; its exit status is 1 when there is one.
"""

from pathlib import Path
from typing import Annotated

import typer
from tqdm.auto import tqdm

from ppow_hf.data import load_prompts
from ppow_hf.data.fingerprint import source_sha256
from ppow_hf.data.prompts import EvaluationPrompts
from ppow_hf.scripts.command_line import SeedOption, run
from ppow_hf.whole_files import write_json_whole


def main(
    prompts: Annotated[list[str], typer.Option(help="Prompts trained on, as for `ppow data`; several times.")],
    evaluation: Annotated[list[str], typer.Option(help="Files of evaluation prompts; several times.")],
    output: Annotated[Path, typer.Option(help="Folder of exclusion.json.")],
    seed: SeedOption = 0,
) -> None:
    """Look for evaluation prompts among those that were trained on."""
    suites = [EvaluationPrompts(source, "--evaluation") for source in evaluation]
    rows = []
    for source in prompts:
        name, _, column = source.partition("::")
        found = load_prompts(name, column=column or None, argument="--prompts")
        hits = [[] for _ in suites]
        for number, prompt in enumerate(tqdm(found, desc=Path(name).stem, unit="prompt")):
            for suite, numbers in zip(suites, hits, strict=True):
                if suite.among(prompt.turns):
                    numbers.append(number)
        rows.append(
            {
                "source": Path(name).name,
                "sha256": source_sha256(name),
                "prompts": len(found),
                "found_at": {Path(file).name: numbers for file, numbers in zip(evaluation, hits, strict=True)},
            }
        )
    content = {"evaluation": [suite.identity() for suite in suites], "prompts": rows}
    write_json_whole(output / "exclusion.json", content)
    guilty = [
        f"{len(numbers)} of {row['source']} in {file}"
        for row in rows
        for file, numbers in row["found_at"].items()
        if numbers
    ]
    total = sum(row["prompts"] for row in rows)
    print(f"{total} prompts, {', '.join(guilty) if guilty else 'none of them of the evaluation'}.")
    if guilty:
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main)
