# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from ppow_hf import AutoDrafter
from ppow_hf.trainer import DrafterSFTConfig, DrafterTrainingConfig, scored_columns
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.naive_sft import naive_loss, naive_windows


@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
@pytest.mark.parametrize("loss_type", ["forward_kl", "total_variation", "lk", "mixed"])
def test_loss_equals_drafting_from_every_position_in_turn(tmp_path, loss_type, family):
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48) if family == "eagle3" else tiny_causal_drafter(target)
    drafter.eval()
    rows = token_rows(num_rows=3)
    trainer = sft_trainer(tmp_path, drafter, target, rows, loss_type=loss_type)
    loss = trainer.compute_loss(drafter, trainer.data_collator(list(rows))).item()
    windows = [window for row in rows for window in naive_windows(drafter, target, row, trainer.ttt_steps)]
    assert loss == pytest.approx(naive_loss(windows, loss_type), rel=1e-4)


def test_scored_columns_hold_whole_windows_of_the_targets_text():
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 1, 0]]).bool()
    columns = scored_columns(mask, prediction_offset=2, ttt_steps=3)
    assert columns[0, 0].nonzero().flatten().tolist() == [0, 1, 2, 4]
    assert columns[1, 0].nonzero().flatten().tolist() == [0, 1]
    assert columns[2, 0].nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text"])
def test_training_moves_the_drafter_and_not_the_target(tmp_path, family):
    target = tiny_target(family)
    drafter = tiny_eagle3(target, draft_vocab_size=48)
    before = {name: value.clone() for name, value in drafter.named_parameters()}
    target_before = {name: value.clone() for name, value in target.named_parameters()}
    trainer = sft_trainer(tmp_path, drafter, target, learning_rate=1e-2)
    trainer.train()
    for name, value in drafter.named_parameters():
        assert not torch.equal(before[name], value), f"{name} did not move"
    for name, value in target.named_parameters():
        assert torch.equal(target_before[name], value), f"{name} of the target moved"
    logged = trainer.state.log_history[0]
    for name in ("simulated_acceptance_length", "step_0/accuracy", "step_2/expected_acceptance"):
        assert name in logged


def test_a_drafter_learns_its_target(tmp_path):
    target = tiny_target(seed=3)
    prompts = torch.randint(2, 96, (16, 6), generator=torch.Generator().manual_seed(0))
    output = target.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=18, do_sample=False)
    rows = Dataset.from_list([{"input_ids": ids, "loss_mask": [0] * 6 + [1] * 18} for ids in output.tolist()])
    trainer = sft_trainer(
        tmp_path, tiny_eagle3(target), target, rows, rows, max_steps=60, learning_rate=3e-3, logging_steps=20
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.7 * before["eval_loss"]
    assert after["eval_acceptance_length"] > before["eval_acceptance_length"] + 0.15
    assert 1.0 <= after["eval_acceptance_length"] <= 4.0


def test_a_causal_drafter_trains_with_one_step(tmp_path):
    target = tiny_target()
    drafter = tiny_causal_drafter(target)
    trainer = sft_trainer(tmp_path, drafter, target, eval_dataset=token_rows(4, seed=1), ttt_steps=5)
    assert trainer.ttt_steps == 1
    before = drafter.model.model.layers[0].mlp.up_proj.weight.clone()
    trainer.train()
    assert not torch.equal(before, drafter.model.model.layers[0].mlp.up_proj.weight)
    assert trainer.evaluate()["eval_acceptance_length"] >= 1.0


def test_resume_equals_an_uninterrupted_run(tmp_path):
    target = tiny_target()
    start = tiny_eagle3(target, draft_vocab_size=48)
    whole = copy.deepcopy(start)
    sft_trainer(tmp_path / "whole", whole, target, max_steps=6, save_strategy="steps", save_steps=3).train()
    resumed = copy.deepcopy(start)
    sft_trainer(tmp_path / "again", resumed, target, max_steps=6).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3")
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_cache_changes_nothing(tmp_path):
    target = tiny_target()
    start = tiny_eagle3(target, draft_vocab_size=48)
    plain, cached = copy.deepcopy(start), copy.deepcopy(start)
    sft_trainer(tmp_path / "plain", plain, target, max_steps=8).train()
    trainer = sft_trainer(tmp_path / "cached", cached, target, max_steps=8, feature_cache_dir=str(tmp_path / "cache"))
    trainer.train()
    assert bool(trainer.target_pass.cache.filled.all())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], value, msg=name)


