# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from ppow_hf import AutoDrafter
from ppow_hf.trainer import PPOWTrainer
from ppow_hf.trainer.ppow_sampler import IterationSampler
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.ppow_common import (
    QUIET,
    assert_equal_weights,
    make_experience,
    ppow_args,
    ppow_trainer,
    rows_with,
    tokenizer_of,
    training_logs,
    weights_of,
)

# ---- what a run does -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text"])
def test_training_moves_the_drafter_and_not_the_target(tmp_path, family):
    target = tiny_target(family)
    drafter = tiny_eagle3(target, draft_vocab_size=48)
    before, target_before = weights_of(drafter), weights_of(target)
    trainer = ppow_trainer(tmp_path, drafter, target, learning_rate=1e-2, **QUIET)
    trainer.train()
    for name, value in drafter.named_parameters():
        assert not torch.equal(before[name], value), f"{name} did not move"
    assert_equal_weights(target_before, target.state_dict())


def test_a_causal_drafter_trains_on_its_windows(tmp_path):
    target = tiny_target()
    drafter = tiny_causal_drafter(target)
    before = weights_of(drafter)
    trainer = ppow_trainer(tmp_path, drafter, target, expected_length_weight=0.5, anchor_weight=0.5, **QUIET)
    trainer.train()
    for name, value in drafter.named_parameters():
        assert not torch.equal(before[name], value), f"{name} did not move"
    drifts = [entry["log_prob_drift"] for entry in trainer.state.log_history if "log_prob_drift" in entry]
    assert drifts and max(drifts) < 1e-4  # what was rolled out is what is scored


@pytest.mark.parametrize("selection", ["uniform", "adaw"])
def test_windows_are_drawn_in_the_precision_they_are_trained_in(tmp_path, selection):
    trainer = ppow_trainer(tmp_path, bf16=True, window_selection=selection, adaw_warmup=0, max_steps=2)
    trainer.train()
    drifts = [entry["log_prob_drift"] for entry in trainer.state.log_history if "log_prob_drift" in entry]
    assert drifts and max(drifts) < 1e-5


def test_a_trainer_without_held_out_rows_trains(tmp_path):
    args, target = ppow_args(tmp_path, eval_on_start=True, max_steps=1), tiny_target()
    trainer = PPOWTrainer(
        model=tiny_eagle3(target, draft_vocab_size=48), target_model=target, args=args, train_dataset=token_rows()
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert args.eval_on_start, "the caller's configuration stays as it was"


def test_saved_folder_can_be_loaded(tmp_path):
    trainer = ppow_trainer(tmp_path, max_steps=1, **QUIET)
    trainer.train()
    trainer.save_model()
    assert_equal_weights(trainer.model.state_dict(), AutoDrafter.from_pretrained(str(tmp_path)).state_dict())


# ---- rollouts, reuse, resume ---------------------------------------------------------------------------------------


def test_rollouts_are_made_once_and_used_for_every_iteration(tmp_path):
    trainer = ppow_trainer(
        tmp_path, num_iterations=2, gradient_accumulation_steps=2, per_device_train_batch_size=2, max_steps=6, **QUIET
    )
    made, used = [], []
    make, prepare = trainer._generate_and_score_completions, trainer._prepare_inputs

    def counting_make(*arguments):
        made.append(trainer.state.global_step)
        return make(*arguments)

    def checking_prepare(inputs):
        experience = prepare(inputs)
        assert torch.equal(experience.inputs["input_ids"], inputs["input_ids"]), "rollouts of other rows"
        used.append(id(experience))
        return experience

    trainer._generate_and_score_completions, trainer._prepare_inputs = counting_make, checking_prepare
    trainer.train()
    assert made == [0, 0, 2, 2, 4, 4]
    assert len(used) == 12 and used[:2] == used[2:4] and used[4:6] == used[6:8]
    drift = [log["log_prob_drift"] for log in training_logs(trainer, "kl")]
    assert all(d < 1e-5 for d in drift[::2]) and all(d > 1e-4 for d in drift[1::2])


@pytest.mark.parametrize(
    ("iterations", "save", "switch", "steps"), [(1, 6, 7, 9), (2, 10, 12, 14)], ids=["fresh", "two_iterations"]
)
def test_resume_equals_an_uninterrupted_run(tmp_path, iterations, save, switch, steps):
    """Resumed in the second epoch, and windows become critical ones (ADAW) behind that."""
    target = tiny_target()
    start = tiny_eagle3(target, draft_vocab_size=48)
    options = {"max_steps": steps, "num_iterations": iterations, "adaw_warmup": switch, **QUIET}
    runs = []
    for folder, resume in (("whole", None), ("again", str(tmp_path / "whole" / f"checkpoint-{save}"))):
        saving = {} if resume else {"save_strategy": "steps", "save_steps": save}
        trainer = ppow_trainer(tmp_path / folder, copy.deepcopy(start), target, **options, **saving)
        trainer.train(resume_from_checkpoint=resume)
        runs.append(trainer)
    whole, again = runs
    assert_equal_weights(whole.model.state_dict(), again.model.state_dict())
    logs = [[log for log in training_logs(run, "kl") if log["step"] > save] for run in runs]
    assert len(logs[0]) == len(logs[1]) == steps - save
    assert {log["adaw"] for log in logs[0] if "adaw" in log} == {0.0, 1.0}
    for one, other in zip(*logs, strict=True):
        assert {k: v for k, v in one.items() if "second" not in k} == {
            k: v for k, v in other.items() if "second" not in k
        }


def test_a_seed_repeats_a_run_and_another_differs(tmp_path):
    target = tiny_target()
    start = tiny_eagle3(target, draft_vocab_size=48)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(results))  # the state of the global generator must not matter
        drafter = copy.deepcopy(start)
        # The same rows in the same order: only the windows can differ.
        trainer = ppow_trainer(tmp_path, drafter, target, seed=seed, train_sampling_strategy="sequential", **QUIET)
        trainer.train()
        results.append(weights_of(drafter))
    assert_equal_weights(results[0], results[1])
    assert any(not torch.equal(value, results[2][name]) for name, value in results[0].items())


