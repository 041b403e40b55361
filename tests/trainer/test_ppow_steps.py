# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Optimiser steps of the reinforcement-learning stage: accumulation, resuming, divergence, and their time."""

import copy
import time

import pytest
import torch
from transformers import TrainerCallback

from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.ppow_common import (
    QUIET,
    RowByRow,
    assert_equal_weights,
    equal_length_rows,
    ppow_trainer,
    training_logs,
    weights_of,
)

# ---- accumulation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 2])
def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path, iterations):
    target = tiny_target()
    start = tiny_eagle3(target, draft_vocab_size=48)
    results = []
    for batch_size, batches in ((4, 1), (2, 2), (1, 4)):
        drafter = copy.deepcopy(start)
        trainer = ppow_trainer(
            tmp_path,
            drafter,
            target,
            # Rows that offer one window and rows that offer six.
            equal_length_rows(),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=batches,
            num_iterations=iterations,
            num_windows=6,
            anchor_weight=0.2,
            expected_length_weight=0.1,
            kl_weighting="reach",
            proximity_epsilon=8.0,
            train_sampling_strategy="sequential",
            optim="sgd",  # whose step is as long as the gradient
            learning_rate=0.5,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            max_steps=2,
            **QUIET,
        )
        trainer.experience_maker = RowByRow(trainer.experience_maker)
        trainer.train()
        results.append((weights_of(drafter), training_logs(trainer, "kl")))
    (whole, logs), *others = results
    assert any(not torch.allclose(value, start.state_dict()[name], atol=1e-3) for name, value in whole.items())
    for weights, other_logs in others:
        for name, value in whole.items():
            torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-4, msg=name)
        for one, other in zip(logs, other_logs, strict=True):
            for name in one.keys() - {"skipped_rows", "epoch", "windows_per_second"}:
                if "seconds/" not in name:
                    assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


# ---- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
@pytest.mark.parametrize("iterations", [1, 2])
def test_resume_with_accumulation_and_sampled_acceptance(tmp_path, family, iterations):
    target = tiny_target()
    start = tiny_eagle3(target, draft_vocab_size=48) if family == "eagle3" else tiny_causal_drafter(target)
    options = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_iterations": iterations,
        "adaw_warmup": 0.5,
        "acceptance": "sampled",
        "rollout_temperature": 0.8,
        "credit": "prefix",
        **QUIET,
    }
    runs = []
    for folder, resume in (("whole", None), ("again", str(tmp_path / "whole" / "checkpoint-2"))):
        saving = {} if resume else {"save_strategy": "steps", "save_steps": 2}
        trainer = ppow_trainer(tmp_path / folder, copy.deepcopy(start), target, **options, **saving)
        trainer.train(resume_from_checkpoint=resume)
        runs.append(trainer)
    whole, again = runs
    assert any(not torch.equal(value, start.state_dict()[name]) for name, value in whole.model.state_dict().items())
    assert_equal_weights(whole.model.state_dict(), again.model.state_dict())
    logs = [[log for log in training_logs(run, "kl") if log["step"] > 2] for run in runs]
    for one, other in zip(*logs, strict=True):
        assert {k: v for k, v in one.items() if "second" not in k} == {
            k: v for k, v in other.items() if "second" not in k
        }


def test_a_checkpoint_between_rollouts_is_warned_of(tmp_path, caplog):
    options = {"num_iterations": 2, "save_strategy": "steps", "save_steps": 2, **QUIET}
    with caplog.at_level("WARNING"):
        ppow_trainer(tmp_path / "even", max_steps=4, **options).train()
    assert "lies between two rollouts" not in caplog.text
    with caplog.at_level("WARNING"):
        ppow_trainer(tmp_path / "odd", max_steps=3, **options).train()
    assert "The checkpoint at step 3 lies between two rollouts" in caplog.text
    # It can be gone on from, with rollouts of its own before the next ones are due.
    trainer = ppow_trainer(tmp_path / "odd", max_steps=6, **options)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert [log["step"] for log in training_logs(trainer) if log["step"] > 3] == [4, 5]


def test_two_runs_of_a_trainer_have_nothing_in_common(tmp_path):
    """The second sees the windows that a run of a new trainer sees."""
    seeds = []

    def watched(trainer):
        make = trainer.experience_maker

        class Watched:
            seconds = make.seconds

            def __call__(self, *args, **kwargs):
                seeds.append(kwargs["seed"])
                return make(*args, **kwargs)

        trainer.experience_maker = Watched()
        return trainer

    trainer = watched(ppow_trainer(tmp_path, max_steps=1, **QUIET))
    trainer.train()
    trainer.train()
    assert len(seeds) == 2 and seeds[0] == seeds[1]


