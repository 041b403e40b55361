# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Evaluation during training by what counts: held-out prompts decoded for real."""

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from ..drafters import DrafterModel
from ..generation.window_config import WindowConfig


def prompt_of(row: dict) -> list[int]:
    """The token ids before the target's first own token."""
    mask = list(row["loss_mask"])
    return list(row["input_ids"])[: mask.index(1)] if 1 in mask else list(row["input_ids"])


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
        max_new_tokens (`int`): New tokens for each.
        window (`str` or [`WindowConfig`]): Window policy.

    Returns:
        `dict[str, float]`: `acceptance_length` (tau: committed tokens per verification, bonus token included),
        `acceptance_rate` (accepted per drafted token) and `mean_window`.
    """
    window = WindowConfig.parse(window) if isinstance(window, str) else window
    was_training = drafter.training
    drafter.eval()
    totals = torch.zeros(4, dtype=torch.float64)
    chosen = range(accelerator.process_index, min(num_prompts, len(dataset)), accelerator.num_processes)
    with torch.autocast(target.device.type, enabled=False):
        for index in chosen:
            prompt = torch.tensor([prompt_of(dataset[index])], device=target.device)
            target.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                assistant_model=drafter,
                window=window,
                do_sample=False,
                max_new_tokens=max_new_tokens,
            )
            for cycle in drafter.last_trace.cycles:
                totals += torch.tensor([1.0, cycle.drafted, cycle.accepted, cycle.accepted + 1.0])
    drafter.train(was_training)
    totals = accelerator.reduce(totals.to(accelerator.device, torch.float32), reduction="sum").tolist()
    cycles, drafted, accepted, committed = totals
    return {
        "acceptance_length": committed / max(cycles, 1.0),
        "acceptance_rate": accepted / max(drafted, 1.0),
        "mean_window": drafted / max(cycles, 1.0),
    }
