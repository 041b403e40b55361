# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Evaluation during training by what counts: held-out prompts decoded for real."""

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from ..drafters import DrafterModel
from ..generation import GenerationTrace, WindowConfig


def prompt_of(row: dict) -> list[int]:
    """The token ids before the target's first own token; the first token of a text that is all the target's own."""
    mask = list(row["loss_mask"])
    return list(row["input_ids"])[: max(mask.index(1), 1)] if 1 in mask else list(row["input_ids"])


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
        dataset ([`~datasets.Dataset`]): Rows with `input_ids` and `loss_mask`; the first `num_prompts` are decoded,
            those without a single token left out.
        num_prompts (`int`): How many.
        max_new_tokens (`int`): New tokens for each.
        window (`str` or [`WindowConfig`]): Window policy.

    Returns:
        `dict[str, float]`: `acceptance_length` (tau: committed tokens per verification, bonus token included),
        `acceptance_rate` (accepted per drafted token) and `mean_window`.
    """
    was_training = drafter.training
    drafter.eval()
    totals = torch.zeros(4, dtype=torch.float64)
    chosen = range(accelerator.process_index, min(num_prompts, len(dataset)), accelerator.num_processes)
    with torch.autocast(target.device.type, enabled=False):
        for index in chosen:
            prompt = prompt_of(dataset[index])
            if not prompt:
                continue
            trace = decode_prompt(
                target, drafter, prompt, window=window, max_new_tokens=max_new_tokens, do_sample=False
            )
            for cycle in trace.cycles:
                totals += torch.tensor([1.0, cycle.drafted, cycle.accepted, cycle.accepted + 1.0])
    drafter.train(was_training)
    totals = accelerator.reduce(totals.to(accelerator.device, torch.float32), reduction="sum").tolist()
    cycles, drafted, accepted, committed = totals
    return {
        "acceptance_length": committed / max(cycles, 1.0),
        "acceptance_rate": accepted / max(drafted, 1.0),
        "mean_window": drafted / max(cycles, 1.0),
    }