def test_iteration_sampler():
    step = 0
    sampler = IterationSampler(10, 3, 2, current_step=lambda: step, seed=5)
    first = list(sampler)
    assert len(first) == len(sampler) == 18
    for start in range(0, 18, 6):
        assert first[start : start + 3] == first[start + 3 : start + 6]
    assert len(set(first)) == 9
    assert list(sampler) == first
    step = 6
    second = list(sampler)
    assert second != first
    step = 9  # in the midst of the second epoch, as on resuming
    assert list(sampler) == second
    plain = IterationSampler(5, 2, 2, current_step=lambda: 7, shuffle=False)
    assert list(plain) == [0, 1, 0, 1, 2, 3, 2, 3]


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_two_processes_take_the_step_of_one(tmp_path):
    script = Path(__file__).parent / "distributed_ppow.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), str(tmp_path / "one.pt"), "4"]
    subprocess.run(command, check=True, env=env, timeout=300)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(script), str(tmp_path / "two.pt"), "2"], check=True, env=env, timeout=300)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=2e-5, rtol=1e-4, msg=name)
    assert len(one["logs"]) == len(two["logs"]) == 2
    for name in (
        "reward", "accepted_length", "kl", "entropy", "policy_loss", "expected_length", "loss", "target_tokens",
    ):  # fmt: skip
        for a, b in zip(one["logs"], two["logs"], strict=True):
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), name


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_a_dataset_without_room_for_a_window_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` has room for a window of `window_size`=3"):
        ppow_trainer(tmp_path, dataset=rows_with([[0, 0, 0, 1, 1, 1]] * 6))
    with pytest.raises(ValueError, match="`train_dataset` has room"):
        ppow_trainer(tmp_path, dataset=rows_with([[0, 0, 1, 1, 1, 1]] * 6), max_length=5)
    # Too short without a prompt: a window needs two tokens before it.
    with pytest.raises(ValueError, match="`train_dataset` has room"):
        ppow_trainer(tmp_path, dataset=rows_with([[1, 1, 1, 1]] * 6))
    ppow_trainer(tmp_path, dataset=rows_with([[0, 1, 1]] * 1100 + [[0, 0, 1, 1, 1, 1]]))


def test_rows_that_are_too_short_are_skipped_and_counted(tmp_path):
    rows = rows_with([[0, 0, 0, 1, 1], [0] * 4 + [1] * 8, [0, 0, 0, 1, 1], [0, 1, 0]])
    trainer = ppow_trainer(tmp_path, dataset=rows, max_steps=2, **QUIET)
    trainer.train()
    logs = training_logs(trainer)
    assert [log["skipped_rows"] for log in logs] == [3.0, 3.0]
    assert [log["skipped_rows_total"] for log in logs] == [3.0, 6.0]
    experience = make_experience(trainer, rows)
    assert experience.chosen.sum(-1).tolist() == [0, 2, 0, 0]
    assert len(experience.mask) == 2 * 4


def test_a_batch_of_short_rows_only_changes_nothing(tmp_path):
    rows = rows_with([[0, 0, 0, 1, 1]] * 4 + [[0] * 4 + [1] * 8] * 4)
    drafter = tiny_eagle3(tiny_target(), draft_vocab_size=48)
    before = weights_of(drafter)
    trainer = ppow_trainer(
        tmp_path,
        drafter,
        dataset=rows,
        max_steps=1,
        train_sampling_strategy="sequential",
        anchor_weight=1.0,
        expected_length_weight=1.0,
        kl_weighting="reach",
        **QUIET,
    )
    trainer.train()
    assert_equal_weights(before, drafter.state_dict())
    (log,) = training_logs(trainer, "skipped_rows")
    assert log["skipped_rows"] == 4.0 and log["loss"] == 0.0 and "reward" not in log


@pytest.mark.parametrize("mask", [[], [1], [0, 1]], ids=["empty", "one", "two"])
@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
@pytest.mark.parametrize("selection", ["uniform", "adaw"])
def test_a_batch_of_rows_of_next_to_no_tokens_is_skipped(tmp_path, mask, family, selection):
    """First a batch of nothing else, then one in which half of the rows have room."""
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48) if family == "eagle3" else tiny_causal_drafter(target)
    before = weights_of(drafter)
    rows = rows_with([mask] * 6 + [[0] * 4 + [1] * 8] * 2)
    options = {"window_selection": selection, "adaw_warmup": 0, "train_sampling_strategy": "sequential", **QUIET}
    trainer = ppow_trainer(tmp_path / "one", drafter, target, rows, max_steps=1, **options)
    trainer.train()
    assert_equal_weights(before, drafter.state_dict())
    trainer = ppow_trainer(tmp_path / "two", drafter, target, rows, max_steps=2, **options)
    trainer.train()
    assert [log["skipped_rows"] for log in training_logs(trainer, "skipped_rows")] == [4.0, 2.0]
    assert all(value.isfinite().all() for value in drafter.state_dict().values())
    assert any(not torch.equal(before[name], value) for name, value in drafter.state_dict().items())


def test_texts_without_a_prompt_train(tmp_path):
    trainer = ppow_trainer(tmp_path, dataset=rows_with([[1] * 6] * 4), num_windows=8, max_steps=2, **QUIET)
    experience = make_experience(trainer, rows_with([[1] * 6] * 4))
    assert experience.inputs["starts"][0].tolist() == [2, 3] + [-1] * 6
    trainer._buffer.clear()
    trainer.train()


def test_checkpoints_must_lie_where_rollouts_begin(tmp_path):
    steps = {"save_strategy": "steps", **QUIET}
    with pytest.raises(ValueError, match=r"`save_steps` \(5\) must be a multiple of `num_iterations` \(2\)"):
        ppow_trainer(tmp_path, num_iterations=2, save_steps=5, **steps)
    with pytest.raises(ValueError, match="`save_steps`"):
        ppow_trainer(tmp_path, num_iterations=2, save_steps=0.5, **steps)
    ppow_trainer(tmp_path, num_iterations=2, save_steps=4, **steps)
    ppow_trainer(tmp_path, num_iterations=1, save_steps=0.5, **steps)


def test_fewer_rows_than_a_step_takes(tmp_path):
    trainer = ppow_trainer(tmp_path, dataset=token_rows(3), num_iterations=2, **QUIET)
    with pytest.raises(ValueError, match="`train_dataset` has 3 rows, but one optimiser step takes 4"):
        trainer.train()


def test_rows_that_are_streamed_come_only_once(tmp_path):
    rows = token_rows(8).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"`train_dataset` is streamed.*`num_iterations` \(2\).*`num_iterations=1`"):
        ppow_trainer(tmp_path, dataset=rows, num_iterations=2, **QUIET)
    trainer = ppow_trainer(tmp_path, dataset=rows, num_iterations=1, max_steps=2, **QUIET)
    trainer.train()
    assert trainer.state.global_step == 2


def test_missing_columns_and_foreign_tokenizers_are_named(tmp_path):
    with pytest.raises(ValueError, match="train_dataset.*loss_mask"):
        ppow_trainer(tmp_path, dataset=Dataset.from_list([{"input_ids": [1, 2, 3]}]))
    with pytest.raises(ValueError, match="`processing_class` knows 120 tokens"):
        ppow_trainer(tmp_path, tokenizer=tokenizer_of(120))
