# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Window policies, and drafters, compared on the same texts by measured costs: nothing of it is timed.

    python -m ppow_hf.scripts.compare_windows --suite prompts.jsonl --temperature 1 --output runs/windows
    python -m ppow_hf.scripts.compare_windows --suite prompts.jsonl --drafter runs/ppow --drafter cst=runs/cst \
        --method fixed:5,cost_aware,fixed:5@cst,cost_aware@cst --baseline cost_aware --output runs/windows

At a temperature above 0 the texts are sampled, and windows are drawn by the law of what decoding would have drafted
there ([`~ppow_hf.evaluation.sampled_windows`]). Beside the policies stands one that knows in advance what will be
accepted. Writes `results.json`, `report.md`, `windows.png` and, prompt by prompt, `records.jsonl`, from which a killed
run goes on.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from tqdm.auto import tqdm
from transformers import set_seed

from ppow_hf.end_tokens import eos_token_ids_of
from ppow_hf.evaluation.compare import responses_of
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.markdown import interval, number, percent, table, times
from ppow_hf.evaluation.methods import AT, parse_method
from ppow_hf.evaluation.oracle import window_of
from ppow_hf.evaluation.plots import save_figure
from ppow_hf.evaluation.precision import dtype_name, fingerprint, public_name, settings_hash
from ppow_hf.evaluation.records import RecordLog
from ppow_hf.evaluation.runner import cost_fields
from ppow_hf.evaluation.simulation import Walk
from ppow_hf.evaluation.window_comparison import CHEAPEST, ORACLE, comparison_rows, walks_of_text
from ppow_hf.generation import CostModel, WindowConfig
from ppow_hf.scripts.command_line import load_drafter, load_models, run, split_drafters
from ppow_hf.scripts.compare_drafters import target_answers
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.whole_files import write_json_whole, write_text_whole

METHODS = "fixed:1,fixed:2,fixed:3,fixed:4,fixed:5,fixed:6,fixed:7,fixed:8,heuristic,confidence,divergence,cost_aware"
PICTURE = "windows.png"
FIRST = "first"  # of the drafters, in results


def windows_of(names: Sequence[str], drafters: Mapping[str | None, Any]) -> dict[str | None, dict[str, WindowConfig]]:
    """
    The windows of methods of `ppow bench`, by the name of their drafter (None for the first one).

    Raises:
        ValueError: If one is unknown, no chain of a drafter's own, or of a drafter that was not given.
    """
    found: dict[str | None, dict[str, WindowConfig]] = {}
    for name in names:
        method = parse_method(name)
        if not method.is_chain:
            raise ValueError(
                f"`--method {name}` cannot be replayed: give windows that the drafter drafts token by token "
                f"({METHODS})."
            )
        if method.drafter not in drafters:
            raise ValueError(f"`--method {name}`: no drafter is called {method.drafter!r}. Give it as NAME=PATH.")
        found.setdefault(method.drafter, {})[name] = window_of(name, drafters[method.drafter])
    return found


