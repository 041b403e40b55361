# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""From the records of single prompts to the rows of `results.json`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .calibration import merge_all
from .measure import PHASES
from .methods import PLAIN, is_own_fixed

BOOTSTRAP = {"level": 0.95, "samples": 2000}


def measured_so_far(results: dict[str, Any]) -> str | None:
    """Of an unfinished benchmark how many prompts are measured, "110 of 200"; `None` of one that is finished."""
    measured = results.get("measured")
    return f"{measured['prompts']} of {measured['of']}" if measured and measured["prompts"] < measured["of"] else None


def bootstrap_interval(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0
) -> list[float] | None:
    """
    Percentile bootstrap interval, over prompts, of sum(numerators) / sum(denominators) (with denominators of 1: of the
    mean). None for fewer than two prompts; those of denominator 0 (answered without a verification) say nothing.
    """
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    top, bottom = top[bottom != 0], bottom[bottom != 0]
    if len(top) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(top), size=(BOOTSTRAP["samples"], len(top)))
    return percentile_interval(top[drawn].sum(axis=1) / bottom[drawn].sum(axis=1))


def percentile_interval(samples: np.ndarray) -> list[float]:
    """What the middle of bootstrap samples lies between."""
    tail = (1 - BOOTSTRAP["level"]) / 2
    return [float(value) for value in np.quantile(samples, [tail, 1 - tail])]


