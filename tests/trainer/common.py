# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Small training sets for tests."""

import torch
from datasets import Dataset

from ppow_hf.trainer import DrafterSFTConfig, DrafterSFTTrainer
from tests.testing_utils import tiny_eagle3, tiny_target


def token_rows(num_rows: int = 16, vocab_size: int = 96, seed: int = 0, length: int = 24) -> Dataset:
    """Rows of random tokens of different lengths whose second half counts as the target's own text."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(num_rows):
        size = length - 3 * (index % 3)
        ids = torch.randint(2, vocab_size, (size,), generator=generator).tolist()
        start = size // 3
        rows.append({"input_ids": ids, "loss_mask": [0] * start + [1] * (size - start)})
    return Dataset.from_list(rows)


def sft_args(output_dir, **overrides) -> DrafterSFTConfig:
    """A configuration for tests: CPU, float32, nothing reported."""
    values = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "ttt_steps": 3,
        "max_steps": 4,
        "logging_steps": 1,
        "eval_decode_prompts": 2,
        "eval_decode_new_tokens": 8,
        "eval_window": "fixed:3",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return DrafterSFTConfig(**{**values, **overrides})


def sft_trainer(output_dir, drafter=None, target=None, dataset=None, eval_dataset=None, **overrides):
    """A trainer of a tiny drafter."""
    target = target if target is not None else tiny_target()
    return DrafterSFTTrainer(
        model=drafter if drafter is not None else tiny_eagle3(target, draft_vocab_size=48),
        target_model=target,
        args=sft_args(output_dir, **overrides),
        train_dataset=dataset if dataset is not None else token_rows(),
        eval_dataset=eval_dataset,
    )