# ---- divergence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["uniform", "adaw"])
def test_training_that_diverges_stops(tmp_path, selection):
    drafter = tiny_eagle3(tiny_target(), draft_vocab_size=48)
    trainer = ppow_trainer(
        tmp_path, drafter, window_selection=selection, adaw_warmup=0, learning_rate=1e20, max_grad_norm=0, **QUIET
    )
    with pytest.raises((RuntimeError, ValueError), match="not finite|diverged at step 1, at a learning rate of 1e"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_a_loss_that_is_not_finite_leaves_the_weights_alone(tmp_path):
    drafter = tiny_eagle3(tiny_target(), draft_vocab_size=48)
    trainer = ppow_trainer(tmp_path, drafter, window_selection="uniform", learning_rate=2e-3, **QUIET)
    make = trainer._generate_and_score_completions

    def broken(*arguments):
        experience = make(*arguments)
        if trainer.state.global_step == 1:
            experience.target_probs[0, 0, 0] = float("nan")
            trainer.before = weights_of(drafter)
        return experience

    trainer._generate_and_score_completions = broken
    with pytest.raises(RuntimeError, match="diverged at step 1, at a learning rate of 0.002: kl is nan"):
        trainer.train()
    assert_equal_weights(trainer.before, drafter.state_dict())


# ---- time ----------------------------------------------------------------------------------------------------------


def test_the_phases_of_a_step_add_up_to_it(tmp_path):
    trainer = ppow_trainer(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2, **QUIET
    )
    trainer.create_optimizer()
    step, began = trainer.optimizer.step, []

    def slow_step(*args, **kwargs):
        time.sleep(0.3)
        return step(*args, **kwargs)

    trainer.optimizer.step = slow_step

    class Began(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            began.append(time.perf_counter())

    trainer.add_callback(Began())
    trainer.train()
    first, second = training_logs(trainer)
    phases = {name: value for name, value in first.items() if name.startswith("seconds/")}
    assert phases["seconds/update"] > 0.3, "the optimizer's time is the update's"
    assert 0.3 < sum(phases.values()) < began[1] - began[0], "of the step, not of a micro-batch"


def test_the_time_of_rewards_is_not_the_updates(tmp_path):
    def slow_reward(completion_ids, **kwargs):
        time.sleep(1.0)
        return [0.0] * len(completion_ids)

    trainer = ppow_trainer(tmp_path, max_steps=1, reward_funcs=slow_reward, **QUIET)
    trainer.train()
    (log,) = training_logs(trainer)
    assert log["seconds/scoring"] > 1.0 > log["seconds/update"]


def test_windows_per_second_counts_windows_that_were_made(tmp_path):
    """One row of four has room for windows; two starts of four windows each."""
    rows = token_rows(4)
    rows = rows.remove_columns("loss_mask").add_column(
        "loss_mask",
        [[0] * (len(ids) - own) + [1] * own for ids, own in zip(rows["input_ids"], (2, 8, 2, 2), strict=True)],
    )
    trainer = ppow_trainer(tmp_path, dataset=rows, max_steps=2, **QUIET)
    trainer.train()
    for log in training_logs(trainer):
        seconds = sum(value for name, value in log.items() if name.startswith("seconds/"))
        assert log["windows_per_second"] * seconds == pytest.approx(8.0, rel=1e-3)
    # A step on rollouts that were made before says nothing of how fast they are.
    trainer = ppow_trainer(tmp_path, dataset=rows, max_steps=4, num_iterations=2, **QUIET)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log.get("windows_per_second", -1) > 0 for log in logs] == [True, False] * 2


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_warm_up_by_share_follows_the_time_budget(tmp_path, share):
    trainer = ppow_trainer(tmp_path, max_steps=100_000, max_seconds=1.0, adaw_warmup=share, **QUIET)
    laws, law = [], trainer._law

    def watched(step):
        laws.append((trainer.time_budget.fraction, law(step)))
        return laws[-1][1]

    trainer._law = watched
    trainer.train()
    assert trainer.state.global_step < 100_000
    assert {found for _, found in laws} == ({"uniform", "adaw"} if share else {"adaw"})
    assert all((found == "adaw") == (fraction >= share) for fraction, found in laws)
