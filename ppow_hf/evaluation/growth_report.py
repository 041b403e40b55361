# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`growth.md` and its pictures: the content of `growth.json` in tables and curves. Every number comes from there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..whole_files import write_text_whole
from .markdown import NOTHING, environment_list, number, percent, table, times
from .methods import PLAIN
from .plots import BLUE, GREEN, INK, ORANGE, VERMILION, _method_colors, _style, save_figure

MIB = 1024 * 1024
LENGTH_IMAGE, WINDOW_IMAGE = "growth_length.png", "growth_window.png"
_QUANTITY_TITLES = {
    "first_token": "time to the first token",
    "token": "time per further token",
    "prompt_draft": "drafter's first cycle",
    "draft": "drafting, per cycle",
    "verify": "verification, per cycle",
    "other": "own work, per cycle",
    "peak": "peak memory",
    "cache": "target's cache",
    "state": "drafter's state",
}
_PHASE_COLORS = {"draft": VERMILION, "verify": BLUE, "other": ORANGE}


def write_growth_report(results: dict[str, Any], output_dir: str | os.PathLike, plots: bool = True) -> None:
    """
    Writes `growth.md` and, with `plots`, `growth_length.png` and (where windows were measured) `growth_window.png`.

    Args:
        results (`dict`): Content of `growth.json`.
        output_dir (`str` or `os.PathLike`): Where to; must exist.
        plots (`bool`, *optional*, defaults to `True`): Draw the pictures.
    """
    output_dir = Path(output_dir)
    images = []
    if plots:
        images.append(LENGTH_IMAGE)
        save_figure(_length_figure(results), output_dir / LENGTH_IMAGE)
        if _rows(results, "window"):
            images.append(WINDOW_IMAGE)
            save_figure(_window_figure(results), output_dir / WINDOW_IMAGE)
    write_text_whole(output_dir / "growth.md", render_growth_report(results, images))


def render_growth_report(results: dict[str, Any], images: Sequence[str] = ()) -> str:
    """The report as Markdown text; arguments as in [`write_growth_report`], `images` those that were drawn."""
    arguments = results["arguments"]
    by_length, by_window = _rows(results, "length"), _rows(results, "window")
    parts = [f"# How cost grows: {arguments['target']}", _introduction(results)]
    if LENGTH_IMAGE in images:
        parts.append(f"![Speed, time and memory against prompt length]({LENGTH_IMAGE})")
    parts += [
        "## Against prompt length",
        "### Tokens per second, behind the first token",
        _by_length(by_length, lambda row: _speed(row, "speedup")),
        "### Time to the first token, milliseconds",
        "The drafter takes in the prompt behind the first token; that is part of the speed above.",
        _by_length(by_length, lambda row: _milliseconds(row["first_seconds"])),
        "### Whole call, relative to plain `generate`",
        _by_length(by_length, lambda row: times(row["speedup_call"])),
        "### Peak memory of a call, MiB above the models",
        _by_length(by_length, lambda row: _mebibytes(row["peak_bytes"])),
        "### Caches at the end of a call, MiB",
        "The target's keys and values, and what the drafter remembers of the text.",
        _by_length(
            by_length, lambda row: f"{_mebibytes(row['cache_bytes'], 2)} + {_mebibytes(row['state_bytes'], 2)}"
        ),
    ]
    if any(row["cycle"] for row in by_length):
        parts += ["### Where a cycle's time goes, milliseconds", _cycle_text(), _cycle_table(by_length)]
    if results["exponents"]:
        parts += ["### How steeply it rises", _exponent_text(results["exponents"]), _exponent_table(results)]
    if by_window:
        parts += ["## Against window size", f"Fixed windows at prompts of {arguments['window_length']} tokens."]
        if WINDOW_IMAGE in images:
            parts.append(f"![Speed and time per cycle against window size]({WINDOW_IMAGE})")
        parts.append(_window_table(by_window))
    parts += ["## Environment", environment_list(results["environment"])]
    return "\n\n".join(parts) + "\n"


def _rows(results: dict[str, Any], part: str) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if row["part"] == part]


