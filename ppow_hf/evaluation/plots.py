# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The two pictures of a benchmark, drawn from `results.json`."""

import math
import os
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ..whole_files import written_whole
from .methods import AT, PLAIN, parse_method

# Okabe and Ito's palette, told apart with any colour vision; families of methods share a hue and differ in lightness.
BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE, GREY, LIGHT_GREY = (
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
    "#8C8C8C",
    "#B4B4B4",
)
METHOD_COLORS = {
    "prompt_lookup": GREY,
    "hf_dynamic": "#B8860B",
    "hf_heuristic": ORANGE,
    "hf_constant": "#F5CE73",
    "heuristic": PURPLE,
    "confidence": "#8B4F74",
    "divergence": GREEN,
    "cost_aware": VERMILION,
    "lookup": "#5B5B5B",
    "mixed": "#7A1F00",
    "tree": "#1B7A3D",
    "mixed_tree": "#0F4A66",
}
FIXED_SHADES = ("#DCECF7", "#C6DFF0", "#9CCAE8", SKY, "#2E93CC", BLUE, "#005684", "#003A5A")
INK = "#222222"
ORACLE_LINE: dict[str, Any] = {"color": BLUE, "linewidth": 1.8, "linestyle": (0, (1, 1)), "zorder": 4}
MAX_CYCLES = 72


