# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Evaluation during training by what counts: held-out prompts decoded for real."""

import sys
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from transformers.utils import logging

from ..drafters import DrafterModel
from ..generation import GenerationTrace, WindowConfig
from .positions import longest_text

logger = logging.get_logger(__name__)


def prompt_of(row: dict) -> list[int]:
    """The token ids before the target's first own token; the first token of a text that is all the target's own."""
    mask = list(row["loss_mask"])
    return list(row["input_ids"])[: max(mask.index(1), 1)] if 1 in mask else list(row["input_ids"])


def can_decode(prompt: list[int], longest: int) -> bool:
    """
    Whether there is anything to decode, and room for a token of the target's and one that is verified.

    Args:
        prompt (`list[int]`): Token ids.
        longest (`int`): Most tokens of a text, as [`longest_text`] has it.
    """
    return 0 < len(prompt) <= longest - 2


def _check_rows(dataset: Any, num_prompts: int) -> None:
    if isinstance(dataset, IterableDataset | torch.utils.data.IterableDataset):
        raise ValueError(
            f"`eval_dataset` is streamed ({type(dataset).__name__}), but its first {num_prompts} prompts are decoded "
            "at every evaluation (`eval_decode_prompts`). Give a `Dataset`, for example "
            "`Dataset.from_list(list(stream.take(100)))`, or set `eval_decode_prompts=0`."
        )


def check_prompts(dataset: Dataset, num_prompts: int, target: PreTrainedModel, drafter: DrafterModel) -> None:
    """
    Warns of held-out prompts that cannot be decoded, before training.

    Args:
        dataset ([`~datasets.Dataset`]): The `eval_dataset`.
        num_prompts (`int`): How many of its prompts are to be decoded.
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.

    Raises:
        ValueError: If none of them can be, or the dataset is streamed.
    """
    _check_rows(dataset, num_prompts)
    prompts = [prompt_of(row) for row in dataset.select(range(min(num_prompts, len(dataset))))]
    longest = longest_text(target, drafter)
    left_out = sum(not can_decode(prompt, longest) for prompt in prompts)
    if not left_out:
        return
    reason = "they have no token"
    if longest < sys.maxsize:
        reason += f", or more than the {longest - 2} behind which learned positions leave room to draft"
    said = (
        f"{left_out} of the first {len(prompts)} prompts of `eval_dataset` (`eval_decode_prompts`) cannot be decoded: "
        f"{reason}."
    )
    if left_out == len(prompts):
        raise ValueError(f"{said} Give other prompts, or set `eval_decode_prompts=0`.")
    logger.warning(f"{said} They are skipped, and counted as `eval_skipped_prompts`.")


def decode_prompt(
    target: PreTrainedModel, drafter: DrafterModel, prompt: list[int], *, window: str | WindowConfig, **options
) -> GenerationTrace:
    """
    Decodes one prompt speculatively.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
        prompt (`list[int]`): Token ids.
        window (`str` or [`WindowConfig`]): Window policy.
        options: Passed to `generate`.

    Returns:
        [`GenerationTrace`]: What happened, cycle by cycle.
    """
    input_ids = torch.tensor([prompt], device=target.device)
    attention_mask = torch.ones_like(input_ids)
    target.generate(input_ids, attention_mask=attention_mask, assistant_model=drafter, window=window, **options)
    return drafter.last_trace


@torch.no_grad()
def decode_held_out(
    accelerator: Accelerator,
    drafter: DrafterModel,
    target: PreTrainedModel,
    dataset: Dataset,
    *,
    num_prompts: int,
    max_new_tokens: int,
    window: str | WindowConfig,
) -> dict[str, float]:
    """
    Decodes held-out prompts greedily with the drafter, shared out over the processes.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Of the trainer.
        drafter ([`DrafterModel`]): The drafter, unwrapped.
        target ([`~transformers.PreTrainedModel`]): The target.
        dataset ([`~datasets.Dataset`]): Rows with `input_ids` and `loss_mask`; the first `num_prompts` are decoded.
        num_prompts (`int`): How many.
        max_new_tokens (`int`): New tokens for each, or as many as learned positions leave.
        window (`str` or [`WindowConfig`]): Window policy.

    Returns:
        `dict[str, float]`: `acceptance_length` (tau: committed tokens per verification, bonus token included, which is
        missing where a text ends on an accepted draft token), `acceptance_rate` (accepted per drafted token),
        `mean_window` and `skipped_prompts` (without a token, or without room for a window behind them).

    Raises:
        ValueError: If the dataset is streamed.
    """
    _check_rows(dataset, num_prompts)
    was_training = drafter.training
    drafter.eval()
    totals = torch.zeros(5, dtype=torch.float64)
    longest = longest_text(target, drafter)
    chosen = range(accelerator.process_index, min(num_prompts, len(dataset)), accelerator.num_processes)
    with torch.autocast(target.device.type, enabled=False):
        for index in chosen:
            prompt = prompt_of(dataset[index])
            if not can_decode(prompt, longest):
                totals[-1] += 1
                continue
            room = min(max_new_tokens, longest - len(prompt))
            trace = decode_prompt(target, drafter, prompt, window=window, max_new_tokens=room, do_sample=False)
            for cycle in trace.cycles:
                totals += torch.tensor([1.0, cycle.drafted, cycle.accepted, cycle.committed, 0.0])
    drafter.train(was_training)
    totals = accelerator.reduce(totals.to(accelerator.device, torch.float32), reduction="sum").tolist()
    cycles, drafted, accepted, committed, skipped = totals
    return {
        "acceptance_length": committed / max(cycles, 1.0),
        "acceptance_rate": accepted / max(drafted, 1.0),
        "mean_window": drafted / max(cycles, 1.0),
        "skipped_prompts": skipped,
    }
