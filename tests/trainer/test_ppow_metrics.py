# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the reinforcement-learning stage logs."""

import copy

import pytest
import torch

from ppow_hf.trainer import window_experience
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.ppow_common import (
    QUIET,
    assert_equal_weights,
    ppow_trainer,
    rows_with,
    training_logs,
    weights_of,
)


def test_metrics(tmp_path):
    trainer = ppow_trainer(tmp_path, eval_dataset=token_rows(4, seed=1), anchor_weight=0.1, expected_length_weight=0.1)
    trainer.train()
    start, first, *later = [log for log in trainer.state.log_history if "train_runtime" not in log]
    assert start["eval_acceptance_length"] >= 1.0, "eval_on_start"
    for log in (first, *later):
        for name in (
            "loss", "learning_rate", "reward", "reward_std", "flat_groups", "accepted_length", "share_none_accepted",
            "policy_loss", "kl", "clip_ratio", "entropy", "log_prob_drift", "skipped_rows", "skipped_rows_total",
            "adaw", "anchor", "criticality/chosen", "criticality/all", "expected_length",
            "windows_per_second", "rewards/speedup_reward/mean", "acceptance/position_2",
            *(f"seconds/{phase}" for phase in ("target", "selection", "rollout", "verification", "update")),
        ):  # fmt: skip
            assert name in log, name
        # What they must satisfy whatever the models do.
        by_position = [log[f"acceptance/position_{k}"] for k in range(3)]
        assert by_position == sorted(by_position, reverse=True)
        assert log["accepted_length"] == pytest.approx(sum(by_position), abs=1e-5)
        assert log["share_none_accepted"] == pytest.approx(1 - by_position[0], abs=1e-5)
        parts = log["rewards/speedup_reward/mean"] * log["rewards/speedup_reward/share"]
        share = log.get("rewards/proximity_reward/share", 0.0)
        parts += log.get("rewards/proximity_reward/mean", 0.0) * share
        assert share == pytest.approx(log["share_none_accepted"], abs=1e-5)
        assert log["reward"] == pytest.approx(parts, abs=1e-5)
        assert 0 < log["entropy"] < torch.tensor(48.0).log().item() + 1e-5
        assert log["log_prob_drift"] < 1e-5, "the training pass scores the windows as the rollout did"
        assert log["seconds/update"] > 0 and log["windows_per_second"] > 0
        loss = log["policy_loss"] + 0.1 * log["kl"] + 0.1 * log["anchor"] - 0.1 * log["expected_length"]
        assert log["loss"] == pytest.approx(loss, abs=1e-4)
    assert first["adaw"] == 0.0 and later[0]["adaw"] == 1.0
    assert all(log["criticality/chosen"] > 0 and log["criticality/all"] > 0 for log in (first, *later))


def test_adaw_prefers_critical_windows(tmp_path, monkeypatch):
    logs, given = [], {"adaw": [], "uniform": []}
    original = window_experience.select_windows
    for selection in ("adaw", "uniform"):

        def noting(*args, values=None, selection=selection, **kwargs):
            given[selection].append(values)
            return original(*args, values=values, **kwargs)

        monkeypatch.setattr(window_experience, "select_windows", noting)
        trainer = ppow_trainer(
            tmp_path, window_selection=selection, adaw_warmup=0, num_windows=3, max_steps=6, **QUIET, learning_rate=0.0
        )
        trainer.train()
        logs.append(training_logs(trainer))
    chosen, every = (sum(log[f"criticality/{name}"] for log in logs[0]) for name in ("chosen", "all"))
    assert chosen > every
    # So that the ablation can be compared. By chance a uniform choice could be as critical: what the choice is made by
    # is the criticality of every start.
    assert all(log["criticality/chosen"] > 0 and log["criticality/all"] > 0 for log in logs[1])
    assert given["uniform"] == [None] * 6
    assert len(given["adaw"]) == 6 and all(values.std() > 0 and values.min() >= 0 for values in given["adaw"])


@pytest.mark.parametrize("iterations", [1, 2])
def test_criticality_under_the_uniform_law_costs_logged_steps_alone_and_changes_nothing(tmp_path, iterations):
    target = tiny_target()
    start = tiny_eagle3(target, draft_vocab_size=48)
    weights, measured = [], []
    for logging_steps in (1, 4):
        drafter, steps = copy.deepcopy(start), []
        trainer = ppow_trainer(
            tmp_path,
            drafter,
            target,
            window_selection="uniform",
            logging_steps=logging_steps,
            num_iterations=iterations,
            max_steps=8,
            **QUIET,
        )
        measure = trainer.experience_maker._criticality

        def noting(*args, steps=steps, trainer=trainer, measure=measure):
            steps.append(trainer.state.global_step)
            return measure(*args)

        trainer.experience_maker._criticality = noting
        trainer.train()
        weights.append(weights_of(drafter))
        measured.append(steps)
        assert all("criticality/chosen" in log for log in training_logs(trainer))
    assert_equal_weights(*weights)
    # The rollouts that the logged steps, the fourth and the eighth, learn from.
    assert measured == ([[*range(8)], [3, 7]] if iterations == 1 else [[0, 2, 4, 6], [2, 6]])


def totals(trainer) -> list[float]:
    """The last log, of the whole training, has none."""
    return [log["skipped_rows_total"] for log in training_logs(trainer) if "skipped_rows_total" in log]


def test_the_count_of_skipped_rows_is_a_total_that_survives_a_resume(tmp_path):
    """Over micro-batches too, whose mean is another number; a new run begins at 0."""
    rows = rows_with([[0, 0, 0, 1, 1], [0] * 4 + [1] * 8, [0, 0, 0, 1, 1], [0, 1, 0]] * 4)
    options = {
        "dataset": rows,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "sequential",
        "logging_steps": 2,
        **QUIET,
    }
    trainer = ppow_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=3, **options)
    trainer.train()
    assert [log["skipped_rows"] for log in training_logs(trainer)][0] == 1.5
    assert totals(trainer) == [6.0]
    trainer.train()
    assert totals(trainer) == [6.0]
    # The third step was counted, but not logged.
    again = ppow_trainer(tmp_path, max_steps=4, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert totals(again) == [6.0, 12.0]
