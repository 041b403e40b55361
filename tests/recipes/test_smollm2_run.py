# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
from pathlib import Path

import pytest

from ppow_hf.scripts.sft_drafter import make_parser
from tests.recipes.stubbed_commands import run_recipe

RECIPE = Path(__file__).parents[2] / "trainers" / "recipes" / "smollm2"
TRAININGS = ("sft", "second", "window", "long")


@pytest.mark.parametrize("name", TRAININGS)
def test_stage_configs_are_understood(name):
    script_args, training_args = make_parser().parse_args_and_config(["--config", str(RECIPE / f"{name}.yaml")])
    assert script_args.target == "smollm2-135m-instruct" and training_args.save_strategy == "steps"
    if training_args.max_seconds:
        # Resuming must not start the time anew.
        assert training_args.restore_callback_states_from_checkpoint
    assert bool(training_args.window_reward_weight) == (name in ("window", "long"))


def test_every_stage_starts_from_the_one_before_and_finished_ones_are_skipped(tmp_path):
    calls = run_recipe(RECIPE / "run.sh", tmp_path)
    assert "--prompts a.jsonl::q --prompts b.jsonl --exclude e.jsonl --exclude f.jsonl" in calls[0]
    drafters = ["", "runs/smollm2/sft", "runs/smollm2/second", "runs/smollm2/window"]
    for call, name, drafter in zip(calls[1:5], TRAININGS, drafters, strict=True):
        assert f"/{name}.yaml" in call and f"--output_dir runs/smollm2/{name}" in call
        assert (f"--drafter {drafter} " in call) if drafter else ("--drafter" not in call)
        assert "--responses runs/smollm2/responses" in call
    assert "finish_drafter.py --drafter runs/smollm2/long" in calls[5]
    assert calls[6].startswith("ppow calibrate") and calls[7].startswith("ppow bench")
    assert "--suite e.jsonl --suite f.jsonl" in calls[7] and len(calls) == 8
    assert run_recipe(RECIPE / "run.sh", tmp_path, "data", *TRAININGS, "finish") == []


def test_the_same_on_a_gpu(tmp_path):
    plain = run_recipe(RECIPE / "run.sh", tmp_path, "data", *TRAININGS)
    assert "--batch-size 48 " in plain[0] and not any("use_cpu" in call or "max_seconds" in call for call in plain)
    calls = run_recipe(RECIPE / "run.sh", tmp_path, "data", *TRAININGS, OUT="gpu", GPU="64", STAGE_SECONDS="100")
    assert "--batch-size 512 " in calls[0]
    options = "--max_seconds 100 --use_cpu false --per_device_train_batch_size 64"
    for call, name in zip(calls[1:], TRAININGS, strict=True):
        assert call.endswith(f"--output_dir gpu/{name} {options}")
        _, training_args = make_parser().parse_args_and_config(
            ["--config", str(RECIPE / f"{name}.yaml"), *options.replace("false", "true").split()]
        )
        assert (training_args.max_seconds, training_args.per_device_train_batch_size) == (100, 64)
        assert training_args.use_cpu
