# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The commands end to end, on tiny models: data, sft, finish, calibrate, generate; and what they share."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import typer
from datasets import Dataset, DatasetDict
from huggingface_hub import constants
from rich.console import Console

from ppow_hf import AutoDrafter, cli, drafters, load_target, quickstart
from ppow_hf.console import chat_inputs
from ppow_hf.drafters import prepacking
from ppow_hf.drafters.prepacking import can_prepack
from ppow_hf.evaluation import precision
from ppow_hf.generation import CostModel
from tests.command_testing_utils import call_main, contents, models, run, write_folders
from tests.data.data_testing_utils import char_target
from tests.testing_utils import tiny_causal_drafter

COMMANDS = typer.main.get_command(cli.app).commands


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch):
    """Tables are not wrapped, whatever terminal the tests run in."""
    monkeypatch.setattr(cli, "console", Console(width=200, highlight=False))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache of its own."""
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- every command -------------------------------------------------------------------------------------------------


def test_all_commands_are_there():
    assert set(COMMANDS) == {
        "quickstart", "data", "sft", "train", "bench", "generate", "calibrate", "export", "import", "push", "card",
        "compare", "demo",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name):
    assert name in run("--help").output
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "--seed" in result.output and len(result.output.split()) > 40


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_an_unknown_option_is_refused(name):
    assert run(name, "--no-such-option").exit_code not in (0, None)


@pytest.mark.parametrize("name", ["set[abc].jsonl", "[/nope].jsonl", "[bold]x.jsonl", ":smile:.jsonl"])
def test_errors_show_names_as_they_were_given(folders, tmp_path, monkeypatch, capsys, name):
    arguments = ["data", "--prompts", name, "--output", tmp_path / "x", "--target", folders / "target"]
    status, _, error = call_main(monkeypatch, capsys, *arguments)
    assert status == 1 and error.startswith("Error:") and name in error


def test_a_missing_extra_is_named_whole(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("ppow_demo", "ppow_demo.serve"):  # tests of the page may have imported it before
        monkeypatch.setitem(sys.modules, name, None)
    status, _, error = call_main(monkeypatch, capsys, "demo")
    assert status == 1 and "pip install -e '.[demo]'" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "  "], ["prompt is empty"]),
        (["generate", "Hi", "--window", "sideways"], ["Unknown window policy"]),
        (["sft", "--config", "{broken}"], ["broken.yaml"]),
        (["compare", "--drafter", "=there", "--suite", "s.jsonl"], ["`--drafter` is '=there'", "NAME=PATH"]),
        (["generate", "Hi", "--dtype", "int8"], ["`dtype` is 'int8'", "bfloat16"]),
        (["generate", "Hi", "--device", "cuda:99"], ["`device` is 'cuda:99'", "'auto', 'cpu'"]),
        (["generate", "Hi", "--drafter", "no/such-drafter"], ["`--drafter` is 'no/such-drafter'", "save_pretrained"]),
    ],
)
def test_bad_input_is_one_clear_line(folders, tmp_path, monkeypatch, capsys, arguments, words):
    broken = tmp_path / "broken.yaml"
    broken.write_text("learning_rate: [1\n")
    arguments = [argument.format(broken=broken) for argument in arguments]
    own = () if arguments[0] in ("sft", "compare") else models(folders)
    status, _, error = call_main(monkeypatch, capsys, arguments[0], *own, *arguments[1:])
    assert status == 1
    assert error.startswith("Error:") and all(word in error for word in words), error
    assert "Traceback" not in error


# ---- generate ------------------------------------------------------------------------------------------------------


def test_generate_prints_the_targets_own_text(folders):
    result = run("generate", "Say something.", *models(folders), "--max-new-tokens", 12, "--dtype", "float32")
    assert result.exit_code == 0
    assert "speculative" in result.output and "plain" in result.output and "acceptance length" in result.output
    target, tokenizer = load_target(folders / "target", dtype="float32")
    inputs = chat_inputs(tokenizer, "Say something.")
    ids = target.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() in result.output


def test_generate_marks_the_accepted_draft_tokens(folders, tmp_path, monkeypatch):
    target = char_target()  # that in `folders`, which never refuses what it drafts itself
    tiny_causal_drafter(target, num_layers=target.config.num_hidden_layers).save_pretrained(tmp_path / "same")
    console = Console(width=200, highlight=False, force_terminal=True, color_system="standard")
    monkeypatch.setattr(cli, "console", console)
    for drafter, green in ((folders / "drafter", False), (tmp_path / "same", True)):
        result = run(
            "generate", "Say something.", "--target", folders / "target", "--drafter", drafter, "--device", "cpu",
            "--dtype", "float32", "--window", "fixed:3", "--max-new-tokens", 12,
        )  # fmt: skip
        assert result.exit_code == 0
        text = result.output.rpartition("\x1b[2K")[2].partition("speculative")[0]  # behind the spinner, which is green
        assert ("\x1b[32m" in text) == green


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_responses_come_in_bfloat16_where_the_cpu_computes_in_it(folders, tmp_path, monkeypatch, native, dtype):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    assert run(*data_command(folders, tmp_path / "out", "--prompts", folders / "prompts.jsonl")).exit_code == 0
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["settings"]["dtype"] == dtype


def test_generate_with_nothing_to_say(tmp_path):
    """Any token ends the text: there is no verification, and so there are no figures of one."""
    folders = write_folders(tmp_path)
    path = folders / "target" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": list(range(104))}))
    result = run("generate", "Hi", *models(folders))
    assert result.exit_code == 0 and "0 verifications" in result.output
    row = next(line for line in result.output.splitlines() if "speculative" in line)
    assert [cell.strip() for cell in row.split("│")][-3:-1] == ["-", "-"]


def test_generate_leaves_the_drafters_own_files_as_they_are(folders, cache, calm_machine):
    shutil.rmtree(folders / "drafter" / ".cache", ignore_errors=True)  # of tests before
    before = contents(folders / "drafter")
    assert run("generate", "Hi", *models(folders), "--window", "cost_aware", "--max-new-tokens", 6).exit_code == 0
    assert contents(folders / "drafter") == before
    assert "entries" in json.loads((cache / "cost_model.json").read_text())


def test_a_truncated_target_is_one_clear_line(tmp_path, monkeypatch, capsys):
    folders = write_folders(tmp_path)
    path = folders / "target" / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status, _, error = call_main(monkeypatch, capsys, "generate", "Hi", *models(folders))
    assert status == 1 and error.startswith("Error:") and "truncated or damaged" in error and "download" in error


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("name", ["generate", "calibrate", "data", "bench"])
def test_prepack_is_of_the_target(folders, tmp_path, cache, monkeypatch, name, asked):
    if not can_prepack(torch.nn.Linear(4, 4).bfloat16()):
        pytest.skip("this CPU does not multiply bfloat16 matrices")
    suite = tmp_path / "suite.jsonl"
    suite.write_text(json.dumps({"id": "0", "suite": "own", "turns": ["abc"]}) + "\n")
    drafter, output = ("--drafter", folders / "drafter"), ("--output", tmp_path / "out")
    arguments = {
        "generate": ("Hi", *drafter, "--max-new-tokens", 4),
        "calibrate": (*drafter, *output),
        "data": ("--prompts", folders / "prompts.jsonl", "--max-new-tokens", 4, *output),
        "bench": (*drafter, "--suite", suite, "--method", "fixed:2", "--retries", 0, "--max-new-tokens", 4, *output),
    }[name]
    packed = []

    def noting(model):
        count = prepacking.prepack_weights(model)
        packed.append((type(model).__name__, count > 0))
        return count

    # Every place that gets hold of it by name; drafters go on by themselves.
    for place in (drafters, precision):
        monkeypatch.setattr(place, "prepack_weights", noting)
    options = ("--target", folders / "target", "--device", "cpu", "--dtype", "bfloat16")
    result = run(name, *options, *arguments, *(["--prepack"] if asked else []))
    assert result.exit_code == 0
    assert packed == ([("LlamaForCausalLM", True)] if asked else [])


# ---- calibrate -----------------------------------------------------------------------------------------------------


def check_printed(result, cost: CostModel) -> None:
    """What was printed is what was stored."""
    assert result.exit_code == 0
    assert f"gamma (one draft step): {cost.gamma:.4f}. Overhead per cycle: {cost.overhead:.4f}." in result.output
    rows = [line.split("│")[1:-1] for line in result.output.splitlines() if line.startswith("│")]
    assert [int(row[0]) for row in rows] == list(range(len(cost.verify_curve)))
    assert [row[2].strip() for row in rows] == [f"{v:.3f}" for v in cost.verify_curve]


def test_calibrate_stores_in_the_folder_that_was_named(folders, tmp_path, cache):
    result = run("calibrate", *models(folders), "--output", tmp_path / "costs[1]")
    cost = CostModel.load(tmp_path / "costs[1]")  # exactly one
    check_printed(result, cost)
    assert "float32/float32" in cost.key
    assert f"Stored in {tmp_path / 'costs[1]' / 'cost_model.json'}." in result.output
    assert not cache.exists()


def test_calibrate_stores_beside_the_drafter_that_was_named(folders, tmp_path, cache):
    drafter = shutil.copytree(folders / "drafter", tmp_path / "drafter")
    result = run("calibrate", "--target", folders / "target", "--drafter", drafter, "--device", "cpu")
    check_printed(result, CostModel.load(drafter))
    assert f"Stored in {drafter / 'cost_model.json'}." in result.output
    assert not cache.exists()


def test_calibrate_leaves_the_published_drafter_as_it_is(folders, cache, monkeypatch):
    """It is under version control, with a card that states its costs."""
    monkeypatch.setattr(quickstart, "reference_drafter_path", lambda: folders / "drafter")
    before = contents(folders / "drafter")
    result = run("calibrate", "--target", folders / "target", "--device", "cpu")
    check_printed(result, CostModel.load(cache))
    assert contents(folders / "drafter") == before
    assert f"Stored in {cache / 'cost_model.json'}." in result.output


def test_calibrate_of_a_hub_drafter_stores_in_the_cache(folders, cache):
    repo = Path(constants.HF_HUB_CACHE) / "models--me--tiny-drafter"
    shutil.copytree(folders / "drafter", repo / "snapshots" / "0123abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abc")
    result = run("calibrate", "--target", folders / "target", "--drafter", "me/tiny-drafter", "--device", "cpu")
    check_printed(result, CostModel.load(cache))
    assert f"Stored in {cache / 'cost_model.json'}." in result.output


def test_calibrate_prints_even_where_it_cannot_store(folders, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    status, out, error = call_main(
        monkeypatch, capsys, "calibrate", *models(folders), "--output", tmp_path / "file" / "costs"
    )
    assert status == 1 and "could not be stored" in error and "--output" in error
    assert "gamma (one draft step)" in out


# ---- data, and from prompts to a drafter ---------------------------------------------------------------------------


def data_command(folders, output, *options):
    return (
        "data", "--target", folders / "target", "--device", "cpu", "--max-new-tokens", 4, "--batch-size", 4,
        "--output", output, *options,
    )  # fmt: skip


def test_data_of_another_split(folders, tmp_path):
    parts = {
        name: Dataset.from_dict({"prompt": [f"{name} {i}" for i in range(n)]})
        for name, n in (("train", 3), ("test", 2))
    }
    DatasetDict(parts).save_to_disk(tmp_path / "mine")
    output = tmp_path / "out[1]"
    result = run(*data_command(folders, output, "--prompts", tmp_path / "mine", "--split", "test"))
    assert result.exit_code == 0 and f"2 responses in {output}." in result.output
    from ppow_hf.data import load_responses

    asked = [row["prompt"][0]["content"] for row in load_responses(output)]
    assert sorted(asked) == ["test 0", "test 1"]


def test_data_of_a_split_or_subset_that_is_not_there(folders, tmp_path, monkeypatch, capsys):
    DatasetDict({"test": Dataset.from_dict({"prompt": ["a"]})}).save_to_disk(tmp_path / "mine")
    command = data_command(folders, tmp_path / "out", "--prompts", tmp_path / "mine")
    status, _, error = call_main(monkeypatch, capsys, *command)
    assert status == 1 and "split 'train'" in error and "it has test" in error
    status, _, error = call_main(monkeypatch, capsys, *command, "--split", "validation", "--subset", "main")
    assert status == 1 and "split 'validation', subset 'main'" in error


def test_data_takes_answers_as_they_are(folders, tmp_path, monkeypatch, capsys):
    from ppow_hf.data import load_responses

    given, output = tmp_path / "given.jsonl", tmp_path / "out"
    rows = [{"prompt": name, "response_ids": ids} for name, ids in (("one", [5, 6]), ("two", [7]), ("held", [8]))]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held.jsonl").write_text(json.dumps({"turns": ["held"]}) + "\n")
    command = ["data", "--target", folders / "target", "--output", output, "--answered", given]
    result = run(*command, "--exclude", tmp_path / "held.jsonl")
    assert result.exit_code == 0 and f"2 responses in {output}." in result.output
    learned = [
        [token for token, of_target in zip(row["input_ids"], row["loss_mask"], strict=True) if of_target]
        for row in load_responses(output)
    ]
    assert learned == [[5, 6], [7]]

    status, _, error = call_main(monkeypatch, capsys, *command, "--prompts", folders / "prompts.jsonl")
    assert status == 1 and "either `--prompts`" in error
    status, _, error = call_main(monkeypatch, capsys, *command[:-2])
    assert status == 1 and "or `--answered`" in error
    status, _, error = call_main(monkeypatch, capsys, *command, "--limit", 2)
    assert status == 1 and "`--limit`" in error


def test_data_on_a_full_disk_goes_on_afterwards(folders, tmp_path, monkeypatch, capsys):
    command = data_command(folders, tmp_path / "out", "--prompts", folders / "prompts.jsonl")
    write, seen = os.fsync, []

    def full(descriptor):
        seen.append(descriptor)
        if len(seen) > 2:  # the settings and one batch still fit
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, _, error = call_main(patch, capsys, *command)
    assert status == 1 and "Error:" in error and "disk is full" in error and "same command" in error
    assert not (tmp_path / "out").exists()
    result = run(*command)
    assert result.exit_code == 0 and "12 responses" in result.output


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
    assert facts["held_out"] == {"rows": 3, "seed": 0}

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
    provenance = json.loads((finished / "provenance.json").read_text())
    assert provenance["calibration"]["figures"]["greedy"]["outcomes"] > 0
    assert provenance["calibration"]["arguments"]["data_seed"] == 0
    assert provenance.items() >= facts.items(), "with all that the training recorded"
    assert not (finished / "training_provenance.json").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_data_with_bad_shares_names_the_option(folders, tmp_path, monkeypatch, capsys):
    command = data_command(folders, tmp_path / "x", "--prompts", folders / "prompts.jsonl", "--temperature", "hot")
    status, _, error = call_main(monkeypatch, capsys, *command)
    assert status == 1 and "--temperature" in error and "'hot'" in error
