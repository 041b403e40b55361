# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json

import pytest
import torch
from typer.testing import CliRunner

from ppow_hf import cli
from ppow_hf.data import load_responses
from ppow_hf.evaluation.compare import measure_acceptance
from ppow_hf.scripts.compare_drafters import compare_drafters
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_eagle3


@pytest.fixture
def models(tmp_path):
    target, tokenizer = char_target(), char_tokenizer()
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    for seed, name in enumerate(("first", "second")):
        tiny_eagle3(target, seed=seed).save_pretrained(tmp_path / name)
    suite = tmp_path / "letters.jsonl"
    suite.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("abc", "hello there", "no")))
    return target, tokenizer, suite


def test_figures_are_those_of_measuring_each_drafter(models, tmp_path):
    target, tokenizer, suite = models
    drafters = {name: tmp_path / name for name in ("first", "second")}
    output = tmp_path / "compared"
    results = compare_drafters(target, tokenizer, drafters, [str(suite)], output, window=3, max_new_tokens=12)
    assert results == json.loads((output / "results.json").read_text())
    answers = load_responses(output / "answers")
    for seed, name in enumerate(drafters):
        outcomes = measure_acceptance(target, {name: tiny_eagle3(target, seed=seed)}, answers, [3])[name][3]
        tau = sum(o.committed for o in outcomes) / sum(o.verifications for o in outcomes)
        assert results["results"][name][0]["acceptance_length"] == pytest.approx(tau)
    assert results["results"]["first"][0]["difference"] is None
    difference = results["results"]["second"][0]["difference"]
    assert f"{difference:+.3f}" in (output / "report.md").read_text()


def test_only_changed_drafters_are_measured_again(models, tmp_path):
    target, tokenizer, suite = models
    drafters = {name: tmp_path / name for name in ("first", "second")}
    output = tmp_path / "compared"
    compare_drafters(target, tokenizer, drafters, [str(suite)], output, window=3, max_new_tokens=12)
    before = {path.name: path.stat().st_mtime_ns for path in (output / "outcomes").iterdir()}
    other = tiny_eagle3(target, seed=1)
    with torch.no_grad():
        other.lm_head.weight.mul_(-1)
    other.save_pretrained(tmp_path / "second")
    compare_drafters(target, tokenizer, drafters, [str(suite)], output, window=3, max_new_tokens=12)
    after = {path.name: path.stat().st_mtime_ns for path in (output / "outcomes").iterdir()}
    assert len(before) == 2 and len(after) == 3
    assert before.items() <= after.items()


def test_the_command(models, tmp_path):
    _, _, suite = models
    arguments = ["compare", "--suite", str(suite), "--target", str(tmp_path / "target"), "--dtype", "float32"]
    arguments += ["--output", str(tmp_path / "out"), "--max-new-tokens", "8", "--window", "2"]
    drafters = ["--drafter", f"a={tmp_path / 'first'}", "--drafter", str(tmp_path / "second")]
    done = CliRunner().invoke(cli.app, [*arguments, *drafters])
    assert done.exit_code == 0, done.output
    assert "`a`" in done.output and "`second`" in done.output
    wrong = CliRunner().invoke(cli.app, [*arguments, *drafters, "--baseline", "third"])
    assert isinstance(wrong.exception, ValueError) and "'third'" in str(wrong.exception)
    twice = CliRunner().invoke(cli.app, [*arguments, *drafters, "--drafter", f"a={tmp_path / 'second'}"])
    assert isinstance(twice.exception, ValueError) and "same name" in str(twice.exception)


def test_no_drafter(models, tmp_path):
    target, tokenizer, suite = models
    with pytest.raises(ValueError, match="`drafters` is empty"):
        compare_drafters(target, tokenizer, {}, [str(suite)], tmp_path / "out")
    with pytest.raises(ValueError, match="`temperature` must not be negative, got -1"):
        compare_drafters(target, tokenizer, {"a": tmp_path / "first"}, [str(suite)], tmp_path / "out", temperature=-1)


def test_temperatures_have_texts_and_outcomes_of_their_own(models, tmp_path):
    target, tokenizer, suite = models
    drafters = {name: tmp_path / name for name in ("first", "second")}
    arguments = (target, tokenizer, drafters, [str(suite)], tmp_path / "out")
    options = {"window": 3, "max_new_tokens": 12}
    greedy = compare_drafters(*arguments, **options)
    sampled = compare_drafters(*arguments, **options, temperature=1.0)
    assert sampled["arguments"]["temperature"] == 1.0 and sampled["results"] != greedy["results"]
    rows = load_responses(tmp_path / "out" / "answers-temperature-1")
    outcomes = measure_acceptance(target, {"it": tiny_eagle3(target, seed=1)}, rows, [3], 1.0)["it"][3]
    tau = sum(o.committed for o in outcomes) / sum(o.verifications for o in outcomes)
    assert sampled["results"]["second"][0]["acceptance_length"] == pytest.approx(tau)
    assert "sampled at temperature 1, in expectation" in (tmp_path / "out" / "report.md").read_text()
    again = compare_drafters(*arguments, **options)
    assert again["results"] == greedy["results"]


def test_answers_to_other_prompts_are_not_taken(models, tmp_path):
    target, tokenizer, suite = models
    arguments = (target, tokenizer, {"first": tmp_path / "first"})
    output = tmp_path / "other"
    compare_drafters(*arguments, [str(suite)], output, window=3, max_new_tokens=8)
    with pytest.raises(ValueError, match="holds other answers .* another `--output`"):
        compare_drafters(*arguments, [str(suite)], output, window=3, max_new_tokens=9)
    more = tmp_path / "more.jsonl"
    more.write_text(suite.read_text() + json.dumps({"prompt": "one more"}) + "\n")
    with pytest.raises(ValueError, match="holds other answers"):
        compare_drafters(*arguments, [str(more)], output, window=3, max_new_tokens=8)


def test_a_wrong_folder_is_told_before_any_text_is_made(models, tmp_path):
    target, tokenizer, suite = models
    drafters = {"first": tmp_path / "first", "second": tmp_path / "nowhere"}
    with pytest.raises(OSError, match="nowhere"):
        compare_drafters(target, tokenizer, drafters, [str(suite)], tmp_path / "compared", max_new_tokens=4)
    assert not (tmp_path / "compared").exists()


def test_another_configuration_of_the_same_weights_is_measured_again(models, tmp_path):
    target, tokenizer, suite = models
    arguments = (target, tokenizer, {"first": tmp_path / "first"}, [str(suite)], tmp_path / "compared")
    before = compare_drafters(*arguments, window=3, max_new_tokens=12)
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    config["norm_before_residual"] = not config["norm_before_residual"]
    (tmp_path / "first" / "config.json").write_text(json.dumps(config))
    kept = next((tmp_path / "compared" / "outcomes").iterdir())
    written = kept.stat().st_mtime_ns
    assert compare_drafters(*arguments, window=3, max_new_tokens=12)["arguments"] == before["arguments"]
    assert kept.stat().st_mtime_ns > written
