# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A benchmark measured in several sittings: stopped by the clock, gone on with elsewhere, predictions by hand."""

import json

import pytest

from ppow_hf.evaluation import ResumeError, render_report, runner
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.generation import CostModel
from tests.evaluation.bench_utils import TIMELESS, bench, tiny_models

METHODS = ["target", "fixed:2", "cost_aware"]


def timeless(results):
    return [{name: row[name] for name in TIMELESS} for row in results["results"]]


def records(folder, kind):
    lines = map(json.loads, (folder / "records.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == kind]


def elsewhere(monkeypatch, **changes):
    """As if on another machine."""
    monkeypatch.setattr(runner, "describe_environment", lambda device: {**describe_environment(device), **changes})


def test_the_clock_stops_it_with_every_suite_seen(tmp_path):
    models = tiny_models()
    whole = bench(tmp_path / "whole", models=models, methods=METHODS, temperatures=(0.0, 1.0))
    part = bench(tmp_path / "part", models=models, methods=METHODS, temperatures=(0.0, 1.0), max_seconds=1e-9)
    assert whole["measured"] == {"prompts": 10, "of": 10}
    assert part["measured"] == {"prompts": 4, "of": 10}  # one prompt of two suites at two temperatures
    assert "4 of 10 measured so far" in render_report(part) and "so far" not in render_report(whole)
    assert {(row["suite"], row["num_prompts"]) for row in part["results"]} == {("short", 1), ("talk", 1)}
    finished = bench(tmp_path / "part", models=models, methods=METHODS, temperatures=(0.0, 1.0))
    assert finished["measured"] == whole["measured"] and timeless(finished) == timeless(whole)
    assert len(finished["sittings"]) == 1  # the same machine


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_no_time_at_all(tmp_path, seconds):
    with pytest.raises(ValueError, match="`max_seconds` must be greater than 0; got"):
        bench(tmp_path, max_seconds=seconds)


def test_it_goes_on_elsewhere(tmp_path, monkeypatch):
    models = tiny_models()
    bench(tmp_path, models=models, methods=METHODS, max_seconds=1e-9)
    elsewhere(monkeypatch, device_name="Another CPU", cpu="Another CPU")
    results = bench(tmp_path, models=models, methods=METHODS)
    assert [fact["num_prompts"] for fact in results["sittings"]] == [3, 2]
    assert [record["sitting"] for record in records(tmp_path, "prompt")] == [0, 0, 1, 1, 1]
    assert results["environment"]["cpu"] == "Another CPU" == results["sittings"][0]["environment"]["cpu"]
    assert len(records(tmp_path, "cost_model")) == 2
    report = render_report(results)
    assert "Measured in 2 sittings" in report and "Another CPU and " in report
    # Back on the first machine, with nothing left to do: nothing is measured or written.
    monkeypatch.undo()
    before = (tmp_path / "records.jsonl").read_bytes()
    assert bench(tmp_path, models=models, methods=METHODS) == results
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_a_prediction_takes_every_prompt_with_its_own_costs(tmp_path, monkeypatch):
    models = tiny_models()
    bench(tmp_path, models=models, methods=METHODS, max_seconds=1e-9)
    elsewhere(monkeypatch, device_name="Another CPU")
    path = tmp_path / "records.jsonl"
    bench(tmp_path, models=models, methods=METHODS)
    lines = list(map(json.loads, path.read_text().splitlines()))
    costs = [line["cost_model"] for line in lines if line["kind"] == "cost_model"]
    costs[1]["gamma"] = costs[0]["gamma"] + 0.5  # so that the two sittings really differ
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = bench(tmp_path, models=models, methods=METHODS)
    first, second = (CostModel.from_dict(cost) for cost in costs)
    for row in results["results"]:
        if row["method"] == "fixed:2":
            tau, window = row["acceptance_length"], row["mean_window"]
            shares = {"short": (1, 2), "talk": (1, 1)}[row["suite"]]  # prompts of the first and the second sitting
            by_hand = (shares[0] * first.speedup(tau, window) + shares[1] * second.speedup(tau, window)) / sum(shares)
            assert row["predicted_speedup"] == pytest.approx(by_hand)
            assert row["predicted_speedup"] != pytest.approx(first.speedup(tau, window))


def test_other_versions_are_refused(tmp_path, monkeypatch):
    from ppow_hf.evaluation import benchmark

    bench(tmp_path, methods=METHODS)
    versions = {**describe_environment(tiny_models()[0].device)["versions"], "torch": "0.0"}
    monkeypatch.setattr(benchmark, "describe_environment", lambda device: {"versions": versions})
    with pytest.raises(ResumeError, match="versions: "):
        bench(tmp_path, methods=METHODS)
