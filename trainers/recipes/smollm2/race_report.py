# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""From the records of a race to its results, report and picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ppow_hf.evaluation.aggregate import BOOTSTRAP, bootstrap_interval, result_row, summarize
from ppow_hf.evaluation.contention import disturbed_runs
from ppow_hf.evaluation.markdown import interval, table
from ppow_hf.evaluation.methods import PLAIN
from ppow_hf.evaluation.plots import save_figure
from ppow_hf.evaluation.report import render_report

PEER_PREFIX = "economize/"
OURS, THEIRS, OTHERS = "#7A1F00", "#56B4E9", "#8C8C8C"


def results_of(
    arguments: Mapping[str, Any],
    environment: Mapping[str, Any],
    prompts: Sequence[Mapping[str, Any]],
    float32_records: Sequence[Mapping[str, Any]],
    champion: str,
    training: Mapping[str, Any],
) -> dict[str, Any]:
    """
    The content of `results.json`: that of a benchmark, with the race in `race` and `training`.

    Args:
        arguments (`dict`): Arguments of the run, with `methods`, `suites`, `seed` and `dtype`.
        environment (`dict`): See [`~ppow_hf.evaluation.environment.describe_environment`].
        prompts (`Sequence[dict]`): One record per prompt.
        float32_records (`Sequence[dict]`): One record per prompt of the float32 check.
        champion (`str`): Our method that economize's are compared with.
        training (`dict`): What is known of every drafter's training.
    """
    rows = []
    for suite in arguments["suites"]:
        records = [record for record in prompts if record["suite"] == suite]
        checked = [record for record in float32_records if record["suite"] == suite]
        for method in arguments["methods"]:
            rows.append(result_row(suite, method, 0.0, arguments["dtype"], records, checked, arguments["seed"]))
    return {
        "environment": dict(environment),
        "arguments": dict(arguments),
        "training": dict(training),
        "results": rows,
        "summary": summarize(rows),
        "race": head_to_head(prompts, arguments["suites"], arguments["methods"], champion, arguments["seed"]),
        "comparison": [],
        "calibration": [],
        "bootstrap": BOOTSTRAP,
        "disturbed": disturbed_runs(prompts),
        "cost_model": None,
        "trace": None,
    }


def head_to_head(
    prompts: Sequence[Mapping[str, Any]], suites: Sequence[str], methods: Sequence[str], champion: str, seed: int = 0
) -> list[dict[str, Any]]:
    """
    The champion of each of our drafters against the best method of economize, per suite and (suite None) on the mean
    over suites. economize's best is picked afterwards and for every line anew, which favours economize; ours is one
    method, chosen before.

    Args:
        prompts (`Sequence[dict]`): One record per prompt, `{"suite", "methods": {name: {"tokens", "seconds"}}}`.
        champion (`str`): For example `"mixed"`.

    Returns:
        `list[dict]`: per line `ours`, `theirs` (names), `speedup`, `peer_speedup` (over plain `generate`, mean over
        prompts), `ratio` of the two and `ratio_interval` (bootstrap over prompts, which both decoded).
    """
    peers = [name for name in methods if name.startswith(PEER_PREFIX)]
    own = [name for name in methods if name.endswith(f"/{champion}") and name not in peers]
    lines = []
    for suite in [*suites, None] if len(suites) > 1 else list(suites):
        chosen = [record for record in prompts if suite in (None, record["suite"])]
        # Every suite weighs the same in the mean over suites, whatever its number of prompts.
        sizes = {name: sum(record["suite"] == name for record in chosen) for name in suites}
        shares = [1 / sizes[record["suite"]] / (len(suites) if suite is None else 1) for record in chosen]
        weighted = {
            name: [share * _speedup(record, name) for share, record in zip(shares, chosen, strict=True)]
            for name in [*own, *peers]
        }
        if not peers:
            continue
        best = max(peers, key=lambda name: sum(weighted[name]))
        for name in own:
            lines.append(
                {
                    "suite": suite,
                    "ours": name,
                    "theirs": best,
                    "num_prompts": len(chosen),
                    "speedup": sum(weighted[name]),
                    "peer_speedup": sum(weighted[best]),
                    "ratio": sum(weighted[name]) / sum(weighted[best]),
                    "ratio_interval": bootstrap_interval(weighted[name], weighted[best], seed),
                }
            )
    return lines


def _speedup(record: Mapping[str, Any], name: str) -> float:
    run, plain = record["methods"][name], record["methods"][PLAIN]
    return (run["tokens"] / run["seconds"]) / (plain["tokens"] / plain["seconds"])