def write_plots(results: dict[str, Any], output_dir: str | os.PathLike) -> dict[str, str]:
    """
    Draw the pictures.

    Args:
        results (`dict`): Content of `results.json`.
        output_dir (`str` or `os.PathLike`): Folder to write them into.

    Returns:
        `dict[str, str]`: file names by `"speedup"` and, where an adaptive window was run, `"window"`.
    """
    output_dir = Path(output_dir)
    images = {"speedup": "speedup.png"}
    save_figure(_speedup_figure(results), output_dir / images["speedup"])
    if results.get("trace"):
        images["window"] = "window.png"
        save_figure(_window_figure(results["trace"]), output_dir / images["window"])
    return images


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a picture so that it is never there in part."""
    FigureCanvasAgg(figure)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", facecolor="white")


def _speedup_figure(results: dict[str, Any]) -> Figure:
    """Grouped bars: a group per suite (and their mean), a bar per method, a panel per temperature."""
    arguments = results["arguments"]
    methods = [name for name in arguments["methods"] if name != PLAIN]
    suites = arguments["suites"]
    groups = [*suites, None] if len(suites) > 1 else list(suites)
    temperatures = arguments["temperatures"]
    width = min(22.0, max(8.0, 2.0 + 0.34 * (len(methods) + 1.5) * len(groups)))
    figure = Figure(figsize=(width, 1.2 + 4.0 * len(temperatures)), layout="constrained")
    colors, hatches = _method_colors(methods), _drafter_hatches(methods)
    oracles = {
        row["suite"]: row["speedup_with_prompt"] or row["speedup"]
        for row in (results.get("oracle") or {"rows": []})["rows"]
        if row["policy"] == "oracle"
    }
    for index, temperature in enumerate(temperatures):
        axes = figure.add_subplot(len(temperatures), 1, index + 1)
        _style(axes)
        rows = {(r["suite"], r["method"]): r for r in results["results"] if r["temperature"] == temperature}
        rows |= {(None, s["method"]): s for s in results["summary"] if s["temperature"] == temperature}
        step = len(methods) + 1.5
        top = 1.0
        for group, suite in enumerate(groups):
            best = max((rows[suite, method]["speedup"] for method in methods), default=None)
            for place, method in enumerate(methods):
                row = rows[suite, method]
                x = group * step + place
                speedup = row["speedup"]
                axes.bar(x, speedup, width=0.9, color=colors[method], zorder=2, **hatches[method])
                interval = row.get("speedup_interval")
                high = speedup
                if interval:
                    high = max(interval[1], speedup)
                    axes.plot([x, x], interval, color=INK, linewidth=1, alpha=0.65, zorder=3)
                top = max(top, high)
                if method == "cost_aware" or speedup == best or len(methods) <= 6:
                    weight = "bold" if speedup == best else "normal"
                    axes.annotate(
                        f"{speedup:.2f}",
                        (x, high),
                        xytext=(0, 3),
                        textcoords="offset points",
                        ha="center",
                        fontsize=8.5,
                        fontweight=weight,
                        color=INK,
                        zorder=5,
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
                    )
            line = oracles.get(suite) if temperature == 0 else None
            if line is not None:
                ends = [group * step - 0.7, group * step + len(methods) - 0.3]
                axes.plot(ends, [line, line], **ORACLE_LINE)
                top = max(top, line)
        axes.axhline(1.0, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=4)
        axes.set_xticks([group * step + (len(methods) - 1) / 2 for group in range(len(groups))])
        axes.set_xticklabels(["mean over suites" if suite is None else suite for suite in groups], fontsize=11)
        axes.set_xlim(-1.2, len(groups) * step - 1.3)
        axes.set_ylim(0, top * 1.12)
        axes.set_ylabel("speedup over plain generate")
        mode = "greedy" if temperature == 0 else f"temperature {temperature:g}"
        axes.set_title(
            f"{arguments['target']}, {arguments['dtype']}, {mode}, up to {arguments['max_new_tokens']} new tokens "
            f"(bold: fastest; lines: {100 * results['bootstrap']['level']:g}% intervals over prompts)",
            loc="left",
            fontsize=11,
            color=INK,
        )
    handles = [Patch(facecolor=colors[method], label=method, **hatches[method]) for method in methods]
    handles.append(axes.plot([], [], color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="plain generate (1.0)")[0])
    if oracles and 0 in temperatures:
        handles.append(axes.plot([], [], **ORACLE_LINE, label="oracle window (modelled)")[0])
    lines = math.ceil(len(handles) / 8)
    columns = math.ceil(len(handles) / lines)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5)
    return figure


def _window_figure(trace: dict[str, Any]) -> Figure:
    """Cells per cycle of an adaptive window and of a fixed one, with the running divergence above them."""
    adaptive, fixed = trace["adaptive"], trace["fixed"]
    longest = min(MAX_CYCLES, max(len(adaptive["cycles"]), len(fixed["cycles"]), 1))
    height = max([cycle["drafted"] + 1 for part in (adaptive, fixed) for cycle in part["cycles"][:longest]], default=1)
    figure = Figure(figsize=(max(9.0, 1.6 + 0.17 * longest), 8.2), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[1.1, 2, 2])
    prompt = trace["id"] if trace["id"].startswith(trace["suite"]) else f"{trace['suite']} {trace['id']}"
    figure.suptitle(f"One generation, cycle by cycle: {prompt}", x=0.01, ha="left", fontsize=12.5, color=INK)

    _style(top)
    points = [
        (index + 1, cycle["divergence"])
        for index, cycle in enumerate(adaptive["cycles"][:longest])
        if cycle["divergence"] is not None
    ]
    if points:
        x, y = zip(*points, strict=True)
        top.plot(x, y, color=PURPLE, linewidth=2, marker="o", markersize=3.5)
        top.set_ylim(0, max(1.05 * max(y), 0.05))
    else:
        top.text(0.5, 0.5, "no divergence recorded", transform=top.transAxes, ha="center", va="center", color=GREY)
    top.set_ylabel("running\ndivergence")
    top.set_title(
        f"divergence between drafter and target ({adaptive['method']})", loc="left", fontsize=10.5, color=INK
    )

    for axes, part in ((middle, adaptive), (bottom, fixed)):
        _style(axes)
        cycles = part["cycles"][:longest]
        for index, cycle in enumerate(cycles):
            accepted, bonus = cycle["accepted"], cycle["committed"] - cycle["accepted"]
            wasted = cycle["drafted"] - accepted
            kinds = ["accepted"] * accepted + ["bonus"] * bonus + ["wasted"] * wasted
            for level, kind in enumerate(kinds):
                axes.add_patch(Rectangle((index + 0.56, level + 0.06), 0.88, 0.88, **_CELLS[kind]))
        drafted = sum(cycle["drafted"] for cycle in part["cycles"])
        wasted = drafted - sum(cycle["accepted"] for cycle in part["cycles"])
        tokens = sum(cycle["committed"] for cycle in part["cycles"])
        shown = "" if len(cycles) == len(part["cycles"]) else f" (first {len(cycles)} shown)"
        axes.set_title(
            f"{part['method']}: {tokens} tokens in {len(part['cycles'])} cycles{shown}, "
            f"{wasted} of {drafted} draft tokens wasted",
            loc="left",
            fontsize=10.5,
            color=INK,
        )
        axes.set_ylim(0, height + 0.2)
        axes.set_ylabel("tokens")
        axes.yaxis.get_major_locator().set_params(integer=True)
    bottom.set_xlim(0, longest + 1)
    bottom.set_xlabel("cycle (one verification by the target each)")
    labels = {"accepted": "accepted draft token", "bonus": "target's own (bonus) token", "wasted": "drafted in vain"}
    figure.legend(
        handles=[Patch(**_CELLS[kind], label=label) for kind, label in labels.items()],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=10,
    )
    return figure


# Wasted cells are empty and hatched, so that the three kinds also differ without colour.
_CELLS: dict[str, dict[str, Any]] = {
    "accepted": {"facecolor": BLUE, "edgecolor": BLUE, "linewidth": 0.4},
    "bonus": {"facecolor": ORANGE, "edgecolor": ORANGE, "linewidth": 0.4},
    "wasted": {"facecolor": "#F4F4F4", "edgecolor": "#9A9A9A", "linewidth": 0.7, "hatch": "////"},
}


_HATCHES = ("///", "...", "xxx", "\\\\\\", "ooo")


def _method_colors(methods: list[str]) -> dict[str, str]:
    colors = {}
    for method in methods:
        base = method.partition(AT)[0]
        if base.startswith("fixed:"):  # the longer the window, the darker
            size = int(base.removeprefix("fixed:"))
            colors[method] = FIXED_SHADES[min(size, len(FIXED_SHADES)) - 1]
        elif method.startswith("prompt_lookup:"):
            colors[method] = LIGHT_GREY
        else:
            colors[method] = METHOD_COLORS[base.partition(":")[0]]
    return colors


def _drafter_hatches(methods: list[str]) -> dict[str, dict[str, Any]]:
    """Bars of one window have one colour whoever drafts; those of the other drafters are hatched, each its own way."""
    drafters = dict.fromkeys(parse_method(method).drafter for method in methods)
    drafters.pop(None, None)
    patterns = {name: _HATCHES[index % len(_HATCHES)] for index, name in enumerate(drafters)}
    return {
        method: {} if AT not in method else {"hatch": patterns[method.partition(AT)[2]], "edgecolor": "white"}
        for method in methods
    }


def _style(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#777777")
    axes.grid(axis="y", color="#E3E3E3", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
