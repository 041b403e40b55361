# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Could other settings of the cost-aware window do better? Each is tried on the same texts, by the cost model.

    python trainers/recipes/smollm2/policy_sweep.py --suite runs/held_out/gsm8k_train.jsonl \
        --suite runs/held_out/code.jsonl --suite runs/held_out/vicuna.jsonl \
        --output model_cards/experiments/policy-sweep

The drafter's windows are recorded once, at temperature 0 and 1, and every setting walks through them
(`ppow_hf.evaluation.simulation`). Prompts to choose by, not a benchmark's: `held_out.py`. Writes results.json and
report.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm.auto import tqdm

from ppow_hf import load_target
from ppow_hf.end_tokens import eos_token_ids_of
from ppow_hf.evaluation.compare import responses_of
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.markdown import number, percent, table
from ppow_hf.evaluation.oracle import window_of
from ppow_hf.evaluation.sampled_windows import record_sampled_windows
from ppow_hf.evaluation.simulation import RecordedWindows, oracle_walk, record_windows, simulate
from ppow_hf.generation import CostModel, WindowConfig
from ppow_hf.generation.acceptance import AcceptanceEstimator
from ppow_hf.scripts.command_line import SeedOption, load_drafter, run
from ppow_hf.scripts.compare_drafters import target_answers
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.whole_files import write_json_whole, write_text_whole

TEMPERATURES = (0.0, 1.0)
# Of the window, and of the acceptance estimate it reads.
WINDOW_SETTINGS = {
    "initial_rate": (1.0, 1.8, 2.2),
    "rate_memory": (10.0, 20.0, 80.0, 160.0),
    "min_size": (0, 2),
    "max_size": (8, 10),
    "online_calibration": (False,),
}
ESTIMATE_SETTINGS = {"prior_deviation": (0.05, 0.1, 0.25, 0.4), "drift": (0.0, 0.002, 0.02, 0.05)}
FIXED = tuple(f"fixed:{size}" for size in range(1, 9))

Recorded = Sequence[tuple[str, int, RecordedWindows]]  # suite, prompt, windows of one of its responses


def record(target, drafter, answers, temperature: float, width: int, seed: int) -> Recorded:
    """Of all responses; windows of sampled ones are drawn twice."""
    found = []
    generator = torch.Generator(target.device).manual_seed(seed)
    for index, row in enumerate(tqdm(answers, unit="prompt", desc=f"temperature {temperature:g}")):
        for token_ids, prompt_length in responses_of(row):
            if len(token_ids) <= prompt_length + 1:
                continue
            text, first = torch.tensor([token_ids], device=target.device), prompt_length + 1
            for _ in range(2 if temperature else 1):
                if temperature:
                    windows = record_sampled_windows(target, drafter, text, first, width, temperature, generator)
                else:
                    windows = record_windows(target, drafter, text, first, width)
                found.append((row["source"], index, windows))
    return found


def speedup(recorded: Recorded, walk_through) -> float:
    """Mean over suites of the mean over prompts of committed tokens over cost."""
    totals: dict[tuple[str, int], list[float]] = {}
    for suite, prompt, windows in recorded:
        walk = walk_through(windows)
        total = totals.setdefault((suite, prompt), [0.0, 0.0])
        total[0] += walk.committed
        total[1] += walk.cost
    by_suite: dict[str, list[float]] = {}
    for (suite, _), (committed, cost) in totals.items():
        by_suite.setdefault(suite, []).append(committed / cost)
    return sum(sum(speeds) / len(speeds) for speeds in by_suite.values()) / len(by_suite)


def variants(base: WindowConfig) -> list[tuple[str, WindowConfig, dict[str, Any]]]:
    """Name, window and settings of the estimate; the first is the window as it is."""
    found: list[tuple[str, WindowConfig, dict[str, Any]]] = [("as it is", base, {})]
    for name, values in WINDOW_SETTINGS.items():
        found += [(f"{name}={value}", replace(base, **{name: value}), {}) for value in values]
    for name, values in ESTIMATE_SETTINGS.items():
        found += [(f"{name}={value}", base, {name: value}) for value in values]
    return found


