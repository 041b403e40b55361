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

from ppow_hf import AutoDrafter, load_target
from ppow_hf.evaluation.compare import responses_of
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.markdown import number, percent, table
from ppow_hf.evaluation.replay import accepted_from_everywhere, replay
from ppow_hf.generation.lookup import LookupIndex
from ppow_hf.scripts.command_line import SeedOption, run
from ppow_hf.scripts.compare_drafters import greedy_answers
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
        found = zip(index.propose(window), token_ids[position:], strict=False)
        right.append(sum(1 for _ in takewhile(lambda pair: eq(*pair), found)))
        index.append(token_ids[position])
    return right


def lengths_of(target, drafter, texts: Sequence[tuple[list[int], int]], window: int) -> list[dict[str, list[int]]]:
    """
    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
        texts (`Sequence[tuple[list[int], int]]`): Token ids of prompt and response, and the prompt's length.
        window (`int`): Tokens per window.

    Returns:
        `list[dict]`: Of each text, for every position a window can start at, the tokens accepted of lookup's, of the
        drafter's, and of the better of the two.
    """
    drafter.bind_target(target)
    found = []
    for token_ids, prompt_length in tqdm(texts, unit="text"):
        first = prompt_length + 1
        if len(token_ids) <= first:
            continue
        input_ids = torch.tensor([token_ids], device=target.device)
        drafted = accepted_from_everywhere(target, drafter, input_ids, first, window).tolist()
        looked_up = looked_up_from_everywhere(token_ids, first, window)
        further = [max(pair) for pair in zip(looked_up, drafted, strict=True)]
        found.append({"lookup": looked_up, "drafter": drafted, "further": further})
    return found


def figures(lengths: Sequence[Mapping[str, Sequence[int]]], window: int) -> dict[str, float | int | None]:
    """
    Args:
        lengths (`Sequence[Mapping]`): Of each text, see [`lengths_of`].
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
    answers = greedy_answers(model, tokenizer, suite, output / "answers", max_new_tokens)
    rows = []
    for name, _, folder in (entry.rpartition("=") for entry in drafter):
        one = AutoDrafter.from_pretrained(folder, dtype=model.dtype)
        for source in dict.fromkeys(answers["source"]):
            texts = [text for row in answers if row["source"] == source for text in responses_of(row)]
            found = figures(lengths_of(model, one, texts, window), window)
            rows.append({"suite": source, "drafter": name or Path(folder).name, **found})
    rows.sort(key=lambda row: row["suite"])
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
