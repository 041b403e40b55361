# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Several drafters in one benchmark: the windows of each are its own, and nothing of one counts for another."""

import json

import pytest

from ppow_hf.evaluation import MethodError, ResumeError, parse_method, render_report
from ppow_hf.evaluation.aggregate import compare_with_fixed
from ppow_hf.evaluation.methods import check_methods
from ppow_hf.evaluation.sittings import cost_models
from ppow_hf.generation import CostModel
from ppow_hf.hub.card_measured import Benchmark
from tests.evaluation.bench_utils import TIMELESS, bench, tiny_models
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

METHODS = ["fixed:3", "cost_aware", "fixed:3@self", "cost_aware@self", "fixed:2@small", "mixed_tree@small"]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """An EAGLE-3 drafter that knows nothing, a drafter that is the target itself, and one of its layers."""
    target, drafter = tiny_models("eagle3")
    others = {
        "self": tiny_causal_drafter(target, num_layers=target.config.num_hidden_layers),
        "small": tiny_causal_drafter(target, num_layers=1),
    }
    folder = tmp_path_factory.mktemp("three")
    results = bench(folder, models=(target, drafter), other_drafters=others, methods=METHODS, plots=True)
    return folder, (target, drafter, others), results


def rows_of(results, method):
    return [row for row in results["results"] if row["method"] == method]


def test_every_window_is_drafted_by_its_own_drafter(three):
    _, (target, drafter, others), results = three
    assert results["arguments"]["methods"] == ["target", *METHODS]
    for row in rows_of(results, "fixed:3@self"):  # the target never refuses itself; the last window may be cut
        assert row["acceptance_rate"] == 1.0
    assert all(row["acceptance_rate"] < 0.9 for row in rows_of(results, "fixed:3"))
    for name, method in ((None, "fixed:3"), ("small", "fixed:2")):
        alone = (target, drafter if name is None else others[name])
        expected = bench(three[0] / f"alone-{name}", models=alone, methods=[method])
        found = rows_of(results, method if name is None else f"{method}@{name}")
        skip = ("method",)
        assert [{key: row[key] for key in TIMELESS if key not in skip} for row in found] == [
            {key: row[key] for key in TIMELESS if key not in skip} for row in rows_of(expected, method)
        ]
    assert all(row["lossless"] == 1.0 for row in results["results"] if row["method"] != "target")


def test_the_files_tell_the_drafters_apart(three):
    folder, _, results = three
    assert set(results["arguments"]["other_drafters"]) == {"self", "small"}
    hashes = [results["drafter_hash"], *results["other_drafter_hashes"].values()]
    assert len(set(hashes)) == 3
    assert set(results["sittings"][0]["other_cost_models"]) == {"self", "small"}
    text = render_report(results)
    assert "as `@self`" in text and "| `cost_aware@self` |" in text
    assert (folder / "speedup.png").stat().st_size > 10_000


def test_predictions_use_the_drafters_own_costs(three):
    folder, _, results = three
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert sum(record["kind"] == "cost_model" for record in records) == 3
    for name in ("self", "small"):
        method = f"fixed:{3 if name == 'self' else 2}@{name}"
        costs = cost_models(records, name)[0]
        assert isinstance(costs, CostModel) and costs.gamma != cost_models(records)[0].gamma
        for row in rows_of(results, method):
            expected = costs.speedup(row["acceptance_length"], row["mean_window"])
            assert row["predicted_speedup"] == pytest.approx(expected)
    assert all(row["predicted_speedup"] is None for row in rows_of(results, "mixed_tree@small"))


def test_the_best_fixed_window_is_the_benchmarks_own_drafters(three):
    results = three[2]
    assert {row["best_fixed"] for row in results["comparison"]} == {"fixed:3"}
    rows = [
        {"suite": "s", "temperature": 0.0, "method": method, "speedup": speedup}
        for method, speedup in (("cost_aware", 2.0), ("fixed:4", 1.6), ("fixed:4@better", 4.0))
    ]
    comparison = compare_with_fixed(rows, rows)
    assert [(row["best_fixed"], row["ratio"]) for row in comparison] == [("fixed:4", 1.25)] * 2


def test_a_card_leaves_out_windows_of_others(three):
    benchmark = Benchmark("results.json", three[2])
    assert {row["method"] for row in benchmark.window_rows()} == {"fixed:3", "cost_aware"}
    assert benchmark.best_fixed() == 3


def test_it_goes_on_only_with_the_same_drafters(three):
    folder, (target, drafter, others), results = three
    arguments = {"models": (target, drafter), "methods": METHODS}
    again = bench(folder, **arguments, other_drafters=others)
    assert again["results"] == results["results"]
    swapped = {"self": others["small"], "small": others["self"]}
    with pytest.raises(ResumeError, match="other_drafter_hashes"):
        bench(folder, **arguments, other_drafters=swapped)


def test_without_a_drafter_of_its_own(tmp_path):
    target, drafter = tiny_models("eagle3")
    results = bench(
        tmp_path, models=(target, None), drafter_name=None, methods=["fixed:2@it"], other_drafters={"it": drafter}
    )
    assert results["arguments"]["drafter"] is None and rows_of(results, "fixed:2@it")[0]["verifications"] > 0


def test_names():
    method = parse_method("tree:8@my-drafter.v2")
    assert (method.base, method.drafter, method.kind) == ("tree:8", "my-drafter.v2", "window")
    assert not method.is_chain and parse_method("fixed:3@a").is_chain


@pytest.mark.parametrize("name", ["target@a", "prompt_lookup@a", "hf_constant@a"])
def test_only_windows_have_a_drafter(name):
    with pytest.raises(MethodError, match=f"'{name}': '{name[:-2]}' is no window of a drafter"):
        parse_method(name)


@pytest.mark.parametrize("name", ["fixed:3@", "fixed:3@a/b", "fixed:3@a@b", "cost_aware@ a"])
def test_bad_drafter_names(name):
    with pytest.raises(MethodError, match="after `@` comes the name of a drafter"):
        parse_method(name)


def test_a_bad_window_of_another_drafter_is_named():
    with pytest.raises(MethodError, match="Unknown method 'sideways'"):
        parse_method("sideways@a")


@pytest.mark.parametrize(
    ("methods", "others", "error", "words"),
    [
        (["fixed:3@cst"], [], MethodError, "drafter 'cst', which was not given.*--drafter cst=PATH"),
        (["fixed:3@cst"], ["ppow"], MethodError, "drafter 'cst'.*Known: ppow"),
        (["fixed:3"], ["cst"], ValueError, "has 'cst', of which no method is a window.*cost_aware@cst"),
        (["fixed:3@a"], ["a", "b c"], MethodError, "has the name 'b c'"),
    ],
)
def test_what_does_not_fit_together(tmp_path, methods, others, error, words):
    drafter = tiny_models("eagle3")[1]
    with pytest.raises(error, match=words):
        bench(tmp_path / "out", "eagle3", methods=methods, other_drafters=dict.fromkeys(others, drafter))
    assert not (tmp_path / "out").exists()


def test_a_drafter_for_another_target_is_refused(tmp_path):
    other = tiny_eagle3(tiny_target(vocab_size=64))
    with pytest.raises(ValueError, match="vocab"):
        bench(tmp_path / "out", "eagle3", methods=["fixed:3@a"], other_drafters={"a": other})
    assert not (tmp_path / "out").exists()
    target = tiny_models()[0]
    with pytest.raises(MethodError, match="needs a ppow-hf drafter"):
        check_methods([parse_method("fixed:3@a")], target, None, None, {"a": tiny_target()})
