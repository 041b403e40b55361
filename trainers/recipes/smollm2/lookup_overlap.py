# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How much of what lookup knows does a drafter know by itself?

    python trainers/recipes/smollm2/lookup_overlap.py --drafter before=DIR --drafter now=DIR --suite prompts.jsonl

Windows of both from every position of the same greedy texts, as `ppow compare` replays them: how often the drafter is
right where lookup is, and where it is not, and the acceptance length of lookup, of the drafter, and of whichever of
the two gets further. The last one is what mixing them can give at most without branching. Writes results.json and
report.md.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm.auto import tqdm

from ppow_hf import load_target
from ppow_hf.evaluation.compare import responses_of
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.markdown import number, percent, table
from ppow_hf.evaluation.replay import accepted_from_everywhere, replay
from ppow_hf.generation.lookup import LookupIndex
from ppow_hf.scripts.command_line import SeedOption, load_drafter, named_folders, run
from ppow_hf.scripts.compare_drafters import target_answers
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.whole_files import write_json_whole, write_text_whole

WAYS = ("lookup", "drafter", "further")


def looked_up_from_everywhere(token_ids: Sequence[int], first: int, window: int) -> list[int]:
    """
    Args:
        token_ids (`Sequence[int]`): Prompt and greedy response.
        first (`int`): First position a window may start at.
        window (`int`): Tokens per window.

    Returns:
        `list[int]`: Of each position from `first` on, how many looked-up tokens are right, from the front.
    """
    index = LookupIndex()
    index.extend(token_ids[:first])
    right = []
    for position in range(first, len(token_ids)):
        right.append(sum(takewhile(bool, map(eq, index.propose(window), token_ids[position:]))))
        index.append(token_ids[position])
    return right


def drafted_from_everywhere(target, drafter, texts: Sequence[tuple[list[int], int]], window: int) -> list[list[int]]:
    """
    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
        texts (`Sequence[tuple[list[int], int]]`): Token ids of prompt and response, and the first position a
            window may start at.
        window (`int`): Tokens per window.

    Returns:
        `list[list[int]]`: Of each text and position, how many draft tokens are right, from the front.
    """
    drafter.bind_target(target)
    return [
        accepted_from_everywhere(
            target, drafter, torch.tensor([token_ids], device=target.device), first, window
        ).tolist()
        for token_ids, first in tqdm(texts, unit="text")
    ]


def with_further(looked_up: Sequence[list[int]], drafted: Sequence[list[int]]) -> list[dict[str, list[int]]]:
    """Of each text the tokens that are right of lookup's, of the drafter's, and of whichever gets further."""
    return [
        {"lookup": one, "drafter": other, "further": list(map(max, one, other))}
        for one, other in zip(looked_up, drafted, strict=True)
    ]


def figures(lengths: Sequence[Mapping[str, Sequence[int]]], window: int) -> dict[str, float | int | None]:
    """
    Args:
        lengths (`Sequence[Mapping]`): Of each text, see [`with_further`].
        window (`int`): Tokens per window.

    Returns:
        `dict`: Positions; share of them where lookup's first token is right; shares of those, and of the others, where
        the drafter's is; and the acceptance length of each way, bonus token included.

    Raises:
        ValueError: If no text has a position to start at.
    """
    if not lengths:
        raise ValueError("No response is longer than one token: there is nothing to draft for. Give other prompts.")
    pairs = [(k > 0, n > 0) for text in lengths for k, n in zip(text["lookup"], text["drafter"], strict=True)]
    where = {right: [drafted for looked_up, drafted in pairs if looked_up == right] for right in (True, False)}
    row: dict[str, float | int | None] = {
        "positions": len(pairs),
        "lookup_right": len(where[True]) / len(pairs),
        "drafter_right_where_lookup_is": _mean(where[True]),
        "drafter_right_where_lookup_is_not": _mean(where[False]),
    }
    for way in WAYS:
        replayed = [replay(text[way], window) for text in lengths]
        row[f"tau_{way}"] = sum(text.committed for text in replayed) / sum(text.verifications for text in replayed)
    return row


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def report(results: Mapping) -> str:
    """The Markdown."""
    arguments = results["arguments"]
    lines = [
        [
            row["suite"],
            f"`{row['drafter']}`",
            percent(row["lookup_right"]),
            percent(row["drafter_right_where_lookup_is"]),
            percent(row["drafter_right_where_lookup_is_not"]),
            *(number(row[f"tau_{way}"]) for way in WAYS),
            f"{row['tau_further'] - row['tau_drafter']:+.2f}",
        ]
        for row in results["results"]
    ]
    header = [
        "suite",
        "drafter",
        "lookup right",
        "drafter right where lookup is",
        "where it is not",
        "tau, lookup",
        "tau, drafter",
        "tau, whichever gets further",
        "lookup adds",
    ]
    text = (
        f"Target **{arguments['target']}**, greedy texts of at most {arguments['max_new_tokens']} tokens, windows of "
        f"{arguments['window']}. Right: the first token, over all positions of the responses. tau: acceptance length, "
        "bonus token included, walking through the text."
    )
    return "\n\n".join(["# What lookup knows that a drafter does not", text, table(header, lines)]) + "\n"


def main(
    drafter: Annotated[list[str], typer.Option(help="NAME=FOLDER of a drafter; several times.")],
    suite: Annotated[list[str], typer.Option(help="Prompts, as for `ppow data`; several times.")],
    output: Annotated[Path, typer.Option(help="Folder of the texts, results.json and report.md.")] = Path(
        "runs/lookup_overlap"
    ),
    window: Annotated[int, typer.Option(help="Tokens per window.", min=1)] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the texts.", min=2)] = 128,
    target: Annotated[str, typer.Option(help="The target.")] = DEFAULT_TARGET,
    dtype: Annotated[str, typer.Option(help="Its dtype.")] = "auto",
    seed: SeedOption = 0,
) -> None:
    """Compare what lookup and drafters know of the same texts."""
    torch.manual_seed(seed)
    model, tokenizer = load_target(target, dtype=dtype, device="auto")
    drafters = {name: load_drafter(folder, model) for name, folder in named_folders(drafter).items()}
    answers = target_answers(model, tokenizer, suite, output, max_new_tokens)
    rows = []
    for source in sorted(set(answers["source"])):
        parts = [part for row in answers if row["source"] == source for part in responses_of(row)]
        texts = [(ids, length + 1) for ids, length in parts if len(ids) > length + 1]
        looked_up = [looked_up_from_everywhere(ids, first, window) for ids, first in texts]
        for name, one in drafters.items():
            lengths = with_further(looked_up, drafted_from_everywhere(model, one, texts, window))
            rows.append({"suite": source, "drafter": name, **figures(lengths, window)})
    results = {
        "environment": describe_environment(model.device),
        "arguments": {
            "target": model.config._name_or_path,
            "dtype": str(model.dtype).removeprefix("torch."),
            "window": window,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        },
        "results": rows,
    }
    write_json_whole(output / "results.json", results)
    write_text_whole(output / "report.md", report(results))
    print(report(results))


if __name__ == "__main__":
    run(main)
