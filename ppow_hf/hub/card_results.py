# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The results of a card: rows of `results.json` as table cells."""

from __future__ import annotations

from typing import Any

from ..evaluation.aggregate import measured_so_far
from ..evaluation.markdown import interval, number, percent, times
from ..evaluation.methods import PLAIN
from .card_facts import CardFacts
from .card_measured import Benchmark, is_window


def own_summary(facts: CardFacts, benchmark: Benchmark) -> dict[str, Any] | None:
    """The mean over suites of the drafter's own window, at the lowest temperature; `None` if it was not measured."""
    method = facts.method_in(benchmark)
    own = [row for row in benchmark.summary if row["method"] == method]
    return min(own, key=lambda row: row["temperature"]) if own else None


def benchmark_section(benchmark: Benchmark) -> dict[str, Any]:
    """Protocol, hardware and tables of one `results.json`."""
    results = benchmark.results
    arguments, environment = results["arguments"], results["environment"]
    prompts = (
        "all prompts a suite" if arguments.get("limit") is None else f"at most {arguments['limit']} prompts a suite"
    )
    if (measured := measured_so_far(results)) is not None:
        prompts += f" ({measured} so far)"
    template = "chat template" if arguments.get("chat_template") else "plain prompts, no chat template"
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    hardware = f"{environment.get('device')} ({environment.get('device_name')})"
    if environment.get("cpu_cores"):
        hardware += f", {environment['cpu_cores']} cores, {environment.get('torch_threads')} torch threads"
    bootstrap = results.get("bootstrap")
    protocol = [
        f"Protocol: batch of one prompt, {template}, {prompts}, at most {arguments.get('max_new_tokens')} new "
        f"tokens a turn, seed {arguments.get('seed')}; methods run interleaved, prompt by prompt, in one process "
        "after a warm-up, timed over the whole `generate` call.",
        f"Dtype: {arguments['dtype']}{', prepacked for all methods alike' if arguments.get('prepack') else ''}",
        f"Hardware: {hardware}, {environment.get('platform')}",
        f"Versions: {versions or 'not recorded'}",
    ]
    if bootstrap:
        protocol.append(f"Intervals: {100 * bootstrap['level']:g}%, {bootstrap['samples']} bootstrap samples")
    tables = []
    for temperature in dict.fromkeys(row["temperature"] for row in benchmark.rows):
        how = "greedy decoding (temperature 0)" if temperature == 0 else f"sampling at temperature {temperature:g}"
        rows = [row for row in benchmark.summary if row["temperature"] == temperature]
        if rows and rows[0]["suites"] > 1:
            header = ["method", "speedup", "predicted", "tau", "window", "acceptance rate"]
            tables.append(
                {"title": f"Mean over suites, {how}", "header": header, "rows": [_mean_row(r) for r in rows]}
            )
        header = ["suite", "method", "prompts", "tokens/s", "speedup", "predicted", "tau", "window", "acceptance rate"]
        rows = [_suite_row(row) for row in benchmark.rows if row["temperature"] == temperature]
        tables.append({"title": f"Per suite, {how}", "header": header, "rows": rows})
    return {
        "title": f"{', '.join(arguments['suites'])} in {arguments['dtype']} ({environment.get('device_name')})",
        "path": benchmark.path,
        "report": benchmark.report,
        "protocol": protocol,
        "tables": tables,
    }


def _mean_row(row: dict[str, Any]) -> list[str]:
    return [f"`{row['method']}`", times(row["speedup"]), *_shared_cells(row, row["acceptance_length"])]


def _suite_row(row: dict[str, Any]) -> list[str]:
    return [
        row["suite"],
        f"`{row['method']}`",
        str(row["num_prompts"]),
        number(row["tokens_per_second"], 1),
        times(row["speedup"]) + interval(row.get("speedup_interval")),
        *_shared_cells(row, row["acceptance_length"], row.get("acceptance_length_interval")),
    ]


def _shared_cells(row: dict[str, Any], tau: float | None, tau_interval: list[float] | None = None) -> list[str]:
    return [
        times(row["predicted_speedup"]),
        number(tau) + interval(tau_interval),
        number(row["mean_window"]),
        number(row["acceptance_rate"]),
    ]


def other_methods(facts: CardFacts) -> str:
    """What to say of methods in which this drafter has no part."""
    methods = dict.fromkeys(row["method"] for benchmark in facts.benchmarks for row in benchmark.rows)
    others = [m for m in methods if m != PLAIN and not is_window(m)]
    names = [f"`{m}`" for m in others if "@" not in m]
    text = f"{', '.join(names)}: transformers' own, without this drafter; " if names else ""
    compared = dict.fromkeys(m.partition("@")[2] for m in others if "@" in m)
    text += "".join(f"`...@{name}`: another drafter, to compare with; " for name in compared)
    if "lookup" in methods and facts.config["model_type"] != "ppow_lookup":
        text += "`lookup`: what followed earlier in the text, without this drafter; "
    return text


def lossless_rows(benchmark: Benchmark) -> list[list[str]]:
    """Identical texts of every window policy, over all suites of a benchmark's greedy runs."""
    rows = []
    for mean in benchmark.summary:
        if mean["temperature"] != 0 or not is_window(mean["method"]):
            continue
        of_method = [r for r in benchmark.window_rows() if (r["method"], r["temperature"]) == (mean["method"], 0)]
        prompts = [row["num_prompts"] for row in of_method]
        checked = [row.get("lossless_float32_prompts") or 0 for row in of_method]
        rows.append(
            [
                f"`{benchmark.path}`",
                f"`{mean['method']}`",
                str(mean["num_prompts"]),
                percent(_share_of([row["lossless"] for row in of_method], prompts)),
                benchmark.results["arguments"]["dtype"],
                str(sum(checked)),
                percent(_share_of([row["lossless_float32"] for row in of_method], checked)),
            ]
        )
    return rows


def _share_of(shares: list[float | None], prompts: list[int]) -> float | None:
    """The share of all prompts, from those of the suites."""
    if None in shares or not sum(prompts):
        return None
    return sum(share * count for share, count in zip(shares, prompts, strict=True)) / sum(prompts)
