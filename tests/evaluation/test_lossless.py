# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The float32 check: counts by hand, shares of several processes, stopping, and a target whose text does differ."""

import json

import pytest

from ppow_hf.evaluation import ResumeError, SuiteError, lossless
from ppow_hf.evaluation.environment import decoding_code
from ppow_hf.evaluation.lossless import check_lossless, differing, render_lossless
from tests.evaluation.bench_utils import EXAMPLES, byte_tokenizer, tiny_models

METHODS = ["target", "fixed:3", "cost_aware", "mixed_tree"]


def check(folder, models=None, **options):
    target, drafter = models or tiny_models("eagle3")
    options = {"max_new_tokens": 10, "progress": False, "drafter_name": "tiny/drafter", **options}
    examples = options.pop("examples", EXAMPLES)
    return check_lossless(
        target, byte_tokenizer(), drafter, examples, options.pop("methods", METHODS), folder, **options
    )


def test_every_method_on_every_prompt(tmp_path):
    results = check(tmp_path)
    assert json.loads((tmp_path / "lossless.json").read_text()) == results
    assert (tmp_path / "lossless.md").read_text() == render_lossless(results)
    assert [(row["suite"], row["method"]) for row in results["results"]] == [
        (suite, method) for suite in ("short", "talk") for method in METHODS
    ]
    for row in results["results"]:
        assert row["identical"] == row["num_prompts"] == {"short": 3, "talk": 2}[row["suite"]]
        assert row["different"] == []
        # Two turns and one turn of at most ten tokens.
        assert 0 < row["new_tokens"] <= 30
        assert (row["acceptance_length"] is None) == (row["method"] == "target")
    assert differing(results) == []
    assert results["decoding_code"] == {decoding_code(): 5}


def test_parts_make_the_whole(tmp_path):
    whole = check(tmp_path / "whole")
    assert check(tmp_path / "shared", part=2, parts=2) is None
    assert not (tmp_path / "shared" / "lossless.json").exists()
    shared = check(tmp_path / "shared", part=1, parts=2)
    assert shared["results"] == whole["results"]


def test_a_stopped_check_goes_on_in_other_shares(tmp_path, monkeypatch):
    compared = []
    original = lossless._compare

    def counted(runner, example, methods):
        if len(compared) == 2:
            raise KeyboardInterrupt
        compared.append((example.suite, example.id))
        return original(runner, example, methods)

    monkeypatch.setattr(lossless, "_compare", counted)
    with pytest.raises(KeyboardInterrupt):
        check(tmp_path)
    # The suites take turns, so that what was done so far is of all of them.
    assert compared == [("short", "a"), ("talk", "d")]
    seen = []
    monkeypatch.setattr(lossless, "_compare", lambda *a: seen.append(a[1].id) or original(*a))
    assert check(tmp_path, part=1, parts=3) is None or len(seen) == 3
    for part in (2, 3):
        results = check(tmp_path, part=part, parts=3)
    assert sorted(seen) == ["b", "c", "e"]
    assert results["results"] == check(tmp_path / "anew")["results"]


def test_it_says_which_code_decoded(tmp_path, monkeypatch):
    assert check(tmp_path, part=1, parts=2) is None
    monkeypatch.setattr(lossless, "decoding_code", lambda: "another")
    results = check(tmp_path, part=2, parts=2)
    assert results["decoding_code"] == {decoding_code(): 3, "another": 2}
    assert f"Decoding code (prompts): {decoding_code()} (3), another (2)." in render_lossless(results)


def test_it_goes_on_with_logs_from_before_that(tmp_path):
    whole = check(tmp_path)
    path = tmp_path / "records-1-of-1.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("decoding_code", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    results = check(tmp_path)
    assert results["results"] == whole["results"]
    assert results["decoding_code"] == {"not recorded": 4, decoding_code(): 1}
    del results["decoding_code"]
    assert "Decoding code" not in render_lossless(results)


def test_a_text_that_differs_is_found(tmp_path):
    target, drafter = tiny_models("eagle3")

    def wrong_in_windows(module, arguments, output):
        # Verification (some tokens) no longer agrees with plain steps (one) and prompts (many).
        return output.roll(1, dims=-1) if 1 < output.shape[1] < 8 else output

    handle = target.lm_head.register_forward_hook(wrong_in_windows)
    # (Trees try the target out first and refuse this one.)
    results = check(tmp_path, (target, drafter), methods=["target", "fixed:3"])
    handle.remove()
    rows = {(row["suite"], row["method"]): row for row in results["results"]}
    assert rows["short", "fixed:3"]["different"] == ["a", "b", "c"] and rows["short", "fixed:3"]["identical"] == 0
    assert rows["short", "target"]["different"] == []
    assert "fixed:3" in differing(results) and "target" not in differing(results)
    report = (tmp_path / "lossless.md").read_text()
    assert "Different: " in report and "`fixed:3` on short: a, b, c" in report and "| 0 of 3 |" in report


def test_logs_of_another_check_are_refused(tmp_path):
    check(tmp_path, part=1, parts=2)
    with pytest.raises(ResumeError, match="max_new_tokens: 10 then, 8 now"):
        check(tmp_path, max_new_tokens=8, part=2, parts=2)


@pytest.mark.parametrize(("part", "parts"), [(0, 1), (3, 2)])
def test_a_part_that_is_none(tmp_path, part, parts):
    with pytest.raises(ValueError, match=f"`part` must lie between 1 and `parts`; got part {part} of {parts}"):
        check(tmp_path, part=part, parts=parts)


def test_no_examples(tmp_path):
    with pytest.raises(SuiteError, match="holds no examples"):
        check(tmp_path, examples=[])


def test_an_example_that_comes_twice(tmp_path):
    with pytest.raises(SuiteError, match="'a' of suite 'short' comes twice"):
        check(tmp_path, examples=[*EXAMPLES, EXAMPLES[0]])