def _introduction(results: dict[str, Any]) -> str:
    arguments = results["arguments"]
    longest = max(_rows(results, "length"), key=lambda row: row["length"])
    sizes = [f"target {_mebibytes(results['parameters']['target'])} MiB"]
    text = f"Target **{arguments['target']}**"
    if arguments["drafter"]:
        text += f", drafter **{arguments['drafter']}**"
        sizes.append(f"drafter {_mebibytes(results['parameters']['drafter'])} MiB")
    return (
        f"{text}, {arguments['dtype']} on {results['environment']['device_name']}; weights: {', '.join(sizes)}. "
        f"Greedy, one prompt at a time, exactly {arguments['new_tokens']} new tokens: nothing ends them early (an "
        f"end-of-text token came in {longest['ended']} of {longest['repeats']} texts behind the longest prompts). "
        f"Medians over {arguments['repeats']} prompts of every length, real text that is never repeated; the shorter "
        "prompts are the end of the longest. Methods run interleaved in one process, after a warm-up; memory is "
        f"measured in calls of its own. Seed {arguments['seed']}. {NOTHING} stands for a figure without meaning there."
    )


def _by_length(rows: Sequence[dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> str:
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    found = {(row["method"], row["length"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return table(
        ["prompt tokens", *(f"`{method}`" for method in methods)],
        [[str(length), *(cell(found[method, length]) for method in methods)] for length in lengths],
    )


def _cycle_text() -> str:
    return (
        "The drafter's first cycle holds its pass over the prompt; then medians over the later cycles. Own work is "
        "what is neither drafting nor verification; the share is drafting's."
    )


def _cycle_table(rows: Sequence[dict[str, Any]]) -> str:
    return table(
        ["method", "prompt tokens", "tau", "window", "first cycle, drafter", "draft", "verify", "own work", "share"],
        [
            [
                f"`{row['method']}`",
                str(row["length"]),
                number(row["acceptance_length"]),
                number(row["mean_window"]),
                _milliseconds(row["prompt_draft"]),
                *(_milliseconds(row["cycle"][phase], 2) for phase in ("draft", "verify", "other")),
                percent(row["draft_share"], 1),
            ]
            for method in dict.fromkeys(row["method"] for row in rows)
            for row in rows
            if row["method"] == method and row["cycle"]
        ],
    )


def _exponent_text(exponents: Sequence[dict[str, Any]]) -> str:
    low, high = exponents[0]["lengths"]
    return (
        f"Exponent `b` of cost ~ length^b between prompts of {low} and {high} tokens: 0 is constant, 1 linear, 2 "
        "quadratic. Attention over the prompt alone makes the target's time to the first token rise more than "
        "linearly; beside it, nothing should."
    )


def _exponent_table(results: dict[str, Any]) -> str:
    methods = results["arguments"]["methods"]
    found = {(entry["method"], entry["quantity"]): entry["exponent"] for entry in results["exponents"]}
    quantities = [name for name in _QUANTITY_TITLES if any((method, name) in found for method in methods)]
    return table(
        ["cost", *(f"`{method}`" for method in methods)],
        [[_QUANTITY_TITLES[name], *(number(found.get((method, name))) for method in methods)] for name in quantities],
    )


def _window_table(rows: Sequence[dict[str, Any]]) -> str:
    return table(
        [
            "window",
            "tokens/s",
            "speedup",
            "tau",
            "draft, ms",
            "verify, ms",
            "own work, ms",
            "peak, MiB",
            "caches, MiB",
        ],
        [
            [
                f"`{row['method']}`",
                number(row["tokens_per_second"], 1),
                times(row["speedup"]),
                number(row["acceptance_length"]),
                *(
                    _milliseconds(row["cycle"][phase], 2) if row["cycle"] else NOTHING
                    for phase in ("draft", "verify", "other")
                ),
                _mebibytes(row["peak_bytes"]),
                f"{_mebibytes(row['cache_bytes'], 2)} + {_mebibytes(row['state_bytes'], 2)}",
            ]
            for row in rows
        ],
    )


def _speed(row: dict[str, Any], ratio: str) -> str:
    speed = number(row["tokens_per_second"], 1)
    return speed if row["method"] == PLAIN else f"{speed} ({times(row[ratio])})"


def _milliseconds(seconds: float | None, digits: int = 0) -> str:
    return number(None if seconds is None else 1000 * seconds, digits)


def _mebibytes(value: int | None, digits: int = 0) -> str:
    return number(None if value is None else value / MIB, digits)


# ---- pictures ------------------------------------------------------------------------------------------------------


def _length_figure(results: dict[str, Any]) -> Figure:
    """Speed, time to the first token, memory, and the parts of a cycle, each against the prompt's length."""
    rows = _rows(results, "length")
    methods = results["arguments"]["methods"]
    colors = {PLAIN: INK, "stored": GREEN, **_method_colors([m for m in methods if m not in (PLAIN, "stored")])}
    figure = Figure(figsize=(12.5, 8.6), layout="constrained")
    (speed, first), (memory, cycle) = figure.subplots(2, 2)
    panels: list[tuple[Any, str, Callable[[dict[str, Any]], float | None]]] = [
        (speed, "tokens per second, behind the first token", lambda row: row["tokens_per_second"]),
        (first, "time to the first token, seconds", lambda row: row["first_seconds"]),
        (memory, "peak memory above the models, MiB", lambda row: _scaled(row["peak_bytes"])),
    ]
    for axes, title, value in panels:
        for method in methods:
            line = [(row["length"], value(row)) for row in rows if row["method"] == method]
            line = [point for point in line if point[1] is not None]
            if line:
                axes.plot(*zip(*line, strict=True), marker="o", markersize=4, color=colors[method], label=method)
        _length_axes(axes, results, title)
    speed.set_ylim(bottom=0)
    ours = next((m for m in ("stored", "mixed", "cost_aware", *methods) if any(_cycles(rows, m))), None)
    for phase, color in _PHASE_COLORS.items():
        line = [(row["length"], 1000 * row["cycle"][phase]) for row in _cycles(rows, ours)]
        if line:
            cycle.plot(*zip(*line, strict=True), marker="o", markersize=4, color=color, label=phase)
    _length_axes(cycle, results, f"milliseconds per cycle{f', {ours}' if ours else ''}")
    cycle.set_ylim(bottom=0)
    if ours:
        cycle.legend(frameon=False, fontsize=9.5)
    handles, labels = speed.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8), frameon=False)
    figure.suptitle(_title(results), x=0.01, ha="left", fontsize=12, color=INK)
    return figure


def _window_figure(results: dict[str, Any]) -> Figure:
    """Speed, and the parts of a cycle, against the window's size."""
    rows = _rows(results, "window")
    plain = next(row for row in rows if row["method"] == PLAIN)
    fixed = [row for row in rows if row["method"] != PLAIN]
    sizes = [int(row["method"].partition(":")[2]) for row in fixed]
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    speed, cycle = figure.subplots(1, 2)
    speed.plot(sizes, [row["tokens_per_second"] for row in fixed], marker="o", color=BLUE, label="fixed window")
    speed.axhline(plain["tokens_per_second"], color=INK, linestyle=(0, (4, 3)), label="plain generate")
    speed.set_ylim(bottom=0)
    for phase, color in _PHASE_COLORS.items():
        line = [(size, 1000 * row["cycle"][phase]) for size, row in zip(sizes, fixed, strict=True) if row["cycle"]]
        if line:
            cycle.plot(*zip(*line, strict=True), marker="o", markersize=4, color=color, label=phase)
    cycle.set_ylim(bottom=0)
    for axes, title in ((speed, "tokens per second, behind the first token"), (cycle, "milliseconds per cycle")):
        _style(axes)
        axes.set_title(title, loc="left", fontsize=10.5, color=INK)
        axes.set_xlabel("draft tokens per window")
        axes.set_xticks(sizes)
        axes.legend(frameon=False, fontsize=9.5)
    title = f"{_title(results)}, prompts of {results['arguments']['window_length']} tokens"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    return figure


def _title(results: dict[str, Any]) -> str:
    arguments = results["arguments"]
    return f"{arguments['target']}, {arguments['dtype']}, greedy, {arguments['new_tokens']} new tokens"


def _cycles(rows: Sequence[dict[str, Any]], method: str | None) -> list[dict[str, Any]]:
    return [row for row in rows if row["method"] == method and row["cycle"]]


def _scaled(value: int | None) -> float | None:
    return None if value is None else value / MIB


def _length_axes(axes: Any, results: dict[str, Any], title: str) -> None:
    lengths = results["arguments"]["lengths"]
    _style(axes)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("prompt tokens")
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
