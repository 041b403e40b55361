# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`python -m ppow_hf.scripts.cost_growth`, `.oracle_line` and `.check_lossless`, on models from folders."""

import json
import sys

import pytest

from ppow_hf.scripts import check_lossless, cost_growth, oracle_line
from ppow_hf.scripts.command_line import run
from tests.evaluation.bench_utils import EXAMPLES, bench, byte_tokenizer, tiny_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    target, drafter = tiny_models("eagle3")
    target.save_pretrained(folder / "target")
    byte_tokenizer().save_pretrained(folder / "target")
    drafter.save_pretrained(folder / "drafter")
    return folder


def call(monkeypatch, function, *arguments):
    """The exit status of a command line."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        run(function)
    return exit_.value.code or 0


def test_growth_from_the_command_line(folders, tmp_path, monkeypatch, capsys):
    prompts = tmp_path / "prompts.jsonl"
    rows = [json.dumps({"turns": [f"what of {i} and {'xyz'[i % 3] * i}", f"and {i * i}"]}) for i in range(30)]
    prompts.write_text("\n".join(rows))
    options = ["--target", folders / "target", "--drafter", folders / "drafter", "--dtype", "float32"]
    options += ["--prompts", prompts, "--lengths", "40,80", "--windows", "1,2-3", "--window-length", "40"]
    options += ["--new-tokens", "6", "--repeats", "1", "--method", "stored", "--output", tmp_path / "out"]
    assert call(monkeypatch, cost_growth.main, *options) == 0
    results = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert results["arguments"]["lengths"] == [40, 80] and results["arguments"]["windows"] == [1, 2, 3]
    assert results["arguments"]["target"] == "target" and "growth.md" in capsys.readouterr().out


def test_oracle_line_from_the_command_line(folders, tmp_path, monkeypatch, capsys):
    suite = tmp_path / "short.jsonl"
    rows = [{"id": e.id, "suite": e.suite, "turns": list(e.turns)} for e in EXAMPLES if e.suite == "short"]
    suite.write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "bench"
    bench(output, models=tiny_models("eagle3"), suites=[suite], methods=["target", "fixed:2"])
    options = [output, "--suite", suite, "--target", folders / "target", "--drafter", folders / "drafter"]
    assert call(monkeypatch, oracle_line.main, *options, "--max-size", "3") == 0
    results = json.loads((output / "results.json").read_text())
    assert results["oracle"]["max_size"] == 3 and len(results["oracle"]["rows"]) == 2 + 1 + 3
    assert results["oracle"]["same_texts"] == {"same": 3, "prompts": 3}
    assert "short, oracle: " in capsys.readouterr().out


def test_errors_end_in_one_line(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, oracle_line.main, tmp_path, "--suite", "x.jsonl") == 1
    error = capsys.readouterr().err
    assert error.startswith("Error:") and "no results.json" in error and error.count("\n") == 1
    assert call(monkeypatch, cost_growth.main, "--prompts", "p.jsonl", "--lengths", "12,x") == 1
    assert "`--lengths` takes comma-separated whole numbers" in capsys.readouterr().err
    monkeypatch.setenv("PPOW_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["command", str(tmp_path), "--suite", "x.jsonl"])
    with pytest.raises(FileNotFoundError):
        run(oracle_line.main)


def test_numbers():
    assert cost_growth._numbers("--windows", "1,3-5,9") == [1, 3, 4, 5, 9]
    assert cost_growth._numbers("--windows", "none") == []


def test_lossless_from_the_command_line(folders, tmp_path, monkeypatch, capsys):
    suite = tmp_path / "short.jsonl"
    rows = [{"id": e.id, "suite": e.suite, "turns": list(e.turns)} for e in EXAMPLES]
    suite.write_text("\n".join(map(json.dumps, rows)))
    options = ["--suite", suite, "--target", folders / "target", "--drafter", folders / "drafter"]
    options += ["--method", "fixed:2,tree", "--max-new-tokens", "6", "--output", tmp_path / "out", "--parts", "2"]
    assert call(monkeypatch, check_lossless.main, *options, "--part", "1") == 0
    assert "other parts are not" in capsys.readouterr().out
    assert call(monkeypatch, check_lossless.main, *options, "--part", "2") == 0
    assert "| `tree` | 3 of 3 | 2 of 2 | 100.0% |" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "lossless.json").read_text())
    assert content["arguments"]["drafter"] == "drafter" and content["arguments"]["methods"][0] == "target"
