# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Acceptance length: a hand-computed example, its errors, and the metric module that must agree."""

import ast
import inspect
import random
from pathlib import Path

import evaluate
import pytest

import ppow_hf.evaluation
from ppow_hf.evaluation import acceptance_statistics

METRIC = Path(ppow_hf.evaluation.__file__).parent / "metrics" / "acceptance_length"


def test_hand_computed_example():
    # Three verifications commit 3+1, 0+1 and 2+1 tokens; 5 of 10 draft tokens are accepted.
    assert acceptance_statistics([3, 0, 2], [4, 4, 2]) == {
        "acceptance_length": 8 / 3,
        "acceptance_rate": 0.5,
        "mean_window": 10 / 3,
        "verifications": 3,
        "committed_tokens": 8,
    }


def test_nothing_drafted():
    statistics = acceptance_statistics([0, 0], [0, 0])
    assert statistics["acceptance_length"] == 1.0 and statistics["acceptance_rate"] is None


@pytest.mark.parametrize(
    "accepted, drafted, message",
    [([], [], "empty"), ([1], [1, 2], "1 verifications"), ([3], [2], "Verification 0"), ([0, -1], [2, 2], "cation 1")],
)
def test_errors(accepted, drafted, message):
    with pytest.raises(ValueError, match=message):
        acceptance_statistics(accepted, drafted)


def test_metric_loads_offline_and_agrees():
    metric = evaluate.load(str(METRIC))
    assert metric.compute(predictions=[3, 0, 2], references=[4, 4, 2]) == acceptance_statistics([3, 0, 2], [4, 4, 2])
    generator = random.Random(0)
    drafted = [generator.randint(0, 9) for _ in range(50)]
    accepted = [generator.randint(0, window) for window in drafted]
    for start in range(0, 50, 10):
        metric.add_batch(predictions=accepted[start : start + 10], references=drafted[start : start + 10])
    assert metric.compute() == acceptance_statistics(accepted, drafted)


def test_metric_has_the_same_source_and_stands_alone():
    text = (METRIC / "acceptance_length.py").read_text(encoding="utf-8")
    assert inspect.getsource(acceptance_statistics) in text
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    assert imported == {"collections.abc", "datasets", "evaluate"}
