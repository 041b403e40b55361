# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The commands end to end, on tiny models: data, sft, finish, calibrate, generate, bench, quickstart."""

import json
import sys

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from ppow_hf import AutoDrafter, cli
from ppow_hf.generation import CostModel
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_eagle3

runner = CliRunner()


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch):
    """Tables are not wrapped, whatever terminal the tests run in."""
    monkeypatch.setattr(cli, "console", Console(width=200, highlight=False))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target with its tokenizer, and an untrained drafter, in folders as a user has them."""
    root = tmp_path_factory.mktemp("cli")
    target = char_target()
    target.save_pretrained(root / "target")
    char_tokenizer().save_pretrained(root / "target")
    tiny_eagle3(target, draft_vocab_size=60).save_pretrained(root / "drafter")
    (root / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(12)))
    suite = [{"id": f"s/{i}", "suite": "small", "turns": [f"Count to {i}."]} for i in range(2)]
    (root / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in suite))
    return root


def run(*arguments):
    return runner.invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)


def models(folders):
    return ("--target", folders / "target", "--drafter", folders / "drafter", "--device", "cpu")


def test_every_command_explains_itself():
    listing = run("--help").output
    for name in ("quickstart", "data", "sft", "bench", "generate", "calibrate"):
        assert name in listing
        if name != "sft":  # its options are those of the trainer's configuration
            assert "--seed" in run(name, "--help").output


def test_generate_prints_the_targets_own_text(folders):
    result = run("generate", "Say something.", *models(folders), "--max-new-tokens", 12, "--dtype", "float32")
    assert result.exit_code == 0
    assert "speculative" in result.output and "plain" in result.output and "acceptance length" in result.output


def test_calibrate_stores_what_it_measured(folders, tmp_path):
    result = run("calibrate", *models(folders), "--output", tmp_path)
    assert result.exit_code == 0 and "gamma" in result.output
    stored = json.loads((tmp_path / "cost_model.json").read_text())
    assert stored
    assert CostModel.load(tmp_path) is not None or len(stored) > 0


def test_quickstart_compares_both_ways(folders):
    result = run("quickstart", *models(folders), "--max-new-tokens", 8, "--dtype", "float32")
    assert result.exit_code == 0
    assert "Plain generate against speculative generate" in result.output


def test_from_prompts_to_a_calibrated_drafter(folders, tmp_path):
    responses, trained, finished = tmp_path / "responses", tmp_path / "sft", tmp_path / "finished"
    result = run(
        "data", "--prompts", folders / "prompts.jsonl", "--target", folders / "target", "--device", "cpu",
        "--max-new-tokens", 12, "--batch-size", 4, "--output", responses,
    )  # fmt: skip
    assert result.exit_code == 0 and "12 responses" in result.output
    result = run(
        "sft", "--target", folders / "target", "--responses", responses, "--draft_vocab_size", 60, "--holdout", 3,
        "--output_dir", trained, "--use_cpu", "--max_steps", 2, "--ttt_steps", 2, "--report_to", "none",
        "--per_device_train_batch_size", 4, "--eval_decode_prompts", 0,
    )  # fmt: skip
    assert result.exit_code == 0
    facts = json.loads((trained / "training_provenance.json").read_text())
    assert facts["draft_vocab_size"] == 60 and 0 < facts["draft_vocabulary_coverage"] <= 1
    assert facts["responses"][0] is not None

    from ppow_hf.scripts.finish_drafter import FinishArguments, main

    main(
        FinishArguments(
            drafter=str(trained),
            responses=[str(responses)],
            output_dir=str(finished),
            target=str(folders / "target"),
            dtype="float32",
            holdout=3,
            window="fixed:3",
            max_new_tokens=10,
        )
    )
    drafter = AutoDrafter.from_pretrained(finished)
    window = drafter.generation_config.window
    assert window.policy == "cost_aware" and set(window.calibration) == {"greedy", "sampling"}
    trained_weights = AutoDrafter.from_pretrained(trained).state_dict()
    for name, value in drafter.state_dict().items():
        assert torch.equal(value, trained_weights[name]), name
    assert json.loads((finished / "provenance.json").read_text())["calibration"]["figures"]["greedy"]["outcomes"] > 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_bench_writes_its_report(folders, tmp_path):
    result = run(
        "bench", *models(folders), "--suite", folders / "suite.jsonl", "--method", "target,fixed:2,cost_aware",
        "--max-new-tokens", 8, "--dtype", "float32", "--check-float32", "1", "--output", tmp_path / "bench",
    )  # fmt: skip
    assert result.exit_code == 0
    results = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert {row["method"] for row in results["results"]} == {"target", "fixed:2", "cost_aware"}
    assert all(row["lossless"] == 1.0 for row in results["results"])
    assert (tmp_path / "bench" / "report.md").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "  "], ["prompt is empty"]),
        (["generate", "Hi", "--window", "sideways"], ["Unknown window policy"]),
        (["bench", "--suite", "SUITE", "--temperature", "warm"], ["--temperature", "warm"]),
        (["bench", "--suite", "SUITE", "--method", "telepathy"], ["telepathy"]),
        (["bench", "--suite", "missing.jsonl"], ["missing.jsonl"]),
    ],
)
def test_bad_input_is_one_clear_line(folders, tmp_path, monkeypatch, capsys, arguments, words):
    arguments = [str(folders / "suite.jsonl") if a == "SUITE" else a for a in arguments]
    if arguments[0] == "bench":
        arguments += ["--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["ppow", *arguments, *(str(a) for a in models(folders))])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "Error:" in error and all(word in error for word in words), error
    assert "Traceback" not in error


def test_data_with_bad_shares_names_the_option(folders, tmp_path, monkeypatch, capsys):
    command = ["data", "--prompts", str(folders / "prompts.jsonl"), "--output", str(tmp_path / "x")]
    monkeypatch.setattr(sys, "argv", ["ppow", *command, "--temperature", "hot"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert "--temperature" in capsys.readouterr().err
