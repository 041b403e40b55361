# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json

import pytest
import typer
from typer.testing import CliRunner

from ppow_hf import CostModel
from ppow_hf.evaluation import ResumeError
from ppow_hf.generation.stored_costs import cost_model_key
from ppow_hf.scripts import compare_windows as script
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_eagle3

COSTS = CostModel(gamma=0.05, verify_curve=[1.0, 1.02, 1.05, 1.1, 1.2, 1.35, 1.5], overhead=0.03)
METHODS = ("fixed:1", "fixed:3", "cost_aware")


@pytest.fixture
def models(tmp_path):
    target, tokenizer = char_target(), char_tokenizer()
    drafter = tiny_eagle3(target)
    drafter.bind_target(target)
    drafter.__dict__["_cost_models"] = {cost_model_key(target, drafter): COSTS}
    for name, texts in (("letters", ("abc", "hello there")), ("words", ("no", "yes and no"))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return target, tokenizer, drafter, [str(tmp_path / "letters.jsonl"), str(tmp_path / "words.jsonl")]


def compared(models, output, **options):
    output.mkdir(exist_ok=True)
    options = {"methods": METHODS, "max_new_tokens": 16, "progress": False, **options}
    return script.compare_windows(*models, output, **options)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_files_and_going_on(models, tmp_path, temperature):
    output = tmp_path / "out"
    results = compared(models, output, temperature=temperature, draws=2)
    assert results == json.loads((output / "results.json").read_text())
    policies = ["oracle", "cheapest", *METHODS]
    assert [(row["suite"], row["policy"]) for row in results["results"]] == [
        (suite, policy) for suite in ("letters", "words", None) for policy in policies
    ]
    report = (output / "report.md").read_text()
    for row in results["results"]:
        assert f"{row['speedup']:.2f}x" in report
    assert ("sampled at temperature 0.8, with 2 draws" in report) == bool(temperature)
    assert str(tmp_path) not in report and (output / "windows.png").stat().st_size > 5_000
    # Killed behind the second prompt, it draws what it would have drawn.
    lines = (output / "records.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 5
    (output / "records.jsonl").write_text("".join(lines[:3]))
    assert compared(models, output, temperature=temperature, draws=2) == results
    with pytest.raises(ResumeError):
        compared(models, output, temperature=temperature, methods=METHODS[1:])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafters_are_compared_by_their_own_costs_and_oracle(models, tmp_path, temperature):
    target, tokenizer, drafter, suites = models
    other = tiny_eagle3(target, seed=3)
    other.bind_target(target)
    other.__dict__["_cost_models"] = {cost_model_key(target, other): CostModel(gamma=0.5)}
    alone = compared(models, tmp_path / "alone", methods=["fixed:2"], temperature=temperature)
    both = compared(
        models,
        tmp_path / "both",
        methods=["fixed:2@b", "fixed:2", "fixed:1@b"],
        others={"b": other},
        temperature=temperature,
    )
    rows = {row["policy"]: row for row in both["results"] if row["suite"] is None}
    assert set(rows) == {"oracle", "oracle@b", "cheapest", "cheapest@b", "fixed:2", "fixed:2@b", "fixed:1@b"}
    expected = {row["policy"]: row for row in alone["results"] if row["suite"] is None}
    for policy in ("oracle", "fixed:2"):  # whatever else is compared
        assert rows[policy]["speedup"] == expected[policy]["speedup"]
    share = rows["fixed:2@b"]["speedup"] / rows["oracle@b"]["speedup"]
    assert rows["fixed:2@b"]["share_of_oracle"] == pytest.approx(share)
    assert rows["fixed:2"]["baseline"] == "fixed:2" and rows["fixed:2@b"]["over_baseline"] is not None
    assert both["cost_models"]["b"]["gamma"] == 0.5 and both["cost_models"]["first"]["gamma"] == 0.05
    assert "(`@` marks those of b)" in (tmp_path / "both" / "report.md").read_text()


def test_refusals(models, tmp_path):
    for options, message in (
        ({"methods": ("fixed:2", "mixed_tree")}, "`--method mixed_tree` cannot be replayed"),
        ({"methods": ("fixed:2", "target")}, "`--method target` cannot be replayed"),
        ({"methods": ("fixed:2", "fixed:2@b")}, "no drafter is called 'b'"),
        ({"baseline": "fixed:9"}, "`baseline` is 'fixed:9'"),
        ({"temperature": -1}, "`temperature` must be at least 0"),
        ({"draws": 0}, "`draws` 1"),
    ):
        with pytest.raises(ValueError, match=message):
            compared(models, tmp_path / "out", **options)


def test_the_command(models, tmp_path):
    target, tokenizer, drafter, suites = models
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    drafter.save_pretrained(tmp_path / "drafter")
    COSTS.__class__(**{**COSTS.to_dict(), "key": cost_model_key(target, drafter)}).save(tmp_path / "drafter")
    app = typer.Typer()
    app.command()(script.main)
    arguments = ["--suite", suites[0], "--target", str(tmp_path / "target"), "--drafter", str(tmp_path / "drafter")]
    arguments += ["--dtype", "float32", "--device", "cpu", "--output", str(tmp_path / "out"), "--max-new-tokens", "8"]
    arguments += ["--drafter", f"again={tmp_path / 'drafter'}"]
    done = CliRunner().invoke(app, [*arguments, "--method", "fixed:2,cost_aware@again", "--temperature", "1"])
    assert done.exit_code == 0, done.output
    assert "report.md" in done.output and json.loads((tmp_path / "out/results.json").read_text())["results"]
