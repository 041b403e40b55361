# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`report.md`: the content of `results.json` in plain words and tables. Every number comes from there."""

import os
from collections.abc import Sequence
from typing import Any

from ..whole_files import write_text_whole
from .aggregate import measured_so_far
from .markdown import NOTHING, environment_list, interval, number, percent, table, times
from .methods import PLAIN


def write_report(results: dict[str, Any], path: str | os.PathLike, images: dict[str, str] | None = None) -> None:
    """
    Write the report.

    Args:
        results (`dict`): Content of `results.json`.
        path (`str` or `os.PathLike`): Where to write it.
        images (`dict[str, str]`, *optional*): File names of the pictures, by `"speedup"` and `"window"`.
    """
    write_text_whole(path, render_report(results, images))


def render_report(results: dict[str, Any], images: dict[str, str] | None = None) -> str:
    """The report as Markdown text; arguments as in [`write_report`]."""
    images = images or {}
    arguments = results["arguments"]
    parts = [
        f"# Benchmark: {arguments['target']}",
        _introduction(results),
        "## Protocol",
        _protocol(results),
    ]
    if "speedup" in images:
        parts.append(f"![Speedup per method and suite]({images['speedup']})")
    for temperature in arguments["temperatures"]:
        title = "greedy decoding" if temperature == 0 else f"sampling at temperature {temperature:g}"
        parts.append(f"## Results, {title}")
        if len(arguments["suites"]) > 1:
            parts += ["### Mean over suites", _summary_table(results, temperature)]
        for suite in arguments["suites"]:
            rows = [r for r in results["results"] if (r["temperature"], r["suite"]) == (temperature, suite)]
            parts += [f"### {suite}", _suite_caption(rows), _suite_table(rows)]
        comparison = [row for row in results["comparison"] if row["temperature"] == temperature]
        if comparison:
            parts += ["### Against the best fixed window", _comparison_text(comparison), _comparison_table(comparison)]
        if temperature == 0 and results.get("oracle"):
            parts += [
                "### Against the oracle window",
                _oracle_text(results["oracle"]),
                _oracle_table(results["oracle"]),
            ]
        parts += ["### Where the time goes", _time_text(results), _time_table(results, temperature)]
    if results["calibration"]:
        parts += ["## Calibration of the acceptance estimate", *_calibration(results)]
    if results.get("trace") and "window" in images:
        parts += ["## One generation", _trace_text(results["trace"]), f"![Window and divergence]({images['window']})"]
    parts.append("## Environment")
    sittings = _sittings(results)
    if len(sittings) > 1:
        parts.append(
            f"Measured in {len(sittings)} sittings. Every speedup compares two runs on one prompt in one sitting; "
            "tokens per second mix the machines. Predictions take every prompt with the costs of its own sitting."
        )
    for sitting in sittings:
        if len(sittings) > 1:
            parts.append(f"{sitting['num_prompts']} prompts:")
        parts.append(environment_list(sitting["environment"]))
    return "\n\n".join(parts) + "\n"


def _sittings(results: dict[str, Any]) -> list[dict[str, Any]]:
    return results.get("sittings") or [{"environment": results["environment"], "cost_model": results["cost_model"]}]


def _introduction(results: dict[str, Any]) -> str:
    arguments = results["arguments"]
    text = f"Target **{arguments['target']}**"
    if arguments["drafter"]:
        text += f", drafter **{arguments['drafter']}**"
    if others := arguments.get("other_drafters"):
        named = ", ".join(f"**{model}** as `@{name}`" for name, model in others.items())
        text += f", beside it {named}"
    if arguments["assistant"]:
        text += f", assistant of the hf_ methods **{arguments['assistant']}**"
    devices = dict.fromkeys(fact["environment"]["device_name"] for fact in _sittings(results))
    prepacked = ", prepacked" if arguments.get("prepack") else ""
    text += f", {arguments['dtype']}{prepacked} on {' and '.join(devices)}."
    lines = [text]
    for entry in results["summary"]:
        if entry["method"] == "cost_aware":
            mode = "greedy" if entry["temperature"] == 0 else f"temperature {entry['temperature']:g}"
            lines.append(
                f"`cost_aware` ({mode}): {times(entry['speedup'])} the speed of plain `generate` on the mean over "
                f"{entry['suites']} suite(s) and {entry['num_prompts']} prompts, acceptance length "
                f"{number(entry['acceptance_length'])}."
            )
    return "\n\n".join(lines)


