# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What verifying all windows of a text in one packed pass saves over verifying them start by start.

    python trainers/recipes/smollm2/packed_verification.py --responses runs/responses

Both ways are timed in turn on the same texts and windows. The pass over the text itself, which both build on, is left
out. Writes results.json.
"""

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ppow_hf import load_target
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.rl import target_prefix, verify_windows
from ppow_hf.scripts.command_line import SeedOption, run
from ppow_hf.scripts.training_run import load_all_responses
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.whole_files import write_json_whole


def measure(
    target: PreTrainedModel, texts: list[torch.LongTensor], starts: int, group: int, window: int, seed: int
) -> list[dict[str, float]]:
    """
    Times both ways on every text.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        texts (`list[torch.LongTensor]`): Token ids of each text, `(T,)`.
        starts, group, window (`int`): Window starts of a text, windows of a start, draft tokens of a window.
        seed (`int`): Of the starts and of the draft tokens, which are drawn at random: their number counts, not what
            they say.

    Returns:
        `list[dict]`: Tokens of each text, seconds of both ways, their ratio, and the largest difference between their
        log-probabilities.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for text in tqdm(texts, unit="text"):
        input_ids = text[None].to(target.device)
        prefix = target_prefix(target, input_ids, torch.ones_like(input_ids))
        places = (torch.randperm(len(text) - 1, generator=generator)[:starts] + 1)[None].to(target.device)
        shape = (1, starts, group, window)
        windows = torch.randint(target.config.vocab_size, shape, generator=generator).to(target.device)
        seconds, found = {}, {}
        for packed in (True, False):
            begin = time.perf_counter()
            found[packed] = verify_windows(target, prefix, places, windows, keep_draft_probs=False, packed=packed)
            if target.device.type == "cuda":
                torch.cuda.synchronize(target.device)
            seconds[packed] = time.perf_counter() - begin
        difference = (found[True].log_probs - found[False].log_probs).abs().max()
        rows.append(
            {
                "text_tokens": len(text),
                "packed_seconds": seconds[True],
                "start_by_start_seconds": seconds[False],
                "ratio": seconds[False] / seconds[True],
                "largest_difference": float(difference),
            }
        )
    return rows


def main(
    responses: Annotated[list[str], typer.Option(help="Folders written by `ppow data`; several times.")],
    output: Annotated[Path, typer.Option(help="Folder of results.json.")] = Path("runs/packed_verification"),
    target: Annotated[str, typer.Option(help="The target.")] = DEFAULT_TARGET,
    dtype: Annotated[str, typer.Option(help="Its dtype.")] = "auto",
    texts: Annotated[int, typer.Option(help="Texts to time on, after one to warm up.", min=1)] = 15,
    starts: Annotated[int, typer.Option(help="Window starts of a text.", min=1)] = 8,
    group: Annotated[int, typer.Option(help="Windows of a start.", min=1)] = 8,
    window: Annotated[int, typer.Option(help="Draft tokens of a window.", min=2)] = 10,
    seed: SeedOption = 0,
) -> None:
    """Time packed verification against verification start by start."""
    model, _ = load_target(target, dtype=dtype, device="auto")
    rows, _ = load_all_responses(responses)
    rows = rows.shuffle(seed=seed).filter(lambda row: len(row["input_ids"]) > starts)
    chosen = [torch.tensor(row["input_ids"]) for row in rows.select(range(min(texts + 1, len(rows))))]
    measured = measure(model, chosen, starts, group, window, seed)[1:]
    median = statistics.median(row["ratio"] for row in measured)
    write_json_whole(
        output / "results.json",
        {
            "environment": describe_environment(model.device),
            "arguments": {
                "target": model.config._name_or_path,
                "dtype": str(model.dtype).removeprefix("torch."),
                "starts": starts,
                "group": group,
                "window": window,
                "seed": seed,
            },
            "median_ratio": median,
            "texts": measured,
        },
    )
    print(f"{median:.2f} times as fast, median of {len(measured)} texts: {output}/results.json")


if __name__ == "__main__":
    run(main)
