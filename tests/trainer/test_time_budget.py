# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import time

import pytest
from transformers import TrainerCallback

from ppow_hf.trainer import DrafterSFTTrainer
from tests.testing_utils import tiny_eagle3, tiny_target

from .common import sft_args, token_rows


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


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_a_budget_must_be_positive(tmp_path, seconds):
    with pytest.raises(ValueError, match="`max_seconds`"):
        sft_args(tmp_path, max_seconds=seconds)


def test_an_unknown_window_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="window"):
        sft_args(tmp_path, eval_window="sometimes:5")
