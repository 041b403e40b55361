# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import math
import time

import pytest
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from ppow_hf.trainer import DrafterSFTTrainer
from tests.testing_utils import tiny_eagle3, tiny_target

from .common import sft_args, sft_trainer, token_rows


class Slow(TrainerCallback):
    """Takes time outside and inside of steps."""

    def on_evaluate(self, args, state, control, **kwargs):
        time.sleep(0.5)

    def on_substep_end(self, args, state, control, **kwargs):
        time.sleep(0.1)


def test_training_stops_when_the_time_is_spent(tmp_path):
    target = tiny_target()
    args = sft_args(
        tmp_path,
        max_steps=200,
        max_seconds=1.0,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        eval_decode_prompts=0,
    )
    trainer = DrafterSFTTrainer(
        tiny_eagle3(target), target, args, token_rows(), token_rows(2, seed=1), callbacks=[Slow()]
    )
    trainer.train()
    # At least 0.1 s a step: the budget of 1 s allows 10 at the very most, and the evaluations' sleep is not counted.
    assert 1 <= trainer.state.global_step <= 10


class Rates(TrainerCallback):
    """Remembers the learning rate of every step and the share of the budget spent before it."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, lr_scheduler=None, optimizer=None, **kwargs):
        self.seen.append((self.trainer.time_budget.fraction, self.trainer.optimizer.param_groups[0]["lr"]))


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0, lambda step, spent: 1 - spent),
        ("linear", 4, lambda step, spent: min(1, step / 4) * (1 - spent)),
        ("cosine", 0, lambda step, spent: 0.5 * (1 + math.cos(math.pi * spent))),
        ("constant_with_warmup", 4, lambda step, spent: min(1, step / 4)),
    ],
)
def test_the_learning_rate_follows_the_time_spent(tmp_path, schedule, warmup, expected):
    target = tiny_target()
    rates = Rates()
    args = sft_args(
        tmp_path,
        max_steps=500,
        max_seconds=1.0,
        learning_rate=1e-3,
        lr_scheduler_type=schedule,
        warmup_steps=warmup,
        gradient_accumulation_steps=2,
        eval_strategy="no",
    )
    trainer = DrafterSFTTrainer(
        tiny_eagle3(target), target, args, token_rows(), token_rows(2, seed=1), callbacks=[rates, Slow()]
    )
    rates.trainer = trainer
    trainer.train()
    assert len(rates.seen) >= 3
    # The scheduler steps before the step's own time is counted: a rate belongs to the time spent one step earlier.
    spent = [0.0, *(fraction for fraction, _ in rates.seen[:-1])]
    for step, (fraction, (_, rate)) in enumerate(zip(spent, rates.seen, strict=True)):
        assert rate == pytest.approx(1e-3 * expected(step, fraction), rel=1e-3, abs=1e-9)


def test_a_schedule_that_does_not_follow_progress_is_refused(tmp_path):
    target = tiny_target()
    args = sft_args(
        tmp_path,
        max_steps=5,
        max_seconds=1.0,
        lr_scheduler_type="reduce_lr_on_plateau",
        eval_strategy="steps",
        eval_decode_prompts=0,
    )
    trainer = DrafterSFTTrainer(tiny_eagle3(target), target, args, token_rows(), token_rows(2, seed=1))
    with pytest.raises(ValueError, match="lr_scheduler_type"):
        trainer.train()


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_a_budget_must_be_positive(tmp_path, seconds):
    with pytest.raises(ValueError, match="`max_seconds`"):
        sft_args(tmp_path, max_seconds=seconds)


def test_an_unknown_window_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="window"):
        sft_args(tmp_path, eval_window="sometimes:5")


def test_a_resumed_run_goes_on_with_the_time_already_spent(tmp_path):
    """Out of the budget of the resumed run, which may be another one."""
    saving = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    first = sft_trainer(tmp_path, max_steps=2, max_seconds=100.0, **saving)
    first.train()
    checkpoint = tmp_path / "checkpoint-2"
    stored = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).stateful_callbacks["TimeBudget"]
    spent = stored["attributes"]["spent"]
    assert spent > 0
    trainer = sft_trainer(tmp_path, max_steps=4, max_seconds=200.0, **saving)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.time_budget.spent > spent and trainer.time_budget.seconds == 200.0
    # A budget that is spent already: one step, and no more.
    trainer = sft_trainer(tmp_path, max_steps=100, max_seconds=spent, **saving)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 3


def test_a_resumed_run_goes_on_waiting_for_a_better_drafter(tmp_path):
    """With a rate of 0 no evaluation is better than the first."""

    def run(folder, steps, resume=None):
        trainer = sft_trainer(
            folder,
            eval_dataset=token_rows(4, seed=1),
            learning_rate=0.0,
            max_steps=steps,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            early_stopping_patience=4,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state.global_step

    uninterrupted = run(tmp_path / "whole", 20)
    assert uninterrupted < 10
    assert run(tmp_path / "parts", 3) == 3
    assert run(tmp_path / "parts", 20, resume=True) == uninterrupted
