# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""From records to rows, by hand."""

import pytest

from ppow_hf.evaluation.aggregate import (
    bootstrap_interval,
    calibration_rows,
    compare_with_fixed,
    representative,
    result_row,
    summarize,
)


def run(tokens, seconds, verifications=None, committed=None, drafted=None, accepted=None, lossless=True, draft=0.5):
    return {
        "tokens": tokens,
        "first_turn_tokens": tokens,
        "seconds": seconds,
        "verifications": verifications,
        "committed": committed,
        "drafted": drafted,
        "accepted": accepted,
        "lossless": lossless,
        "cycle_overhead": 0.5 if draft else None,
        "phases": {"prefill": 0.1, "draft": draft, "verify": 1.0, "other": 0.0},
        "estimate": None,
        "confidence": None,
    }


RECORDS = [
    {
        "suite": "s",
        "id": "a",
        "temperature": 0.0,
        "methods": {"target": run(10, 10.0, draft=None), "fixed:2": run(10, 5.0, 4, 9, 8, 5)},
    },
    {
        "suite": "s",
        "id": "b",
        "temperature": 0.0,
        "methods": {"target": run(20, 10.0, draft=None), "fixed:2": run(20, 10.0, 6, 19, 12, 7, lossless=False)},
    },
]


def test_row():
    row = result_row("s", "fixed:2", 0.0, "float32", RECORDS, [{"lossless": {"fixed:2": True}}], seed=0)
    assert row["speedup"] == pytest.approx((2.0 + 1.0) / 2)  # the mean of ratios, not the ratio of means
    assert row["tokens_per_second"] == pytest.approx(30 / 15)
    assert row["acceptance_length"] == pytest.approx(28 / 10)
    assert row["mean_window"] == pytest.approx(20 / 10)
    assert row["acceptance_rate"] == pytest.approx(12 / 20)
    assert (row["verifications"], row["new_tokens"], row["num_prompts"]) == (10, 30, 2)
    assert row["lossless"] == 0.5 and row["lossless_float32"] == 1.0 and row["lossless_float32_prompts"] == 1
    assert row["seconds"] == {"prefill": 0.2, "draft": 1.0, "verify": 2.0, "other": 0.0}
    assert row["cycle_overhead_share"] == pytest.approx(1.0 / (1.0 + 1.0 + 2.0))
    assert row["speedup_interval"] == pytest.approx([1.0, 2.0])


def test_plain_row_has_no_speculative_figures():
    row = result_row("s", "target", 0.0, "float32", RECORDS, [], seed=0)
    assert row["speedup"] == 1.0 and row["seconds"]["draft"] is None and row["lossless_float32"] is None
    for name in ("acceptance_length", "mean_window", "acceptance_rate", "verifications", "predicted_speedup"):
        assert row[name] is None


def test_bootstrap():
    assert bootstrap_interval([1.0], [1.0]) is None
    assert bootstrap_interval([3.0, 3.0, 3.0], [1.0, 1.0, 1.0]) == [3.0, 3.0]
    low, high = bootstrap_interval(list(range(100)), [1.0] * 100)
    # The mean of 0..99 is 49.5 with a standard error of 2.89.
    assert low == pytest.approx(49.5 - 1.96 * 2.89, abs=0.7) and high == pytest.approx(49.5 + 1.96 * 2.89, abs=0.7)
    assert bootstrap_interval([1, 2, 5], [1, 1, 2], seed=3) == bootstrap_interval([1, 2, 5], [1, 1, 2], seed=3)


def row(suite, method, speedup):
    empty = ("acceptance_length", "mean_window", "acceptance_rate", "predicted_speedup", "lossless")
    return {
        "suite": suite,
        "method": method,
        "temperature": 0.0,
        "num_prompts": 2,
        "speedup": speedup,
        "lossless_float32": 1.0,
        **dict.fromkeys(empty),
    }


def test_summary_and_comparison():
    table = {"a": {"fixed:2": 1.0, "fixed:5": 2.0, "cost_aware": 1.8}, "b": {"fixed:2": 3.0, "fixed:5": 1.0}}
    table["b"]["cost_aware"] = 3.3
    rows = [row(suite, method, speedup) for suite, line in table.items() for method, speedup in line.items()]
    summary = summarize(rows)
    assert {entry["method"]: entry["speedup"] for entry in summary} == pytest.approx(
        {"fixed:2": 2.0, "fixed:5": 1.5, "cost_aware": 2.55}
    )
    assert all(entry["suites"] == 2 and entry["num_prompts"] == 4 for entry in summary)
    comparison = {line["suite"]: (line["best_fixed"], line["ratio"]) for line in compare_with_fixed(rows, summary)}
    assert comparison == {
        "a": ("fixed:5", pytest.approx(0.9)),
        "b": ("fixed:2", pytest.approx(1.1)),
        None: ("fixed:2", pytest.approx(2.55 / 2.0)),
    }
    assert compare_with_fixed([r for r in rows if r["method"] != "cost_aware"], summary)[0]["suite"] is None


def test_no_calibration_without_estimates():
    assert calibration_rows(RECORDS, ["target", "fixed:2"]) == []


def test_representative_is_the_median_of_the_long_ones():
    records = [
        {"suite": "s", "id": str(tau), "methods": {"m": run(tokens, 1.0, 10, 10 * tau)}}
        for tau, tokens in ((1, 100), (2, 90), (3, 80), (9, 10), (8, 5), (7, 20))
    ]
    assert representative(records, "m")["id"] == "2"
