# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How rows become optimiser steps: grouping by length, accumulation, mixed precision, one device per process."""

import copy

import pytest
import torch
from torch import nn

from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import sft_args, sft_trainer, token_rows
from tests.trainer.naive_sft import naive_loss, naive_windows


def uneven_rows(num_rows: int = 8):
    """Rows of which each has another number of tokens of the target's own."""
    dataset = token_rows(num_rows, length=30)
    masks = [[0] * (len(ids) - 3 - 2 * i) + [1] * (3 + 2 * i) for i, ids in enumerate(dataset["input_ids"])]
    return dataset.remove_columns("loss_mask").add_column("loss_mask", masks)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_gradients_are_those_of_one_big_batch(tmp_path, accumulation):
    target = tiny_target()
    start = tiny_eagle3(target, draft_vocab_size=48)
    results = []
    for steps in (1, accumulation):
        drafter = copy.deepcopy(start)
        trainer = sft_trainer(
            tmp_path / str(steps),
            drafter,
            target,
            uneven_rows(),
            per_device_train_batch_size=4 // steps,
            gradient_accumulation_steps=steps,
            train_sampling_strategy="sequential",
            optim="sgd",  # whose step is as long as the gradient
            learning_rate=0.5,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            max_steps=2,
        )
        trainer.train()
        logs = [log for log in trainer.state.log_history if "learning_rate" in log]
        figures = [{k: v for k, v in log.items() if k.startswith(("loss", "step_", "simulated"))} for log in logs]
        results.append((drafter.state_dict(), figures))
    (whole, figures), (parts, other_figures) = results
    assert any(not torch.allclose(value, start.state_dict()[name], atol=1e-3) for name, value in whole.items())
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-4, msg=name)
    for one, other in zip(figures, other_figures, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_batches_hold_rows_of_like_length(tmp_path):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 60, (128,), generator=generator).tolist()
    rows = [{"input_ids": [i % 90 + 2] * n, "loss_mask": [0] * 2 + [1] * (n - 2)} for i, n in enumerate(lengths)]
    dataset = token_rows(1).from_list(rows)
    padding = {}
    for strategy in ("group_by_length", "random"):
        trainer = sft_trainer(tmp_path, dataset=dataset, train_sampling_strategy=strategy)
        masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
        found = [length for mask in masks for length in mask.sum(1).tolist()]
        assert sorted(found) == sorted(lengths), "every row once"
        padding[strategy] = sum((mask == 0).sum().item() for mask in masks)
    assert trainer.args.train_sampling_strategy == "random"
    assert padding["group_by_length"] < 0.4 * padding["random"]


@pytest.mark.parametrize("kind", ["eagle3", "eagle3_whole_vocabulary", "causal_lm"])
def test_a_batch_of_long_prompts_alone_teaches_nothing(tmp_path, kind):
    """Prompts that fill `max_length` leave no token of the target's own."""
    target = tiny_target()
    if kind == "causal_lm":
        drafter = tiny_causal_drafter(target)
    else:
        drafter = tiny_eagle3(target, draft_vocab_size=48 if kind == "eagle3" else None)
    rows = [{"input_ids": list(range(2, 40)), "loss_mask": [0] * 20 + [1] * 18}] * 4
    rows = token_rows(1).from_list([*rows, {"input_ids": [5, 6, 7], "loss_mask": [0, 1, 1]}])
    before = {name: value.clone() for name, value in drafter.named_parameters()}
    order = {"train_sampling_strategy": "sequential"}  # the last row, which teaches something, is not reached
    trainer = sft_trainer(tmp_path, drafter, target, rows, max_length=20, max_steps=1, weight_decay=0.0, **order)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0.0
    for name, value in drafter.named_parameters():
        assert torch.equal(before[name], value), name


def test_grouping_by_length_is_the_default(tmp_path):
    assert sft_args(tmp_path).train_sampling_strategy == "group_by_length"


@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
def test_training_in_bfloat16(tmp_path, family):
    """The loss is that of float32 but for rounding; the weights and their updates stay in float32."""
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48) if family == "eagle3" else tiny_causal_drafter(target)
    rows = token_rows(8)
    start = copy.deepcopy(drafter).eval()
    start.bind_target(target)
    trainer = sft_trainer(
        tmp_path, drafter, target, rows, rows, bf16=True, max_steps=2, learning_rate=1e-3, eval_decode_prompts=0,
        per_device_train_batch_size=8, window_reward_weight=0.0, warmup_steps=0, lr_scheduler_type="constant",
    )  # fmt: skip
    windows = [window for row in rows for window in naive_windows(start, target, row, trainer.ttt_steps)]
    before = naive_loss(windows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(before, rel=0.02)
    trainer.train()
    logged = [log["loss"] for log in trainer.state.log_history if "learning_rate" in log]
    assert logged[0] == pytest.approx(before, rel=0.02)
    assert logged[0] != pytest.approx(before, rel=1e-6), "this is float32"
    assert logged[1] < logged[0]
    for name, value in drafter.named_parameters():
        assert value.dtype == torch.float32
        assert not torch.equal(value, start.get_parameter(name)), f"{name} did not move"
    assert target.dtype == torch.float32


def test_a_process_trains_on_one_of_several_gpus(tmp_path, caplog):
    """As transformers sees a machine with two GPUs when it was not started by accelerate."""
    rows = token_rows()
    args = sft_args(tmp_path)
    args._n_gpu = 2
    trainer = sft_trainer(tmp_path, dataset=rows)  # for its model
    with caplog.at_level("WARNING"):
        trainer = type(trainer)(model=trainer.model, target_model=trainer.target_model, args=args, train_dataset=rows)
    assert "sees 2 GPUs" in caplog.text and "accelerate launch --num_processes 2" in caplog.text
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 4
    assert not isinstance(trainer._wrap_model(trainer.model), nn.DataParallel)
    assert args.n_gpu == 2, "the caller's configuration stays as it was"
    trainer.train()
