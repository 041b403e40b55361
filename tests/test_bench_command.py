# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`ppow bench` end to end, on tiny models: what it writes, what it loads, and when it fails."""

import json

import pytest

from tests.command_testing_utils import break_verification, call_main, contents, models, run, write_folders
from tests.data.data_testing_utils import char_target
from tests.testing_utils import tiny_causal_drafter


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = write_folders(tmp_path_factory.mktemp("bench"))
    char_target(seed=1).save_pretrained(root / "assistant")
    tiny_causal_drafter(char_target(), num_layers=1).save_pretrained(root / "causal")
    return root


def bench(folders, output, methods, *options) -> tuple:
    return (
        "bench", "--retries", 0, "--target", folders / "target", "--device", "cpu", "--suite", folders / "suite.jsonl",
        "--method", methods, "--max-new-tokens", 8, "--output", output, *options,
    )  # fmt: skip


def results_of(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_bench_writes_its_report(folders, tmp_path):
    before = contents(folders / "drafter")
    output = tmp_path / "be[n]ch"
    methods = "target,fixed:2,cost_aware"
    result = run(*bench(folders, output, methods, "--drafter", folders / "drafter", "--dtype", "float32"))
    assert result.exit_code == 0
    assert f"Report: {output / 'report.md'}" in result.output and (output / "report.md").exists()
    rows = results_of(output)["results"]
    assert {row["method"] for row in rows} == set(methods.split(","))
    assert all(row["lossless"] == row["lossless_float32"] == 1.0 for row in rows)
    assert contents(folders / "drafter") == before


def test_the_text_is_checked_in_float32_unless_told_otherwise(folders, tmp_path):
    options = ("--drafter", folders / "drafter", "--dtype", "bfloat16")
    for name, more, prompts in (
        ("one", (), 1),
        ("none", ("--check-float32", 0), 0),
        ("all", ("--check-float32", "all"), 2),
    ):
        assert run(*bench(folders, tmp_path / name, "target,fixed:2", *options, *more)).exit_code == 0
        assert [row["lossless_float32_prompts"] for row in results_of(tmp_path / name)["results"]] == [prompts] * 2


def test_sampled_text_is_not_checked(folders, tmp_path):
    """It has none to be compared with."""
    options = ("--drafter", folders / "drafter", "--dtype", "bfloat16", "--temperature", 1)
    assert run(*bench(folders, tmp_path, "target,fixed:2", *options)).exit_code == 0
    assert "float32" not in {json.loads(line).get("kind") for line in (tmp_path / "records.jsonl").open()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_text_in_float32_fails_after_the_report(folders, tmp_path, monkeypatch, capsys, dtype):
    break_verification(monkeypatch)
    options = ("--drafter", folders / "drafter", "--dtype", dtype)
    status, out, error = call_main(monkeypatch, capsys, *bench(folders, tmp_path, "prompt_lookup,fixed:2", *options))
    assert status == 1 and "Report:" in out
    shares = {row["method"]: row["lossless_float32"] for row in results_of(tmp_path)["results"]}
    assert shares["target"] == 1.0 and shares["fixed:2"] < 1.0
    # transformers' own methods are not ours to answer for.
    assert "fixed:2 on small (0% of" in error and "prompt_lookup on" not in error and "report it" in error


def test_no_drafter_is_needed_without_windows(folders, tmp_path):
    """The reference drafter, which is of another target, is not loaded, nor is one that does not exist."""
    for name, options in (("a", ()), ("b", ("--drafter", "no/such-drafter"))):
        result = run(*bench(folders, tmp_path / name, "target,prompt_lookup", *options))
        assert result.exit_code == 0, result.output
        assert {row["method"] for row in results_of(tmp_path / name)["results"]} == {"target", "prompt_lookup"}
        assert results_of(tmp_path / name)["arguments"]["drafter"] is None


def test_transformers_own_assisted_generation(folders, tmp_path):
    methods = "hf_dynamic,hf_heuristic,hf_constant"
    assert run(*bench(folders, tmp_path / "a", methods, "--assistant", folders / "assistant")).exit_code == 0
    results = results_of(tmp_path / "a")
    assert results["arguments"]["assistant"] == "assistant" and results["arguments"]["drafter"] is None
    assert {row["method"] for row in results["results"]} == {"target", *methods.split(",")}
    assert all(row["lossless"] == 1.0 for row in results["results"])
    # The causal LM inside a drafter does as well.
    assert run(*bench(folders, tmp_path / "b", methods, "--drafter", folders / "causal")).exit_code == 0
    assert results_of(tmp_path / "b")["arguments"]["assistant"] == "causal"


def test_suites_with_commas(folders, tmp_path):
    copy, odd = tmp_path / "copy.jsonl", tmp_path / "a,b.jsonl"
    for file in (copy, odd):
        row = {"id": f"{file.stem}/0", "suite": file.stem, "turns": ["Count."]}
        file.write_text(json.dumps(row) + "\n")
    command = ("bench", "--retries", 0, "--target", folders / "target", "--device", "cpu", "--method", "target")
    command += ("--max-new-tokens", 4, "--limit", 1, "--output", tmp_path / "out")
    suites = ("--suite", f"{folders / 'suite.jsonl'},{copy}", "--suite", odd)
    assert run(*command, *suites).exit_code == 0
    names = ["small", "copy", "a,b"]
    assert list(dict.fromkeys(row["suite"] for row in results_of(tmp_path / "out")["results"])) == names


def test_stopped_by_the_clock_it_goes_on(folders, tmp_path):
    command = bench(folders, tmp_path, "target,prompt_lookup")
    assert run(*command, "--max-minutes", 1e-9).exit_code == 0
    assert results_of(tmp_path)["measured"] == {"prompts": 1, "of": 2}
    assert run(*command).exit_code == 0
    assert results_of(tmp_path)["measured"] == {"prompts": 2, "of": 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", "warm"], ["`--temperature`", "'warm'"]),
        (["--check-float32", "some"], ["`--check-float32`", "'some'", "`all`"]),
        (["--max-minutes", "0"], ["`--max-minutes`", "greater than 0"]),
        (["--method", "telepathy"], ["'telepathy'", "cost_aware"]),
        (["--method", "hf_dynamic"], ["'hf_dynamic'", "--assistant"]),
        (["--method", "hf_dynamic", "--drafter", "DRAFTER"], ["'hf_dynamic'", "--assistant"]),
        (["--suite", "missing.jsonl"], ["'missing.jsonl'", "JSONL"]),
        (["--suite", "gsm9k"], ["'gsm9k'", "gsm8k"]),
        # Names are fetched from the Hub, which tests are cut off from.
        (["--suite", "gsm8k"], ["'gsm8k'", "network", "JSONL"]),
        (["--suite", "spec_bench"], ["'spec_bench'", "network", "JSONL"]),
    ],
)
def test_bad_input_is_one_clear_line(folders, tmp_path, monkeypatch, capsys, options, words):
    options = [folders / "drafter" if option == "DRAFTER" else option for option in options]
    if "--method" not in options:
        options += ["--drafter", folders / "drafter"]
    command = [*bench(folders, tmp_path / "out", "target,fixed:2"), *options]
    status, _, error = call_main(monkeypatch, capsys, *command)
    assert status == 1
    assert "Error:" in error and all(word in error for word in words), error
    assert "Traceback" not in error


def test_a_default_run_takes_the_named_suites(folders, tmp_path, monkeypatch, capsys):
    status, _, error = call_main(monkeypatch, capsys, "bench", *models(folders), "--output", tmp_path / "out")
    assert status == 1 and "'gsm8k' is a public dataset" in error


def test_drafters_by_name_beside_the_benchmarks_own(folders, tmp_path):
    target = char_target()  # that in `folders`, which never refuses what it drafts itself
    tiny_causal_drafter(target, num_layers=target.config.num_hidden_layers).save_pretrained(tmp_path / "whole")
    options = ("--drafter", folders / "drafter", "--drafter", f"same={tmp_path / 'whole'}", "--dtype", "float32")
    methods = "fixed:2,fixed:2@same,cost_aware@same"
    assert run(*bench(folders, tmp_path / "out", methods, *options)).exit_code == 0
    results = results_of(tmp_path / "out")
    assert results["arguments"]["drafter"] == "drafter"
    assert results["arguments"]["other_drafters"] == {"same": "whole"}
    own, other = (row for row in results["results"] if row["method"].startswith("fixed:2"))
    assert own["acceptance_rate"] < other["acceptance_rate"] == 1.0 and other["lossless_float32"] == 1.0


def test_only_named_drafters_need_be_there(folders, tmp_path):
    options = ("--drafter", f"a={folders / 'drafter'}")
    assert run(*bench(folders, tmp_path, "fixed:2@a", *options)).exit_code == 0
    assert results_of(tmp_path)["arguments"]["drafter"] is None


@pytest.mark.parametrize(
    ("drafters", "words"),
    [
        (["drafter", "causal"], "only one can be without a name"),
        (["a=drafter", "a=causal"], "names two drafters 'a'"),
        (["a="], "is 'a=': give NAME=PATH"),
        (["drafter", "a=nowhere/at-all"], "is 'nowhere/at-all', where no drafter could be read"),
        (["drafter", "a=causal"], "'a', of which no method is a window"),
    ],
)
def test_drafters_that_cannot_be_told_apart_or_used(folders, tmp_path, monkeypatch, capsys, drafters, words):
    monkeypatch.chdir(folders)
    options = [part for name in drafters for part in ("--drafter", name)]
    status, _, error = call_main(monkeypatch, capsys, *bench(folders, tmp_path / "out", "fixed:2", *options))
    assert status == 1 and error.startswith("Error:") and words in error, error
    assert not (tmp_path / "out").exists()


def test_a_folder_with_an_equals_sign_is_a_folder(folders, tmp_path):
    (tmp_path / "lr=3e-4").symlink_to(folders / "drafter")
    options = ("--drafter", tmp_path / "lr=3e-4")
    assert run(*bench(folders, tmp_path / "out", "fixed:2", *options)).exit_code == 0
    assert "other_drafters" not in results_of(tmp_path / "out")["arguments"]