def compare_windows(
    target,
    tokenizer,
    drafter,
    suites: Sequence[str],
    output: Path,
    *,
    methods: Sequence[str] = tuple(METHODS.split(",")),
    temperature: float = 0.0,
    draws: int = 4,
    max_new_tokens: int = 128,
    baseline: str | None = None,
    others: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Measures, and writes `results.json`, `report.md` and `windows.png`.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        drafter ([`DrafterModel`]): The drafter that methods without a name are windows of.
        suites (`Sequence[str]`): Prompt files or datasets, as for `ppow data`.
        output (`Path`): Folder to write.
        methods (`Sequence[str]`, *optional*): Windows, as `ppow bench` names them.
        temperature (`float`, *optional*, defaults to 0.0): Of the texts and of drafting.
        draws (`int`, *optional*, defaults to 4): How often windows are drawn for each sampled text.
        max_new_tokens (`int`, *optional*, defaults to 128): Length of the answers.
        baseline (`str`, *optional*): The window others are compared with. Default: the fastest fixed one of the first
            drafter.
        others (`Mapping[str, DrafterModel]`, *optional*): Further drafters, of the methods `METHOD@NAME`.
        seed (`int`, *optional*, defaults to 0): Of texts, draws and bootstrap.
        progress (`bool`, *optional*, defaults to `True`): Show progress.

    Returns:
        `dict`: The contents of `results.json`.

    Raises:
        ValueError: If a window cannot be replayed, a number is out of range, or `output` holds another comparison.
    """
    if temperature < 0 or draws < 1 or max_new_tokens < 2:
        raise ValueError(
            "`temperature` must be at least 0, `draws` 1 and `max_new_tokens` 2, got "
            f"{temperature}, {draws} and {max_new_tokens}."
        )
    drafters = {None: drafter, **(others or {})}
    configs = windows_of(methods, drafters)
    if baseline is not None and baseline not in methods:
        raise ValueError(f"`baseline` is {baseline!r}, but the methods are {', '.join(methods)}.")
    costs = {}
    for name in configs:
        drafters[name].bind_target(target)
        costs[name] = CostModel.for_models(target, drafters[name])
    answers = target_answers(target, tokenizer, suites, output, max_new_tokens, temperature, seed)
    max_size = window_of("cost_aware", drafter).max_size
    arguments = {
        "target": public_name(target),
        "drafter": public_name(drafter),
        "suites": [Path(suite).stem for suite in suites],
        "methods": list(methods),
        "temperature": temperature,
        "draws": draws if temperature else 1,
        "max_new_tokens": max_new_tokens,
        "max_size": max_size,
        "dtype": dtype_name(target.dtype),
        "seed": seed,
    }
    identity = {
        **arguments,
        "answers": answers._fingerprint,
        "drafter_hashes": {name or FIRST: fingerprint(drafters[name]) for name in configs},
        "drafter_settings": {name or FIRST: settings_hash(drafters[name]) for name in configs},
        "configs": {name: config.to_dict() for own in configs.values() for name, config in own.items()},
        "cost_models": {name or FIRST: cost_fields(model) for name, model in costs.items()},
    }
    log = RecordLog(output / "records.jsonl", identity)
    eos = eos_token_ids_of(target.generation_config)
    for index in tqdm(range(len(log.records), len(answers)), unit="prompt", disable=not progress):
        row = answers[index]
        walks: dict[str, Walk] = {}
        for drafter_name, own in configs.items():
            at = f"{AT}{drafter_name}" if drafter_name else ""
            # Of the prompt, so that a run that goes on draws what it would have drawn.
            generator = torch.Generator(target.device).manual_seed(zlib.crc32(f"{seed} {index}{at}".encode()))
            for token_ids, prompt_length in responses_of(row):
                found = walks_of_text(
                    target,
                    drafters[drafter_name],
                    token_ids,
                    prompt_length,
                    own,
                    costs[drafter_name],
                    max_size=max_size,
                    budget=max_new_tokens,
                    temperature=temperature,
                    draws=draws,
                    generator=generator,
                    eos_token_ids=eos,
                )
                for name, walk in found.items():
                    name = name + at if name in (ORACLE, CHEAPEST) else name
                    walks[name] = walks.get(name, Walk()) + walk
        log.append({"suite": row["source"], "walks": {name: walk.totals() for name, walk in walks.items()}})
    results = {
        "environment": describe_environment(target.device),
        "arguments": arguments,
        "drafter_hashes": identity["drafter_hashes"],
        "cost_models": identity["cost_models"],
        "results": comparison_rows(log.records, baseline, seed),
    }
    write_json_whole(output / "results.json", results)
    save_figure(windows_figure(results), output / PICTURE)
    write_text_whole(output / "report.md", render_windows(results))
    return results


def render_windows(results: Mapping[str, Any]) -> str:
    """The report as Markdown text."""
    arguments, rows = results["arguments"], results["results"]
    temperature, first = arguments["temperature"], rows[0]
    texts = "greedy texts"
    if temperature:
        texts = (
            f"texts, sampled at temperature {temperature:g}, with {arguments['draws']} draws of the windows that "
            "could have been drafted in each"
        )
    parts = [
        f"# Window policies on the same texts: {arguments['target']}",
        f"Drafter **{arguments['drafter']}**{_others(results)}, {arguments['dtype']}, at most "
        f"{arguments['max_new_tokens']} new tokens, the same {texts}. Speedup over plain decoding by the "
        f"measured cost model, the prompt left out: a mean over "
        f"prompts, and in the mean over suites every suite counts alike. Brackets: 95% bootstrap intervals over "
        f"prompts; the ratio to `{first['baseline']}` draws them in pairs. `{ORACLE}` knows in advance what will be "
        f"accepted of the drafter's window, up to {arguments['max_size']} tokens; `{CHEAPEST}` also knows where to "
        "stop early.",
        f"![Speedup of every window]({PICTURE})",
    ]
    for suite in _suites(rows):
        chosen = [row for row in rows if row["suite"] == suite]
        title = "Mean over suites" if suite is None else suite
        parts += [
            f"## {title}",
            f"{chosen[0]['num_prompts']} prompts.",
            table(
                ["window", "speedup", f"over `{first['baseline']}`", "tau", "window", "of the oracle's speed"],
                [
                    [
                        f"`{row['policy']}`",
                        f"{times(row['speedup'])}{interval(row['interval'])}",
                        f"{number(row['over_baseline'], 3)} {_ratio(row['over_baseline_interval'])}".strip(),
                        number(row["acceptance_length"]),
                        number(row["mean_window"]),
                        percent(row["share_of_oracle"]),
                    ]
                    for row in chosen
                ],
            ),
        ]
    environment = results["environment"]
    parts.append(f"Costs of {environment['device_name']}, {environment['torch_threads']} threads.")
    return "\n\n".join(parts) + "\n"


def _suites(rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """The mean over suites, where there are several, and then each of them."""
    return sorted(dict.fromkeys(row["suite"] for row in rows), key=lambda suite: suite is not None)


def _others(results: Mapping[str, Any]) -> str:
    """The further drafters of a comparison, for its first line."""
    names = [name for name in results["drafter_hashes"] if name != FIRST]
    return f" (`{AT}` marks those of {', '.join(names)})" if names else ""


def _ratio(values: Sequence[float] | None) -> str:
    return "" if values is None else f"[{values[0]:.3f}, {values[1]:.3f}]"


def windows_figure(results: Mapping[str, Any]) -> Figure:
    """Speedup of every window with its interval, the mean over suites and each suite."""
    rows = results["results"]
    suites = _suites(rows)
    names = [row["policy"] for row in rows if row["suite"] == suites[0] and not row["policy"].startswith(CHEAPEST)]
    figure = Figure(figsize=(3.1 * len(suites) + 1.5, 0.32 * len(names) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(suites), sharey=True, squeeze=False)[0]
    for axes, suite in zip(panels, suites, strict=True):
        for place, name in enumerate(names):
            row = next(row for row in rows if row["suite"] == suite and row["policy"] == name)
            low, high = row["interval"]
            color = {ORACLE: "#222222", "cost_aware": "#7A1F00"}.get(name.partition(AT)[0], "#56B4E9")
            axes.plot([low, high], [place, place], color=color, linewidth=2)
            axes.plot([row["speedup"]], [place], marker="o", color=color)
        axes.set_title("mean over suites" if suite is None else suite, fontsize=10.5, loc="left")
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("speedup, by the cost model")
    panels[0].invert_yaxis()
    return figure


def main(
    suite: Annotated[list[str], typer.Option(help="Prompts, as for `ppow data`; several times.")],
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/windows"),
    target: Annotated[str, typer.Option(help="Target: a Hub id, a folder, or the embedded one.")] = DEFAULT_TARGET,
    drafter: Annotated[
        list[str] | None,
        typer.Option(help="Drafter. Default: the reference drafter. NAME=PATH adds another, for METHOD@NAME."),
    ] = None,
    method: Annotated[str, typer.Option(help="Comma-separated windows of `ppow bench`.")] = METHODS,
    temperature: Annotated[float, typer.Option(help="Of the texts and of drafting.", min=0)] = 0.0,
    draws: Annotated[int, typer.Option(help="Draws of windows for each sampled text.", min=1)] = 4,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the answers.", min=2)] = 128,
    baseline: Annotated[str | None, typer.Option(help="Compared with. Default: the fastest fixed window.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, ...")] = None,
    seed: Annotated[int, typer.Option(help="Of texts, draws and bootstrap.")] = 0,
) -> None:
    """Compare window policies on the same texts, by the measured cost model."""
    set_seed(seed)
    output.mkdir(parents=True, exist_ok=True)
    own, others = split_drafters(drafter or [])
    target_model, tokenizer, drafter_model = load_models(Console(), target, own, dtype, device)
    compare_windows(
        target_model,
        tokenizer,
        drafter_model,
        suite,
        output,
        methods=method.split(","),
        temperature=temperature,
        draws=draws,
        max_new_tokens=max_new_tokens,
        baseline=baseline,
        others={name: load_drafter(path, target_model) for name, path in others.items()},
        seed=seed,
    )
    print(f"Report: {output / 'report.md'}")


if __name__ == "__main__":
    run(main)
