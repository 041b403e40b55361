# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Report of a comparison of trainings: a table of acceptance lengths with intervals, and two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppow_hf.whole_files import write_text_whole, written_whole

_CURVES = (
    ("accepted_length", "accepted draft tokens per rolled-out window"),
    ("kl", "KL(target || drafter) along the windows, nats"),
    ("simulated_acceptance_length", "simulated acceptance length (supervised)"),
)


def write_report(folder: Path, results: dict[str, Any]) -> None:
    """
    Writes `report.md`, `acceptance.png` and `training.png`.

    Args:
        folder (`Path`): Where to; must exist.
        results (`dict`): What `ppow_vs_cst.py` wrote to `results.json`.
    """
    baseline = _baseline(results["config"])
    with written_whole(folder / "acceptance.png") as path:
        _draw_differences(path, results["results"], baseline)
    with written_whole(folder / "training.png") as path:
        _draw_curves(path, results["training"])
    write_text_whole(folder / "report.md", report_text(results))


def report_text(results: dict[str, Any]) -> str:
    """The report as Markdown; every number comes from `results`."""
    config, entries = results["config"], results["results"]
    common = config["common"]
    # Equal time or equal steps, whichever the experiment was set up with.
    equal_time = "max_seconds" in common
    budget = f"{common['max_seconds']:g} seconds of training steps" if equal_time else f"{common['max_steps']} steps"
    begin = f"starts from `{config['init']}`" if config["init"] else "begins with a fresh drafter"
    data = "the same responses"
    own = {arm: options["responses"] for arm, options in config.get("arms", {}).items() if "responses" in options}
    if own:
        named = (f"`{arm}` on {_names(paths)}" for arm, paths in own.items())
        data = f"{_names(config['responses'])} ({', '.join(named)})"
    lines = [
        f"# {config.get('title', 'PPOW against continued supervised training')}",
        "",
        f"Every arm {begin} and trains for {budget} on {data}, {config.get('parallel', 1)} at a time with an equal "
        "share of the processor. Seconds are those spent in training steps; target tokens are those the target was "
        "asked about in them, of texts and of drafted windows. Acceptance length (tau, bonus token included) of "
        f"windows of a fixed size on the target's own {_texts(entries)} of at most "
        f"{config['max_new_tokens']} tokens; brackets are 95% bootstrap intervals over prompts, differences are "
        "paired by prompt.",
        "",
    ]
    for setting in dict.fromkeys(map(_setting, entries)):
        rows = [entry for entry in entries if _setting(entry) == setting]
        suites = list(dict.fromkeys(entry["suite"] for entry in rows))
        lines += [
            f"## {_named(*setting)}",
            "",
            _header(["drafter", "steps", "seconds", "target tokens", *suites, f"mean over {_baseline(config)}"]),
        ]
        for name in dict.fromkeys(entry["drafter"] for entry in rows):
            of_suite = {entry["suite"]: entry for entry in rows if entry["drafter"] == name}
            cells = [_tau(of_suite[suite]) for suite in suites]
            last = of_suite[suites[-1]]
            gain = "" if last["difference"] is None else _signed(last, "difference")
            lines.append("| " + " | ".join([name, *_cost(results["training"].get(name)), *cells, gain]) + " |")
        lines.append("")
    lines += [
        f"![Difference in mean acceptance length to {_baseline(config)}](acceptance.png)",
        "",
        "![Training](training.png)",
        "",
    ]
    environment = results["environment"]
    lines += ["Made on: " + ", ".join(f"{key} {value}" for key, value in sorted(environment.items()) if _flat(value))]
    return "\n".join(lines) + "\n"


def _setting(entry: dict[str, Any]) -> tuple[float, int]:
    # Experiments before temperatures other than 0 did not say.
    return entry.get("temperature", 0), entry["window"]


def _named(temperature: float, window: int) -> str:
    return f"Windows of {window}" + (f", sampled at temperature {temperature:g}" if temperature else "")


def _texts(entries: list[dict[str, Any]]) -> str:
    if any(_setting(entry)[0] for entry in entries):
        return "answers, greedy ones and sampled ones (there in expectation over what could be drafted),"
    return "greedy answers"


def _baseline(config: dict[str, Any]) -> str:
    name = config.get("baseline", "init")
    return "the initialisation" if name == "init" else f"`{name}`"


def _header(names: list[str]) -> str:
    return "| " + " | ".join(names) + " |\n|" + "---|" * len(names)


def _names(paths: str | list[str]) -> str:
    return ", ".join(f"`{path}`" for path in ([paths] if isinstance(paths, str) else paths))


def _cost(training: dict[str, Any] | None) -> list[str]:
    """Steps, seconds and target tokens of a run; a dash for what it has not recorded, nothing for what was no run."""
    if training is None:
        return ["", "", ""]
    cost = training.get("cost") or {}
    numbers = (training["steps"], cost.get("seconds"), cost.get("target_tokens"))
    return ["—" if number is None else f"{number:,.0f}" for number in numbers]


def _tau(entry: dict[str, Any]) -> str:
    return f"{entry['acceptance_length']:.3f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def _signed(entry: dict[str, Any], name: str) -> str:
    return f"{entry[name]:+.3f} [{entry[name + '_low']:+.3f}, {entry[name + '_high']:+.3f}]"


def _flat(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _draw_differences(path: Path, entries: list[dict[str, Any]], baseline: str) -> None:
    from matplotlib.figure import Figure

    setting = _setting(entries[0])
    rows = [e for e in entries if _setting(e) == setting and e["difference"] is not None]
    names = list(dict.fromkeys(e["drafter"] for e in rows))
    suites = list(dict.fromkeys(e["suite"] for e in rows))
    figure = Figure(figsize=(8, 1.2 + 0.55 * max(len(names), 1)), layout="constrained")
    axes = figure.add_subplot()
    for number, suite in enumerate(suites):
        chosen = {e["drafter"]: e for e in rows if e["suite"] == suite}
        places = [i + (number - (len(suites) - 1) / 2) * 0.18 for i in range(len(names))]
        middle = [chosen[name]["difference"] for name in names]
        below = [chosen[name]["difference"] - chosen[name]["difference_low"] for name in names]
        above = [chosen[name]["difference_high"] - chosen[name]["difference"] for name in names]
        strong = suite == suites[-1]
        axes.errorbar(
            middle, places, xerr=[below, above], fmt="o", markersize=6 if strong else 4, capsize=3, label=suite
        )
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"acceptance length minus that of {baseline} ({_named(*setting).lower()}, 95% interval)")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def _draw_curves(path: Path, training: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for number, (metric, title) in enumerate(_CURVES, start=1):
        axes = figure.add_subplot(1, len(_CURVES), number)
        for name, facts in training.items():
            points = [(e["step"], e[metric]) for e in facts["log"] if metric in e]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        if axes.lines:
            axes.legend(fontsize=6)
    figure.savefig(path, dpi=130)
