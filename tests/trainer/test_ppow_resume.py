# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A run that is judged by held-out prompts, killed and gone on with, comes to what an uninterrupted one comes to."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.testing_utils import tiny_eagle3
from tests.trainer.counting_toy import counting_rows, counting_target, fit
from tests.trainer.ppow_common import assert_equal_weights, ppow_trainer, weights_of


class Kill(TrainerCallback):
    """Ends a run without warning, in the midst of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    return counting_target()


def drafter_of(target, jumps, steps):
    torch.manual_seed(0)
    return fit(tiny_eagle3(target, seed=1, initialization="random"), target, jumps, steps=steps)


def figures_of(trainer, behind: int) -> dict[tuple[int, bool], dict]:
    """What was logged at every step behind one, but for times. Where a run goes on it is evaluated once more."""
    logs = [log for log in trainer.state.log_history if log["step"] > behind and "train_runtime" not in log]
    timeless = [{k: v for k, v in log.items() if "second" not in k and "runtime" not in k} for log in logs]
    return {(log["step"], "eval_acceptance_length" in log): log for log in timeless}


def state_of(trainer) -> dict:
    state = trainer.state
    best = state.best_model_checkpoint
    return {
        "stopped": state.global_step,
        "best": (state.best_metric, state.best_global_step, None if best is None else Path(best).name),
        "waited": trainer.state.stateful_callbacks["EarlyStopping"]["attributes"],
        "target_tokens": trainer.training_cost.target_tokens,
        "initial": trainer.initial_figures(),
    }


def run_both(folder, target, start, kill, every, **overrides):
    """One run through, and one killed in the step behind `kill` and gone on with from its last checkpoint."""
    rows = counting_rows()
    options = {
        "eval_on_start": True,
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "eval_decode_prompts": 4,
        "eval_decode_new_tokens": 9,
        **overrides,
    }
    whole = ppow_trainer(folder / "whole", copy.deepcopy(start), target, rows, rows, **options)
    whole.train()
    killed = ppow_trainer(folder / "parts", copy.deepcopy(start), target, rows, rows, **options)
    killed.add_callback(Kill(kill))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    # A process that begins with other weights in memory: all must come from the files.
    other = tiny_eagle3(target, seed=5, initialization="random")
    again = ppow_trainer(folder / "parts", other, target, rows, rows, **options)
    again.train(resume_from_checkpoint=True)
    return whole, again


def assert_the_same(whole, again, folder, since):
    assert_equal_weights(weights_of(whole.model), again.model.state_dict())
    assert state_of(whole) == state_of(again)
    assert figures_of(whole, since) == figures_of(again, since)
    names = sorted(path.name for path in (folder / "whole").glob("checkpoint-*"))
    assert names == sorted(path.name for path in (folder / "parts").glob("checkpoint-*")) and len(names) > 2
    for name in (*names, "initial"):
        one, other = (load_file(folder / run / name / "model.safetensors") for run in ("whole", "parts"))
        assert_equal_weights(one, other)


def test_patience_counts_on_and_the_initial_drafter_is_kept(tmp_path, target):
    """A rate that ruins the drafter: no evaluation is better than the one before the first step."""
    start = drafter_of(target, (1,), 60)
    options = {"learning_rate": 1.0, "beta": 1.0, "max_steps": 6, "early_stopping_patience": 3}
    whole, again = run_both(tmp_path, target, start, kill=2, every=1, **options)
    assert whole.state.global_step == 3 and whole.state.best_global_step == 0
    assert_the_same(whole, again, tmp_path, since=2)
    assert_equal_weights(start.state_dict(), again.model.state_dict())
    trained = load_file(tmp_path / "parts" / "checkpoint-3" / "model.safetensors")
    assert any(not torch.equal(value, start.state_dict()[name]) for name, value in trained.items())


def test_the_best_checkpoint_may_lie_before_or_behind_the_kill(tmp_path, target):
    """An anchor along the text leads a drafter of other steps to the target's; then nothing is left to gain."""
    start = drafter_of(target, (2, 3), 120)
    options = {
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "anchor_weight": 1.0,
        "window_size": 3,
        "num_generations": 4,
        "num_windows": 4,
        "adaw_warmup": 12,
        "max_steps": 200,
        "early_stopping_patience": 3,
        "logging_steps": 5,
    }
    whole, again = run_both(tmp_path, target, start, kill=23, every=10, **options)
    assert 0 < whole.state.best_global_step < whole.state.global_step < 200
    assert whole.state.best_metric > whole.initial_figures()["acceptance_length"] + 1
    assert_the_same(whole, again, tmp_path, since=20)
    best = load_file(Path(whole.state.best_model_checkpoint) / "model.safetensors")
    assert_equal_weights(best, again.model.state_dict())