def _protocol(results: dict[str, Any]) -> str:
    arguments = results["arguments"]
    template = (
        "Prompts go through the tokenizer's chat template."
        if arguments["chat_template"]
        else "The tokenizer has no chat template: prompts are given as plain text."
    )
    limit = "all prompts" if arguments["limit"] is None else f"at most {arguments['limit']} prompts per suite"
    if (measured := measured_so_far(results)) is not None:
        limit += f", {measured} measured so far"
    checked = arguments["check_float32"]
    if arguments["dtype"] == "float32":
        float32 = "The benchmark itself ran in float32, where the share must be all."
    elif checked == 0:
        float32 = "No float32 check was asked for; rounding in a narrower dtype can flip near-ties between tokens."
    else:
        count = "all prompts" if checked == "all" else f"{checked} prompt(s) per suite"
        float32 = (
            f"It is also checked in float32 ({count}), where it must be all: there rounding cannot flip near-ties."
        )
    disturbed = []
    if (timings := results.get("disturbed")) and timings["of"]:
        disturbed.append(
            f"- Of {timings['of']} timings {timings['runs']} were disturbed: other processes took more than a "
            "twentieth of the processors' time, and when it was measured again, too."
        )
    level = f"{100 * results['bootstrap']['level']:g}%"
    return "\n".join(
        [
            f"- One prompt at a time (no batching), {limit}, at most {arguments['max_new_tokens']} new tokens per "
            f"turn. {template}",
            "- All methods run interleaved, prompt by prompt, in one process after a warm-up; their order rotates "
            "from prompt to prompt. In a conversation of several turns every method sees plain `generate`'s earlier "
            "answers.",
            "- Speedup: mean over prompts of the method's tokens per second over those of plain `generate` on the "
            "same prompt. Time is that of the whole `generate` call, prompt processing included.",
            *disturbed,
            "- Acceptance length (tau): tokens committed per verification by the target, its own bonus token "
            "included. Window: draft tokens per verification. Acceptance rate: share of draft tokens accepted.",
            "- Identical text: share of prompts whose greedy tokens all equal plain `generate`'s. " + float32,
            f"- Brackets hold {level} intervals (bootstrap over prompts, {results['bootstrap']['samples']} samples). "
            "Predicted: the speedup that the measured cost model expects from tau and window, prompt processing left "
            f"out. Seed {arguments['seed']}. {NOTHING} stands for a figure without meaning there.",
        ]
    )


def _suite_caption(rows: Sequence[dict[str, Any]]) -> str:
    plain = next(row for row in rows if row["method"] == PLAIN)
    return (
        f"{plain['num_prompts']} prompts; plain `generate`: {number(plain['tokens_per_second'], 1)} tokens/s over "
        f"{plain['new_tokens']} new tokens."
    )


def _suite_table(rows: Sequence[dict[str, Any]]) -> str:
    dtype = rows[0]["dtype"]
    header = ["method", "tokens/s", "speedup", "predicted", "tau", "window", "acceptance rate"]
    show_lossless = any(row["lossless"] is not None for row in rows)  # not when sampling
    show_float32 = dtype != "float32" and any(row["lossless_float32"] is not None for row in rows)
    if show_lossless:
        header.append(f"identical, {dtype}")
    if show_float32:
        header.append("identical, float32")
    lines = []
    for row in rows:
        line = [
            f"`{row['method']}`",
            number(row["tokens_per_second"], 1),
            times(row["speedup"]) + interval(row["speedup_interval"]),
            times(row["predicted_speedup"]),
            number(row["acceptance_length"]) + interval(row["acceptance_length_interval"]),
            number(row["mean_window"]),
            number(row["acceptance_rate"]),
        ]
        if show_lossless:
            line.append(percent(row["lossless"]))
        if show_float32:
            line.append(percent(row["lossless_float32"]))
        lines.append(line)
    return table(header, lines)


def _summary_table(results: dict[str, Any], temperature: float) -> str:
    entries = [entry for entry in results["summary"] if entry["temperature"] == temperature]
    header = ["method", "speedup", "predicted", "tau", "window", "acceptance rate"]
    shares = {"lossless": f"identical, {results['arguments']['dtype']}", "lossless_float32": "identical, float32"}
    if results["arguments"]["dtype"] == "float32":
        del shares["lossless_float32"]
    shares = {name: title for name, title in shares.items() if any(entry[name] is not None for entry in entries)}
    return table(
        [*header, *shares.values()],
        [
            [
                f"`{entry['method']}`",
                times(entry["speedup"]),
                times(entry["predicted_speedup"]),
                number(entry["acceptance_length"]),
                number(entry["mean_window"]),
                number(entry["acceptance_rate"]),
                *(percent(entry[name]) for name in shares),
            ]
            for entry in entries
        ],
    )


def _comparison_text(comparison: Sequence[dict[str, Any]]) -> str:
    return (
        f"Speedup of `{comparison[0]['method']}` over that of the best fixed window. The best one is picked "
        "afterwards, for every line anew, which favours the fixed windows."
    )


def _comparison_table(comparison: Sequence[dict[str, Any]]) -> str:
    return table(
        ["suite", comparison[0]["method"], "best fixed", "its speedup", "ratio"],
        [
            [
                row["suite"] or "mean over suites",
                times(row["speedup"]),
                f"`{row['best_fixed']}`",
                times(row["best_fixed_speedup"]),
                number(row["ratio"], 3),
            ]
            for row in comparison
        ],
    )