def test_the_best_checkpoint_is_the_best_by_acceptance_length(tmp_path):
    trainer = sft_trainer(
        tmp_path,
        eval_dataset=token_rows(4, seed=1),
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
    )
    trainer.train()
    lengths = [log["eval_acceptance_length"] for log in trainer.state.log_history if "eval_acceptance_length" in log]
    assert len(lengths) > 1 and trainer.state.best_metric == max(lengths)
    best = AutoDrafter.from_pretrained(trainer.state.best_model_checkpoint)
    for name, value in best.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


def test_training_stops_when_the_acceptance_length_no_longer_rises(tmp_path):
    trainer = sft_trainer(
        tmp_path,
        eval_dataset=token_rows(2, seed=1),
        eval_strategy="steps",
        eval_steps=1,
        early_stopping_patience=2,
        learning_rate=0.0,
        max_steps=6,
    )
    trainer.train()
    assert trainer.state.global_step == 3, "the first evaluation is the best, and two more are not better"


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path):
    script = Path(__file__).parent / "distributed_sft.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), str(tmp_path / "one.pt"), "4"]
    subprocess.run(command, check=True, env=env, timeout=200)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(script), str(tmp_path / "two.pt"), "2"], check=True, env=env, timeout=200)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert two["num_processes"] == 2
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=2e-5, rtol=1e-4, msg=name)
    assert two["metrics"].keys() == one["metrics"].keys() and "eval_step_2/accuracy" in one["metrics"]
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ttt_steps", 0),
        ("ttt_steps", 9),
        ("step_loss_decay", 0.0),
        ("loss_type", "hinge"),
        ("acceptance_loss_weight", 1.5),
        ("max_length", 2),
        ("eval_decode_prompts", -1),
        ("eval_decode_new_tokens", 1),
    ],
)
def test_config_names_the_bad_field(tmp_path, field, value):
    with pytest.raises(ValueError, match=field):
        DrafterSFTConfig(output_dir=str(tmp_path), use_cpu=True, **{field: value})


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(ValueError, match="train_dataset.*loss_mask"):
        sft_trainer(tmp_path, dataset=Dataset.from_list([{"input_ids": [1, 2, 3]}]))


def test_a_model_that_is_no_drafter_is_refused(tmp_path):
    target = tiny_target()
    with pytest.raises(ValueError, match="must be a drafter"):
        sft_trainer(tmp_path, drafter=target, target=target)


def test_a_drafter_of_another_target_is_refused(tmp_path):
    drafter = tiny_eagle3(tiny_target(vocab_size=80))
    with pytest.raises(ValueError, match="vocab_size"):
        sft_trainer(tmp_path, drafter=drafter)


def test_every_field_is_documented():
    inherited = {f.name for f in dataclasses.fields(DrafterTrainingConfig)}
    own = {f.name for f in dataclasses.fields(DrafterSFTConfig)} - inherited
    for name in own:
        assert f"        {name} (" in DrafterSFTConfig.__doc__, name


def test_saved_folder_can_be_loaded(tmp_path):
    trainer = sft_trainer(tmp_path)
    trainer.train()
    trainer.save_model()
    drafter = AutoDrafter.from_pretrained(str(tmp_path))
    assert type(drafter) is type(trainer.model)
    assert "embed_tokens.weight" not in drafter.state_dict()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "ppow_eagle3"


def test_training_that_diverges_stops(tmp_path):
    trainer = sft_trainer(tmp_path, learning_rate=1e30, max_grad_norm=0.0, lr_scheduler_type="constant")
    with pytest.raises(RuntimeError, match=r"diverged at step [1-3], at a learning rate of 1e\+30: step_0/loss is"):
        trainer.train()
