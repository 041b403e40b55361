# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
from pathlib import Path

import pytest
import yaml

from ppow_hf.scripts.sft_drafter import make_parser
from ppow_hf.scripts.train_ppow import make_parser as ppow_parser
from tests.recipes.stubbed_commands import run_recipe

RECIPE = Path(__file__).parents[2] / "trainers" / "recipes" / "smollm2"
SUPERVISED = ("sft", "second", "window", "long")
TRAININGS = (*SUPERVISED, "rollouts")


@pytest.mark.parametrize("name", SUPERVISED)
def test_stage_configs_are_understood(name):
    script_args, training_args = make_parser().parse_args_and_config(["--config", str(RECIPE / f"{name}.yaml")])
    assert script_args.target == "smollm2-135m-instruct" and training_args.save_strategy == "steps"
    if training_args.max_seconds:
        # Resuming must not start the time anew.
        assert training_args.restore_callback_states_from_checkpoint
    assert bool(training_args.window_reward_weight) == (name in ("window", "long"))


def test_the_stage_of_rollouts_keeps_the_better_drafter():
    _, training_args = ppow_parser().parse_args_and_config(["--config", str(RECIPE / "rollouts.yaml")])
    assert training_args.load_best_model_at_end and training_args.eval_on_start and training_args.eval_decode_prompts
    assert training_args.restore_callback_states_from_checkpoint and training_args.proximity_eta > 0


def test_every_stage_starts_from_the_one_before_and_finished_ones_are_skipped(tmp_path):
    calls = run_recipe(RECIPE / "run.sh", tmp_path)
    assert "--prompts a.jsonl::q --prompts b.jsonl --exclude e.jsonl --exclude f.jsonl" in calls[0]
    drafters = ["", *(f"runs/smollm2/{name}" for name in TRAININGS[:-1])]
    for call, name, drafter in zip(calls[1:6], TRAININGS, drafters, strict=True):
        assert call.startswith("ppow train" if name == "rollouts" else "ppow sft")
        assert f"/{name}.yaml" in call and f"--output_dir runs/smollm2/{name}" in call
        assert (f"--drafter {drafter} " in call) if drafter else ("--drafter" not in call)
        assert "--responses runs/smollm2/responses" in call
    assert "finish_drafter.py --drafter runs/smollm2/rollouts" in calls[6]
    assert calls[7].startswith("ppow calibrate") and calls[8].startswith("ppow bench")
    assert "--suite e.jsonl --suite f.jsonl" in calls[8] and len(calls) == 9
    assert run_recipe(RECIPE / "run.sh", tmp_path, "data", *TRAININGS, "finish") == []


def test_the_way_to_the_published_drafter(tmp_path):
    calls = run_recipe(RECIPE / "run.sh", tmp_path, "gpu", "exact", "finish", GPU="64", LAST="exact")
    for call, name, before in zip(calls[:2], ("gpu", "exact"), ("long", "gpu"), strict=True):
        assert f"/{name}.yaml --drafter runs/smollm2/{before} " in call and "--use_cpu false" in call
    assert "finish_drafter.py --drafter runs/smollm2/exact" in calls[2]
    # Its last stage is the arm it was chosen from.
    arms = yaml.safe_load((RECIPE / "gpu_arms.yaml").read_text())
    arm = {**arms["common"], **arms["arms"]["ppow-exact"], "drafter": arms["init"], "responses": arms["responses"]}
    stage = yaml.safe_load((RECIPE / "exact.yaml").read_text())
    arm = {name: value for name, value in arm.items() if name not in ("stage", "seeds", "eval_on_start")}
    assert {name: stage[name] for name in arm} == arm and set(stage) - set(arm) == {"output_dir", "seed"}


def test_the_same_on_a_gpu(tmp_path):
    plain = run_recipe(RECIPE / "run.sh", tmp_path, "data", *TRAININGS)
    assert "--batch-size 48 " in plain[0] and not any("use_cpu" in call or "max_seconds" in call for call in plain)
    calls = run_recipe(RECIPE / "run.sh", tmp_path, "data", *TRAININGS, OUT="gpu", GPU="64", STAGE_SECONDS="100")
    assert "--batch-size 512 " in calls[0]
    options = "--max_seconds 100 --use_cpu false --per_device_train_batch_size 64"
    for call, name in zip(calls[1:], TRAININGS, strict=True):
        assert call.endswith(f"--output_dir gpu/{name} {options}")
        parser = ppow_parser() if name == "rollouts" else make_parser()
        _, training_args = parser.parse_args_and_config(
            ["--config", str(RECIPE / f"{name}.yaml"), *options.replace("false", "true").split()]
        )
        assert (training_args.max_seconds, training_args.per_device_train_batch_size) == (100, 64)
        assert training_args.use_cpu
