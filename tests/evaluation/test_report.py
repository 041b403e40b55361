# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The report: every number in it is one of results.json."""

import copy
import re

import pytest

from ppow_hf.evaluation import METHOD_NAMES, render_report
from ppow_hf.evaluation.plots import _method_colors
from tests.evaluation.bench_utils import bench

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)*")
IMAGES = {"speedup": "speedup.png", "window": "window.png"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return bench(
        tmp_path_factory.mktemp("report"),
        methods=["target", "prompt_lookup", "fixed:2", "fixed:5", "confidence", "cost_aware"],
        temperatures=(0.0, 0.7),
        dtype="bfloat16",
        check_float32=1,
    )


def values_of(content):
    """All numbers of results.json, and those written inside its strings (names and versions)."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from values_of(key)
            yield from values_of(value)
    elif isinstance(content, list):
        for value in content:
            yield from values_of(value)
    elif isinstance(content, str):
        yield from NUMBER.findall(content)
    elif isinstance(content, (int, float)) and not isinstance(content, bool):
        yield content


def is_known(text, numbers, strings):
    if text in strings:
        return True
    digits = len(text.partition(".")[2])
    return any(f"{value:.{digits}f}" == text or f"{100 * value:.{digits}f}" == text for value in numbers)


def test_every_number_comes_from_results(results):
    values = list(values_of(results))
    strings = {value for value in values if isinstance(value, str)}
    numbers = [value for value in values if not isinstance(value, str)]
    numbers.append(len(results["cost_model"]["verify_curve"]) - 1)  # the longest window whose cost was measured
    found = NUMBER.findall(render_report(results, IMAGES))
    assert len(found) > 200
    assert [text for text in found if not is_known(text, numbers, strings)] == []


def test_the_check_above_can_fail(results):
    values = list(values_of(results))
    assert not is_known("123.456", [v for v in values if not isinstance(v, str)], {v for v in values if v == "1"})


def test_all_rows_are_reported(results):
    changed = copy.deepcopy(results)
    for index, row in enumerate(changed["results"]):
        row["speedup"] = 300 + index
        row["tokens_per_second"] = 500.5 + index
    report = render_report(changed, IMAGES)
    for index in range(len(changed["results"])):
        assert f"{300 + index}.00x" in report and f"{500 + index}.5" in report


def test_wording_follows_the_arguments(results):
    report = render_report(results, IMAGES)
    assert "![Window and divergence](window.png)" in report and "## Results, sampling at temperature 0.7" in report
    assert "checked in float32 (1 prompt(s) per suite)" in report
    assert "identical, bfloat16 | identical, float32" in report
    changed = copy.deepcopy(results)
    changed["arguments"] |= {"chat_template": False, "limit": 7, "check_float32": 0}
    report = render_report(changed)
    assert "no chat template" in report and "at most 7 prompts per suite" in report
    assert "No float32 check was asked for" in report and ".png" not in report


def test_every_method_has_a_colour_of_its_own():
    names = [re.sub(":[KN]$", ":4", name) for name in METHOD_NAMES if name not in ("target", "tree", "mixed_tree")]
    colours = _method_colors(names)
    assert list(colours) == names and len(set(colours.values())) == len(names)
