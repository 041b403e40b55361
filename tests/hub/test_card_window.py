# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A card tells of the drafter's own window: what it can be, and the figures of that window and no other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ppow_hf import LookupDrafter, TreeConfig, WindowConfig
from ppow_hf.evaluation.methods import METHOD_NAMES, MethodError, parse_method
from ppow_hf.hub.card import write_card
from ppow_hf.hub.card_facts import CardFacts
from ppow_hf.hub.card_measured import Benchmark
from ppow_hf.hub.card_window import benchmark_methods, describe_window
from ppow_hf.hub.push_drafter import complete_folder
from tests.testing_utils import tiny_eagle3, tiny_target

REFERENCE = Path(__file__).parents[2] / "model_cards" / "smollm2-135m-instruct-eagle3"
RESULTS = "benchmarks/results.json"
# A benchmark of every window.
BENCHMARK = REFERENCE.parent / "experiments" / "windows" / "results.json"
TREE = TreeConfig(max_nodes=16, max_depth=6, branching=3)
WINDOWS = [
    (WindowConfig(), ("cost_aware",), "`cost_aware`: 1 to 12 draft tokens"),
    (WindowConfig(min_size=0, max_size=7), ("cost_aware",), "`cost_aware`: 0 to 7 draft tokens"),
    (WindowConfig("heuristic", min_size=0, max_size=9), ("heuristic",), "`heuristic`: 1 to 9 draft tokens"),
    (WindowConfig("confidence", min_size=4, max_size=4), ("confidence",), "`confidence`: 4 draft tokens"),
    (WindowConfig("divergence"), ("divergence",), "`divergence`: 1 to 12 draft tokens"),
    (WindowConfig.parse("fixed:6"), ("fixed:6",), "`fixed:6`: always 6 draft tokens"),
    (WindowConfig.parse("lookup"), ("lookup",), "`lookup`: up to 24 looked-up tokens, none of the drafter's"),
    (WindowConfig.parse("lookup:7"), (), "`lookup:7`: always 7 looked-up tokens, none of the drafter's"),
    (
        WindowConfig(proposals="mixed", max_size=8, lookup_size=20),
        ("mixed",),
        "`mixed`: 1 to 8 draft tokens, up to 20 looked-up tokens, or both, whichever is expected to pay most",
    ),
    (
        WindowConfig("fixed", size=3, proposals="mixed"),
        (),
        "`mixed` with the policy `fixed`: 3 draft tokens, up to 24 looked-up tokens, or both, whichever is expected "
        "to pay most",
    ),
    (
        WindowConfig(tree=TREE),
        ("tree", "tree:16"),
        "`tree`: a draft tree of up to 16 nodes (at most 6 deep, 3 children a node)",
    ),
    (
        WindowConfig("fixed", tree=TREE),
        (),
        "`tree` with the policy `fixed`: always the 16 likeliest nodes of a draft tree (at most 6 deep, 3 children a "
        "node)",
    ),
    (
        WindowConfig(tree=TREE, proposals="mixed", lookup_size=30),
        ("mixed_tree", "mixed_tree:16"),
        "`mixed_tree`: a draft tree of up to 16 nodes, looked-up tokens among them (the drafter's own at most 6 deep, "
        "3 children a node), or up to 30 looked-up tokens alone",
    ),
    (WindowConfig("fixed", tree=TREE, proposals="mixed"), (), None),
    (
        WindowConfig(carry_over=True),
        ("cost_aware",),
        "`cost_aware`: 1 to 12 draft tokens; what a call learns of the text is kept for the next",
    ),
]


@pytest.fixture(scope="module")
def drafter():
    return tiny_eagle3(tiny_target(), draft_vocab_size=40)


@pytest.fixture
def folder(drafter, tmp_path):
    """A function: the folder of a drafter with a window, and a benchmark of every window."""

    def save(window: WindowConfig, rename: dict[str, str] | None = None) -> Path:
        drafter.generation_config.window = window
        drafter.save_pretrained(tmp_path / "drafter")
        results = json.loads(BENCHMARK.read_text())
        results.pop("drafter_hash", None)
        results["arguments"].pop("drafter_hash", None)
        for row in [*results["results"], *results["summary"]]:
            row["method"] = (rename or {}).get(row["method"], row["method"])
        path = tmp_path / "drafter" / RESULTS
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results))
        return tmp_path / "drafter"

    return save


def figures(method: str) -> dict:
    """The mean over suites that the benchmark gives a method."""
    summary = json.loads(BENCHMARK.read_text())["summary"]
    return next(row for row in summary if row["method"] == method)


@pytest.mark.parametrize(("window", "methods", "words"), WINDOWS)
def test_names_and_words_of_a_window(window, methods, words):
    assert benchmark_methods(window) == methods
    assert words is None or describe_window(window) == words


