# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The supervised stage from the command line, `ppow sft` and `trainers/sft_drafter.py`, on a tiny target."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ppow_hf import AutoDrafter, CausalLMDrafter, Eagle3Drafter, cli
from ppow_hf.data import generate_responses
from ppow_hf.scripts import fill_features
from ppow_hf.scripts.sft_drafter import build_trainer, make_parser
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_eagle3

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target, the responses it gave, and a drafter of it."""
    root = tmp_path_factory.mktemp("sft")
    target, tokenizer = char_target(), char_tokenizer()
    target.save_pretrained(root / "target")
    tokenizer.save_pretrained(root / "target")
    prompts = [f"Say {i}." for i in range(12)]
    generate_responses(target, tokenizer, prompts, root / "responses", max_new_tokens=12, progress=False)
    tiny_eagle3(target, draft_vocab_size=60, seed=5).save_pretrained(root / "drafter")
    return root


def options(folders, output, *more):
    return [
        "--target", folders / "target", "--responses", folders / "responses", "--holdout", 3, "--output_dir", output,
        "--use_cpu", "--max_steps", 2, "--ttt_steps", 2, "--report_to", "none", "--per_device_train_batch_size", 4,
        "--eval_decode_prompts", 0, "--weight_decay", 0, *more,
    ]  # fmt: skip


def sft(folders, output, *more):
    """What `ppow sft` leaves: the drafter and what it recorded."""
    arguments = [str(part) for part in options(folders, output, *more)]
    result = CliRunner().invoke(cli.app, ["sft", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return AutoDrafter.from_pretrained(output), json.loads((output / "training_provenance.json").read_text())


def equal(one, other) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_causal_lm_drafter(folders, tmp_path):
    fresh = CausalLMDrafter.from_target(char_target(), num_layers=1).state_dict()
    # With a rate of 0 what is saved is what training began with.
    drafter, facts = sft(folders, tmp_path / "begin", "--family", "causal_lm", "--learning_rate", 0)
    assert type(drafter) is CausalLMDrafter and drafter.model.config.num_hidden_layers == 1
    assert equal(drafter.state_dict(), fresh)
    assert facts["arguments"]["family"] == "causal_lm" and facts["train_rows"] == 9
    trained, _ = sft(folders, tmp_path / "trained", "--family", "causal_lm")
    assert not equal(trained.state_dict(), fresh)


def test_from_an_earlier_drafter(folders, tmp_path):
    start = AutoDrafter.from_pretrained(folders / "drafter").state_dict()
    (folders / "drafter" / "provenance.json").write_text('{"stage": "before"}')
    drafter, facts = sft(folders, tmp_path / "begin", "--drafter", folders / "drafter", "--learning_rate", 0)
    assert equal(drafter.state_dict(), start)
    assert facts["continued_from"] == {"stage": "before"}
    trained, _ = sft(folders, tmp_path / "trained", "--drafter", folders / "drafter")
    assert trained.config.draft_vocab_size == 60 and not equal(trained.state_dict(), start)


def test_a_run_killed_while_it_saved_goes_on_from_the_checkpoint_before(folders, tmp_path):
    saving = ("--save_strategy", "steps", "--save_steps", 1, "--max_steps", 3, "--seed", 4)
    whole, _ = sft(folders, tmp_path / "run", *saving)
    for name in ("model.safetensors", "optimizer.pt"):
        file = tmp_path / "run" / "checkpoint-3" / name
        file.write_bytes(file.read_bytes()[:100])
    resumed, _ = sft(folders, tmp_path / "run", *saving)
    assert equal(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("initialization", ["target", "random"])
def test_initializations(folders, tmp_path, initialization):
    more = ("--initialization", initialization, "--draft_vocab_size", 50, "--learning_rate", 0, "--seed", 3)
    drafter, facts = sft(folders, tmp_path / "out", *more)
    assert facts["draft_vocab_size"] == 50 and facts["arguments"]["initialization"] == initialization
    kept = drafter.draft_token_ids
    assert torch.equal(drafter.lm_head.weight, char_target().lm_head.weight[kept]) == (initialization == "target")
    expected = Eagle3Drafter.from_target(
        char_target(), draft_token_ids=kept, initialization=initialization, seed=3
    ).state_dict()
    assert equal(drafter.state_dict(), expected)


def test_features_made_beforehand_are_found(folders, tmp_path, capsys):
    more = ("--feature_cache_dir", str(tmp_path / "features"), "--draft_vocab_size", "50")
    arguments = [str(part) for part in options(folders, tmp_path / "out", *more)]
    fill_features.main(*make_parser().parse_args_and_config(arguments))
    printed = capsys.readouterr().out
    trainer, _ = build_trainer(*make_parser().parse_args_and_config(arguments))
    assert f"{len(trainer.train_dataset)} rows added: {trainer.target_pass.cache.path}" in printed
    assert trainer.fill_feature_cache() == 0
    assert not (tmp_path / "out" / "training_provenance.json").exists()


@pytest.mark.slow
def test_the_script(folders, tmp_path):
    """As `accelerate launch` starts it."""
    config = tmp_path / "sft.yaml"
    config.write_text("loss_type: mixed\nfeature_cache_dir: features\n")
    script = ROOT / "trainers" / "sft_drafter.py"
    arguments = [str(part) for part in options(folders, "out", "--config", config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, *arguments]
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 200}
    result = subprocess.run(command, **run)
    assert result.returncode == 0, result.stderr[-2000:]
    facts = json.loads((tmp_path / "out" / "training_provenance.json").read_text())
    assert facts["training"]["loss_type"] == "mixed" and facts["result"]["train_loss"] > 0
    assert list((tmp_path / "features").glob("*/states.bin"))
    assert AutoDrafter.from_pretrained(tmp_path / "out").config.vocab_size == 104
    wrong = subprocess.run([*command, "--los_type", "lk"], **run)
    assert wrong.returncode != 0 and "los_type" in wrong.stderr