def render_race(results: Mapping[str, Any], image: str | None = None) -> str:
    """The report as Markdown text: the race in front, the benchmark's own tables behind it."""
    training = results["training"]
    version = next((facts["version"] for facts in training.values() if facts.get("version")), "")
    benchmark = render_report(dict(results)).partition("\n\n")[2]
    parts = [
        f"# Race against economize {version}".rstrip(),
        "`economize` (Apache-2.0, on PyPI) drafts for Hugging Face models too. It decodes here in the same process, "
        "on the same prompts, over the same weights of the target; its drafters were trained by its own objectives "
        "and loop on the same responses.",
        "## Training",
        table(
            ["drafter", "of", "training seconds", "steps", "response tokens seen", "learning rate"],
            [[f"`{name}`", *_training_cells(facts)] for name, facts in training.items()],
        ),
        "`X:N@C`: at most N tokens a cycle, the target's own included, drafting stops below confidence C; `+lookup` "
        "is economize's hybrid. `plain` is economize's own loop without drafts.",
    ]
    if results["race"]:
        parts[-1:-1] = _head_to_head_part(results)
    if image:
        parts.append(f"![Speedup of every method]({image})")
    return "\n\n".join([*parts, benchmark])


def _head_to_head_part(results: Mapping[str, Any]) -> list[str]:
    return [
        "## Head to head",
        "Speedup over plain `generate`. Ours is one method, chosen before; economize's is the best of all its "
        "methods, picked afterwards for every line. Brackets: "
        f"{100 * results['bootstrap']['level']:g}% interval of the ratio, bootstrap over prompts.",
        table(
            ["suite", "ours", "speedup", "economize's best", "speedup", "ratio"],
            [
                [
                    line["suite"] or "**mean over suites**",
                    f"`{line['ours']}`",
                    f"{line['speedup']:.2f}x",
                    f"`{line['theirs'].removeprefix(PEER_PREFIX)}`",
                    f"{line['peer_speedup']:.2f}x",
                    f"{line['ratio']:.2f}{interval(line['ratio_interval'])}",
                ]
                for line in results["race"]
            ],
        ),
    ]


def _training_cells(facts: Mapping[str, Any]) -> list[str]:
    def cell(name: str, digits: int = 0) -> str:
        value = facts.get(name)
        return "-" if value is None else f"{value:,.{digits}f}"

    rate = facts.get("learning_rate")
    return [facts["of"], cell("seconds"), cell("steps"), cell("response_tokens"), "-" if rate is None else f"{rate:g}"]


def draw_race(results: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Horizontal bars with intervals: a panel per suite and one for their mean, fastest on the mean on top."""
    arguments = results["arguments"]
    suites = [*arguments["suites"], None] if len(arguments["suites"]) > 1 else list(arguments["suites"])
    rows = {(row["suite"], row["method"]): row for row in results["results"]}
    rows |= {(None, row["method"]): row for row in results["summary"]}
    methods = [name for name in arguments["methods"] if name != PLAIN]
    methods.sort(key=lambda name: rows[suites[-1], name]["speedup"])
    figure = Figure(figsize=(3.2 + 2.9 * len(suites), 1.6 + 0.27 * len(methods)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(suites), sharey=True, sharex=True))
    colors = [THEIRS if name.startswith(PEER_PREFIX) else OURS if "/" in name else OTHERS for name in methods]
    for axes, suite in zip(panels, suites, strict=True):
        speedups = [rows[suite, name]["speedup"] for name in methods]
        axes.barh(range(len(methods)), speedups, color=colors, height=0.78)
        for place, name in enumerate(methods):
            interval = rows[suite, name].get("speedup_interval")
            high = speedups[place]
            if interval:
                axes.plot(interval, [place, place], color="#222222", linewidth=1, alpha=0.7)
                high = max(high, interval[1])
            axes.annotate(
                f"{speedups[place]:.2f}",
                (high, place),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.axvline(1, color="#222222", linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_title("mean over suites" if suite is None else suite, loc="left", fontsize=10.5)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_yticks(range(len(methods)), methods, fontsize=9)
    panels[0].set_xlim(0, 1.12 * max(_reach(row) for (_, name), row in rows.items() if name != PLAIN))
    figure.supxlabel(
        f"speedup over plain generate ({arguments['dtype']}, greedy, {arguments['max_new_tokens']} new tokens)",
        fontsize=10,
    )
    legend = [(OURS, "ppow-hf"), (THEIRS, "economize"), (OTHERS, "transformers")]
    figure.legend(
        handles=[Patch(color=color, label=label) for color, label in legend],
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=9.5,
    )
    save_figure(figure, Path(path))


def _reach(row: Mapping[str, Any]) -> float:
    return max([row["speedup"], *(row.get("speedup_interval") or [])])