def _oracle_text(oracle: dict[str, Any]) -> str:
    text = (
        "The oracle knows before every cycle how many draft tokens will be accepted and drafts exactly these (at most "
        f"{oracle['max_size']}), so that nothing is drafted in vain: the gap to it is what a better policy could gain "
        "with this drafter. `cheapest` also knows where stopping earlier pays: no sequence of windows is faster. "
        "All speedups but the measured ones are modelled on the same texts, cycle by cycle and with the same measured "
        "costs, the prompt left out; one column adds the time that plain `generate` spends on it to both sides, as "
        "the measured figures have it. Lookup and trees are not bound by this oracle, which drafts chains."
    )
    same = oracle["same_texts"]
    if same is not None and same["same"] < same["prompts"]:
        text += f" The texts are the benchmark's on {same['same']} of {same['prompts']} prompts."
    return text


def _oracle_table(oracle: dict[str, Any]) -> str:
    lines = []
    for suite in dict.fromkeys(row["suite"] for row in oracle["rows"]):
        rows = [row for row in oracle["rows"] if row["suite"] == suite]
        fixed = [row for row in rows if row["policy"].startswith("fixed:")]
        best = max(fixed, key=lambda row: row["speedup"])
        for row in rows:
            if row in fixed and row is not best:
                continue
            name = f"`{row['policy']}`"
            lines.append(
                [
                    suite or "mean over suites",
                    f"{name} (best fixed)" if row is best else name,
                    times(row["speedup"]) + interval(row["speedup_interval"]),
                    number(row["share_of_oracle"], 3),
                    number(row["acceptance_length"]),
                    number(row["mean_window"]),
                    times(row["speedup_with_prompt"]),
                    times(row["measured"]),
                ]
            )
    header = ["suite", "windows", "speedup", "of the oracle's", "tau", "window", "with the prompt", "measured"]
    return table(header, lines)


def _time_text(results: dict[str, Any]) -> str:
    text = (
        "Seconds over all prompts of a suite. For plain `generate` and `prompt_lookup`, drafting is part of other; "
        "the verify column of plain `generate` holds its single-token steps. Other also holds what `generate` does "
        "before and after the cycles; own work is the share of the cycles themselves that is neither drafting nor "
        "verification."
    )
    sittings = _sittings(results)
    for sitting in sittings:
        cost = sitting["cost_model"]
        if cost is None:
            continue
        where = f" ({sitting['environment']['device_name']})" if len(sittings) > 1 else ""
        text += f" Measured cost of one draft step{where}: {number(cost['gamma'], 3)} of a plain target step"
        curve = cost["verify_curve"]
        if len(curve) > 1:
            text += f"; of verifying {len(curve) - 1} draft tokens: {number(curve[-1])}"
        text += "."
    return text


def _time_table(results: dict[str, Any], temperature: float) -> str:
    return table(
        ["suite", "method", "prefill", "draft", "verify", "other", "own work"],
        [
            [
                row["suite"],
                f"`{row['method']}`",
                *(number(row["seconds"][phase], 2) for phase in ("prefill", "draft", "verify", "other")),
                percent(row["cycle_overhead_share"], 1),
            ]
            for row in results["results"]
            if row["temperature"] == temperature
        ],
    )


def _calibration(results: dict[str, Any]) -> list[str]:
    rows = results["calibration"]
    parts = [
        "For every draft token that verification reached: the acceptance estimate behind the windows, and the "
        "drafter's raw probability of its favourite token, against what happened. The Brier score is the mean "
        "squared error (lower is better), the calibration error the mean distance between prediction and outcome "
        "over the bins.",
        table(
            [
                "method",
                "temperature",
                "draft tokens",
                "accepted",
                "Brier, estimate",
                "Brier, confidence",
                "calibration error, estimate",
                "calibration error, confidence",
            ],
            [
                [
                    f"`{row['method']}`",
                    f"{row['temperature']:g}",
                    str(row["draft_tokens"]),
                    number(row["accepted"]),
                    *(
                        number(row[name][figure] if row[name] else None, 4)
                        for figure in ("brier", "calibration_error")
                        for name in ("estimate", "confidence")
                    ),
                ]
                for row in rows
            ],
        ),
    ]
    chosen = next((row for row in rows if row["method"] == "cost_aware"), rows[-1])
    parts.append(f"Reliability table of `{chosen['method']}` at temperature {chosen['temperature']:g}:")
    header = ["bin"]
    columns = [name for name in ("estimate", "confidence") if chosen[name]]
    for name in columns:
        header += [f"{name}: tokens", f"{name}: predicted", f"{name}: accepted"]
    lines = []
    for index in range(len(chosen[columns[0]]["bins"])):
        bins = [chosen[name]["bins"][index] for name in columns]
        line = [f"{bins[0]['low']:g} to {bins[0]['high']:g}"]
        for entry in bins:
            line += [str(entry["count"]), number(entry["predicted"]), number(entry["accepted"])]
        lines.append(line)
    parts.append(table(header, lines))
    return parts


def _trace_text(trace: dict[str, Any]) -> str:
    return (
        f"Prompt `{trace['id']}` of {trace['suite']}: windows of `{trace['adaptive']['method']}`, the running "
        f"divergence between drafter and target, and the windows of `{trace['fixed']['method']}` on the same prompt. "
        "A cell is a token: accepted, the target's own bonus token, or drafted in vain."
    )