def sweep(
    recorded: Recorded,
    base: WindowConfig,
    windows: Mapping[str, WindowConfig],
    costs: CostModel,
    budget: int,
    sampling: bool = False,
    eos_token_ids: frozenset[int] = frozenset(),
) -> dict[str, float]:
    """
    Modelled speedup of every variant of the window, of other windows, and of the oracle.

    Args:
        recorded: From [`record`].
        base ([`WindowConfig`]): The window whose settings are varied.
        windows (`Mapping[str, WindowConfig]`): Others, to compare with.
        costs ([`CostModel`]): Costs of a cycle.
        budget, sampling, eos_token_ids: As for [`simulate`].
    """
    found = {}
    for name, config, settings in [*variants(base), *((name, config, {}) for name, config in windows.items())]:

        def walk(parts: RecordedWindows, config=config, settings=settings):
            online = config.online_calibration
            estimator = AcceptanceEstimator(config.calibration, sampling=sampling, online=online, **settings)
            return simulate(parts, config, costs, budget, eos_token_ids, sampling, estimator)

        found[name] = speedup(recorded, walk)
    found["oracle"] = speedup(recorded, lambda parts: oracle_walk(parts.accepted, base.max_size, costs))
    return found


def report(results: Mapping[str, Any]) -> str:
    """The Markdown."""
    by_temperature = results["speedup"]
    names = list(next(iter(by_temperature.values())))
    lines = []
    for name in names:
        cells = [f"`{name}`" if name != "as it is" else name]
        for values in by_temperature.values():
            change = values[name] / values["as it is"] - 1
            cells += [number(values[name], 3), "" if name == "as it is" else f"{100 * change:+.1f}%"]
        lines.append(cells)
    header = ["`cost_aware`, or another window"]
    for temperature in by_temperature:
        header += [f"speedup, temperature {temperature}", "change"]
    inside = [
        abs(values[name] / values["as it is"] - 1)
        for values in by_temperature.values()
        for name in names
        if "=" in name
    ]
    return (
        "\n\n".join(
            [
                "# Other settings of the cost-aware window",
                f"Drafter {results['arguments']['drafter']}, {results['arguments']['prompts']} prompts that are "
                "neither trained on nor a benchmark's. Speedup over plain decoding by the measured cost model, on the "
                "same texts and draws, the prompt left out. One setting is changed at a time; none moves it by more "
                f"than {percent(max(inside), 1)}.",
                table(header, lines),
                f"Costs of {results['environment']['device_name']}.",
            ]
        )
        + "\n"
    )


def main(
    suite: Annotated[list[str], typer.Option(help="Prompts, as for `ppow data`; several times.")],
    output: Annotated[Path, typer.Option(help="Folder of results.json and report.md.")],
    drafter: Annotated[str, typer.Option(help="A folder or a Hub id.")] = "model_cards/smollm2-135m-instruct-eagle3",
    target: Annotated[str, typer.Option(help="Target: a Hub id, a folder, or the embedded one.")] = DEFAULT_TARGET,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the answers.", min=2)] = 128,
    answers: Annotated[Path, typer.Option(help="Where the target's answers are kept.")] = Path("runs/policy_sweep"),
    seed: SeedOption = 0,
) -> None:
    """Try other settings of the cost-aware window on the same texts."""
    target_model, tokenizer = load_target(target)
    drafter_model = load_drafter(drafter, target_model)
    base = window_of("cost_aware", drafter_model)
    others = {name: window_of(name, drafter_model) for name in ("confidence", *FIXED)}
    costs = CostModel.for_models(target_model, drafter_model)
    eos = eos_token_ids_of(target_model.generation_config)
    speedups, prompts = {}, 0
    for temperature in TEMPERATURES:
        rows = target_answers(target_model, tokenizer, suite, answers, max_new_tokens, temperature, seed)
        prompts = len(rows)
        width = max(base.max_size, *(config.limit for config in others.values()))
        recorded = record(target_model, drafter_model, rows, temperature, width, seed)
        speedups[f"{temperature:g}"] = sweep(recorded, base, others, costs, max_new_tokens - 1, bool(temperature), eos)
    results = {
        "environment": describe_environment(target_model.device),
        "arguments": {
            "drafter": Path(drafter).name,
            "suites": [Path(name).stem for name in suite],
            "prompts": prompts,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        },
        "window": base.to_dict(),
        "speedup": speedups,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json_whole(output / "results.json", results)
    write_text_whole(output / "report.md", report(results))
    print(output / "report.md")


if __name__ == "__main__":
    run(main)
