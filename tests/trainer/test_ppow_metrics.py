# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the reinforcement-learning stage logs."""

import copy

import pytest
import torch

from ppow_hf.rl import SelectedWindows
from ppow_hf.trainer import window_experience, window_metrics
from ppow_hf.trainer.weighted_means import WeightedMeans
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


def test_criticality_is_a_mean_over_windows_however_rows_are_batched(tmp_path):
    """Rows offer between 2 and 10 starts; all are chosen, so that other draws cannot make a difference."""
    target = tiny_target()
    start = tiny_eagle3(target, draft_vocab_size=48)
    rows = rows_with([[0] * own + [1] * (18 - own) for own in (5, 12, 9, 13)])
    found = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        trainer = ppow_trainer(
            tmp_path,
            copy.deepcopy(start),
            target,
            rows,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            num_windows=10,
            adaw_warmup=0,
            max_steps=1,
            **QUIET,
        )
        values = []
        measure = trainer.experience_maker._criticality

        def noting(*args, values=values, measure=measure):
            values.append(measure(*args))
            return values[-1]

        trainer.experience_maker._criticality = noting
        trainer.train()
        (log,) = training_logs(trainer, "criticality/all")
        # By hand: a window of 3 and the token before it lie in the target's own text.
        starts = [range(own + 1, 16) for own in (5, 12, 9, 13)]
        by_row = torch.cat(values)
        mean = torch.cat([by_row[row, list(places)] for row, places in enumerate(starts)]).mean().item()
        assert log["criticality/all"] == pytest.approx(mean, rel=1e-5)
        assert log["criticality/chosen"] == pytest.approx(mean, rel=1e-5)
        found.append(mean)
    assert len(found) == 3 and found == pytest.approx([found[0]] * 3, rel=1e-4)


def test_the_criticality_of_chosen_windows_is_a_mean_over_them():
    """Three rows with 3, 1 and no chosen window, in one batch or in one each."""
    eligible = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    starts = torch.tensor([[1, 2, 4], [1, -1, -1], [-1, -1, -1]])
    values = torch.tensor([[9.0, 1.0, 2.0, 8.0, 3.0], [9.0, 6.0, 9.0, 9.0, 9.0], [9.0] * 5])
    for size in (1, 2, 3):
        means = WeightedMeans()
        for rows in torch.arange(3).split(size):
            skipped = int((~eligible[rows].any(-1)).sum())
            selected = SelectedWindows(starts[rows], eligible[rows], skipped)
            means.add(window_metrics.selection_metrics(selected, values[rows]))
        taken = means.take()
        assert taken["criticality/chosen"] == (1.0 + 2.0 + 3.0 + 6.0) / 4
        assert taken["criticality/all"] == (1.0 + 2.0 + 8.0 + 3.0 + 6.0) / 5


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