@pytest.mark.parametrize("window", [window for window, _, _ in WINDOWS])
def test_a_method_counts_as_the_window_where_a_benchmark_decodes_the_same_and_nowhere_else(drafter, window):
    drafter.generation_config.window = window
    names = {name.replace("K", str(k)).replace("N", str(k)) for name in METHOD_NAMES for k in (5, 16, window.size)}
    same = set()
    for name in names | set(benchmark_methods(window)):
        method = parse_method(name)
        if method.kind == "window":
            with method.generate_kwargs(drafter, None) as arguments:
                if arguments["window"] == replace(window, carry_over=False):
                    same.add(name)
    assert same == set(benchmark_methods(window))


@pytest.mark.parametrize("text", ["lookup:7", "confidence:0.3"])
def test_benchmarks_have_no_method_for_every_window(text):
    with pytest.raises(MethodError):
        parse_method(text)


def test_the_name_is_the_one_under_which_it_was_measured(tmp_path):
    facts = CardFacts(tmp_path, {}, {"window": {"tree": {"max_nodes": 16}}}, weights=None)
    assert facts.own_method == "tree"
    other, sized = (Benchmark("results.json", {"results": [{"method": m}]}) for m in ("tree:32", "tree:16"))
    facts.benchmarks = [other, sized]
    assert (facts.method_in(other), facts.method_in(sized), facts.own_method) == (None, "tree:16", "tree:16")


def test_the_reference_drafters_window():
    window = json.loads((REFERENCE / "generation_config.json").read_text())["window"]
    assert describe_window(WindowConfig.from_dict(window)) == (
        "`mixed_tree`: a draft tree of up to 32 nodes, looked-up tokens among them (the drafter's own at most 8 deep, "
        "4 children a node), or up to 24 looked-up tokens alone"
    )


@pytest.mark.parametrize(
    ("window", "rename", "method", "measured_as"),
    [
        (WindowConfig.parse("fixed:5"), {}, "fixed:5", "fixed:5"),
        (WindowConfig.parse("tree"), {}, "tree", "tree"),
        (WindowConfig.parse("tree:16"), {"tree": "tree:16"}, "tree:16", "tree"),
        (WindowConfig.parse("mixed"), {}, "mixed", "mixed"),
    ],
)
def test_the_card_gives_the_figures_of_that_window(folder, window, rename, method, measured_as):
    card = ModelCard(write_card(folder(window, rename)).read_text())
    assert f"| Window | {describe_window(window)} |" in card.text
    assert f"**`{method}` window: {figures(measured_as)['speedup']:.2f}x the speed" in card.text
    assert {result.metric_args["window"] for result in card.data.eval_results} == {method}
    assert "own window" not in card.text


@pytest.mark.parametrize(
    ("window", "rename"),
    [
        (WindowConfig.parse("lookup:5"), {}),
        (WindowConfig("fixed", tree=True), {}),
        (WindowConfig.parse("fixed:11"), {}),
        (WindowConfig.parse("tree:16"), {"tree": "tree:32"}),
    ],
)
def test_the_card_claims_no_other_windows_speed(folder, window, rename):
    text = write_card(folder(window, rename)).read_text()
    assert "the speed of plain `generate`, acceptance length" not in text
    assert "`benchmarks/results.json` did not measure this drafter's own window, only others" in text


def test_lookup_is_not_told_as_the_drafters_doing(folder):
    text = write_card(folder(WindowConfig())).read_text()
    assert "`lookup`: what followed earlier in the text, without this drafter; all other\n" in text
    text = write_card(folder(WindowConfig(), {"lookup": "fixed:20"})).read_text()
    assert "what followed earlier" not in text


def test_a_drafter_without_weights_has_a_card(tmp_path):
    LookupDrafter.from_target(tiny_target()).save_pretrained(tmp_path / "lookup")
    complete_folder(tmp_path / "lookup", "org/lookup")
    text = (tmp_path / "lookup" / "README.md").read_text()
    assert "| Family | lookup in the text, without weights |" in text
    assert "| Window | `lookup`: up to 24 looked-up tokens, none of the drafter's |" in text
    assert "vLLM" not in text and "SGLang" not in text and "fine-tuned" not in text and "No PPOW" not in text
    assert 'custom_generate="org/lookup"' in text and "### vLLM" not in text and "## Results" in text


def test_a_window_that_is_none_is_named(folder):
    path = folder(WindowConfig()) / "generation_config.json"
    content = json.loads(path.read_text())
    content["window"]["depth"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"`window` in `{path}` is none: Unknown window field.s.: depth.*save"):
        write_card(path.parent)
