# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a training takes: the tokens the target is asked about, counted by hand, and the time of its steps."""

import json
import time

import pytest
from transformers import TrainerCallback

from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.ppow_common import QUIET, ppow_trainer

IN_ORDER = {"train_sampling_strategy": "sequential"}


def lengths(count: int) -> int:
    """Tokens of the first rows, over and over."""
    rows = token_rows()["input_ids"]
    return sum(len(rows[i % len(rows)]) for i in range(count))


def test_the_tokens_of_the_texts_are_counted_without_padding(tmp_path):
    options = {"max_steps": 3, "gradient_accumulation_steps": 2, "logging_steps": 2, **IN_ORDER}
    trainer = sft_trainer(tmp_path, **options)
    trainer.train()
    assert trainer.training_cost.target_tokens == lengths(3 * 2 * 4)
    logged = {log["step"]: log["target_tokens"] for log in trainer.state.log_history if "learning_rate" in log}
    assert logged == {2: lengths(2 * 2 * 4)}
    trainer.train()
    assert trainer.training_cost.target_tokens == lengths(3 * 2 * 4), "another run begins anew"


def test_evaluation_is_not_counted(tmp_path):
    trainer = sft_trainer(
        tmp_path, eval_dataset=token_rows(4, seed=1), max_steps=2, eval_strategy="steps", eval_steps=1, **IN_ORDER
    )
    trainer.train()
    trainer.evaluate()
    assert trainer.training_cost.target_tokens == lengths(2 * 4)


def test_a_cache_changes_nothing(tmp_path):
    trainer = sft_trainer(tmp_path, max_steps=8, feature_cache_dir=str(tmp_path / "cache"), **IN_ORDER)
    trainer.train()
    assert trainer.training_cost.target_tokens == lengths(8 * 4)


@pytest.mark.parametrize("iterations", [1, 2])
def test_windows_are_counted_when_they_are_verified(tmp_path, iterations):
    """2 starts a row, 4 windows of 3 tokens each; the second step on the same rollouts asks the target nothing."""
    trainer = ppow_trainer(tmp_path, max_steps=4, num_iterations=iterations, **IN_ORDER, **QUIET)
    trainer.train()
    rows = 4 * 4 // iterations
    assert trainer.training_cost.target_tokens == lengths(rows) + rows * 2 * 4 * 3


class Slow(TrainerCallback):
    """Takes time in every step, and much more outside of them."""

    def on_substep_end(self, args, state, control, **kwargs):
        time.sleep(0.05)

    def on_log(self, args, state, control, **kwargs):
        time.sleep(0.5)


def test_seconds_are_those_of_the_steps(tmp_path):
    trainer = sft_trainer(tmp_path, max_steps=2, gradient_accumulation_steps=2)
    trainer.add_callback(Slow())
    begin = time.perf_counter()
    trainer.train()
    assert 2 * 0.05 < trainer.training_cost.seconds < time.perf_counter() - begin - 2 * 0.5


def resumed(folder, change=None):
    """Two steps, then two more from the checkpoint of the first two."""
    options = {"save_strategy": "steps", "save_steps": 2, **IN_ORDER}
    sft_trainer(folder, max_steps=2, **options).train()
    if change is not None:
        path = folder / "checkpoint-2" / "trainer_state.json"
        state = json.loads(path.read_text())
        change(state["stateful_callbacks"])
        path.write_text(json.dumps(state))
    trainer = sft_trainer(folder, max_steps=4, **options)
    trainer.train(resume_from_checkpoint=True)
    return trainer


def test_a_resumed_run_counts_on(tmp_path):
    before = 1e6

    def spend(callbacks):
        callbacks["TrainingCost"]["attributes"]["seconds"] += before

    trainer = resumed(tmp_path, spend)
    assert trainer.training_cost.target_tokens == lengths(4 * 4)
    assert before < trainer.training_cost.seconds < before + 1000


def test_what_a_checkpoint_does_not_say_is_not_made_up(tmp_path):
    """One from before this was counted: the run goes on, and its next checkpoint does not say it either."""
    trainer = resumed(tmp_path, lambda callbacks: callbacks.pop("TrainingCost"))
    assert trainer.state.global_step == 4
    assert trainer.training_cost.facts() == {"seconds": None, "target_tokens": None}
    assert not any("target_tokens" in log for log in trainer.state.log_history if log["step"] > 2)
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    stored = state["stateful_callbacks"]["TrainingCost"]["attributes"]
    assert stored == {"seconds": None, "target_tokens": None, "steps": 4}