def result_row(
    suite: str,
    method: str,
    temperature: float,
    dtype: str,
    records: Sequence[dict[str, Any]],
    float32_records: Sequence[dict[str, Any]],
    seed: int,
) -> dict[str, Any]:
    """
    One row of `results.json`.

    Args:
        records (`Sequence[dict]`): Records of the suite's prompts at this temperature.
        float32_records (`Sequence[dict]`): Records of the float32 check of this suite.
        seed (`int`): Seed of the bootstrap.
    """
    runs = [record["methods"][method] for record in records]
    plain = [record["methods"][PLAIN] for record in records]
    tokens = sum(run["tokens"] for run in runs)
    seconds = sum(run["seconds"] for run in runs)
    speedups = [
        (run["tokens"] / run["seconds"]) / (base["tokens"] / base["seconds"])
        for run, base in zip(runs, plain, strict=True)
    ]
    speculative = runs[0]["verifications"] is not None
    row = {
        "suite": suite,
        "method": method,
        "temperature": temperature,
        "dtype": dtype,
        "num_prompts": len(runs),
        "new_tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "speedup": sum(speedups) / len(speedups),
        "acceptance_length": None,
        "mean_window": None,
        "acceptance_rate": None,
        "verifications": None,
        "lossless": _share([run["lossless"] for run in runs]),
        "seconds": {phase: sum_or_none([run["phases"][phase] for run in runs]) for phase in PHASES},
        "predicted_speedup": None,
        "speedup_interval": bootstrap_interval(speedups, [1.0] * len(speedups), seed) if method != PLAIN else None,
        "acceptance_length_interval": None,
        "cycle_overhead_share": None,
        "lossless_float32": _share([record["lossless"][method] for record in float32_records]),
        "lossless_float32_prompts": len(float32_records),
    }
    if speculative:
        verifications = [run["verifications"] for run in runs]
        committed = [run["committed"] for run in runs]
        drafted = sum(run["drafted"] for run in runs)
        total = sum(verifications)
        row["verifications"] = total
        if total:
            row["acceptance_length"] = sum(committed) / total
            row["mean_window"] = drafted / total
            row["acceptance_length_interval"] = bootstrap_interval(committed, verifications, seed)
        overhead = sum_or_none([run["cycle_overhead"] for run in runs])
        if overhead is not None:
            cycles = overhead + row["seconds"]["draft"] + row["seconds"]["verify"]
            row["cycle_overhead_share"] = overhead / cycles if cycles else None
        if drafted:
            row["acceptance_rate"] = sum(run["accepted"] for run in runs) / drafted
    return row


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over suites of every method and temperature; None where a suite has no figure."""
    summary = []
    for temperature, method in dict.fromkeys((row["temperature"], row["method"]) for row in rows):
        chosen = [row for row in rows if (row["temperature"], row["method"]) == (temperature, method)]
        entry: dict[str, Any] = {
            "method": method,
            "temperature": temperature,
            "suites": len(chosen),
            "num_prompts": sum(row["num_prompts"] for row in chosen),
        }
        for name in (
            "speedup",
            "acceptance_length",
            "mean_window",
            "acceptance_rate",
            "predicted_speedup",
            "lossless",
            "lossless_float32",
        ):
            values = [row[name] for row in chosen]
            entry[name] = None if any(value is None for value in values) else sum(values) / len(values)
        summary.append(entry)
    return summary


def compare_with_fixed(
    rows: Sequence[dict[str, Any]], summary: Sequence[dict[str, Any]], method: str = "cost_aware"
) -> list[dict[str, Any]]:
    """
    Speedup of `method` over that of the best `fixed:K`, per suite and (suite None) on the mean over suites. The best K
    is picked afterwards and for each suite anew, which favours the fixed windows. Both of the benchmark's own drafter.
    """
    comparison = []
    groups = dict.fromkeys((row["temperature"], row["suite"]) for row in rows)
    tables = [
        (temperature, suite, [row for row in rows if (row["temperature"], row["suite"]) == (temperature, suite)])
        for temperature, suite in groups
    ]
    tables += [
        (temperature, None, [row for row in summary if row["temperature"] == temperature])
        for temperature in dict.fromkeys(row["temperature"] for row in rows)
    ]
    for temperature, suite, table in tables:
        own = [row for row in table if row["method"] == method]
        fixed = [row for row in table if is_own_fixed(row["method"])]
        if own and fixed:
            best = max(fixed, key=lambda row: row["speedup"])
            comparison.append(
                {
                    "suite": suite,
                    "temperature": temperature,
                    "method": method,
                    "speedup": own[0]["speedup"],
                    "best_fixed": best["method"],
                    "best_fixed_speedup": best["speedup"],
                    "ratio": own[0]["speedup"] / best["speedup"],
                }
            )
    return comparison


def calibration_rows(records: Sequence[dict[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Brier score and reliability table of the acceptance estimate and of the raw draft confidence, per method."""
    rows = []
    for temperature in dict.fromkeys(record["temperature"] for record in records):
        for method in methods:
            runs = [record["methods"][method] for record in records if record["temperature"] == temperature]
            parts = {
                name: merge_all(run[name] for run in runs if run[name] is not None)
                for name in ("estimate", "confidence")
            }
            total = max(part.total for part in parts.values())
            if total == 0:
                continue
            outcomes = sum(parts["confidence" if parts["confidence"].total else "estimate"].outcomes)
            rows.append(
                {
                    "method": method,
                    "temperature": temperature,
                    "draft_tokens": total,
                    "accepted": outcomes / total,
                    **{name: part.table() if part.total else None for name, part in parts.items()},
                }
            )
    return rows


def representative(records: Sequence[dict[str, Any]], method: str) -> dict[str, Any]:
    """
    The prompt whose generation is drawn: median acceptance length of `method` among those that are not cut short (at
    least three quarters of the longest).
    """
    longest = max(record["methods"][method]["first_turn_tokens"] for record in records)
    full = [record for record in records if 4 * record["methods"][method]["first_turn_tokens"] >= 3 * longest]
    full.sort(
        key=lambda record: (
            record["methods"][method]["committed"] / max(record["methods"][method]["verifications"], 1),
            record["suite"],
            record["id"],
        )
    )
    return full[(len(full) - 1) // 2]


def _share(values: Sequence[bool | None]) -> float | None:
    if not values or any(value is None for value in values):
        return None
    return sum(values) / len(values)


def sum_or_none(values: Sequence[float | None]) -> float | None:
    """The sum, or `None` where one of them is not known."""
    return None if any(value is None for value in values) else sum(values)
