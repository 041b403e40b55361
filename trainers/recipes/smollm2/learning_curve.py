# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How tau grew over the stages of a drafter's training, on the texts trained on and on held-out prompts.

    python trainers/recipes/smollm2/learning_curve.py --stage supervised=runs/sft --stage window-reward=runs/exact \\
        --suite held_out.jsonl --output model_cards/experiments/learning-curve

A stage is the folder of one training, with its `training_log.json`; the drafter there and in its `checkpoint-*`
folders is replayed on the target's own greedy answers to the held-out prompts. Writes results.json, report.md and
curve.png. What was measured of a checkpoint is kept, and taken again.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from ppow_hf import load_target
from ppow_hf.evaluation.compare import MEAN
from ppow_hf.evaluation.plots import save_figure
from ppow_hf.scripts.command_line import named_folders
from ppow_hf.scripts.compare_drafters import compare_drafters
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.whole_files import write_json_whole, write_text_whole


@dataclass
class Checkpoint:
    """A drafter along the way.

    Args:
        name (`str`): Stage and step.
        stage (`str`): Of the training.
        texts (`int`): Texts trained on so far, in all stages, those seen twice counted twice.
        folder (`Path`): Where it is.
    """

    name: str
    stage: str
    texts: int
    folder: Path


@dataclass
class LoggedTau:
    """tau simulated on training texts, as the trainer logged it."""

    stage: str
    texts: int
    tau: float


def read_stage(name: str, folder: Path, before: int) -> tuple[list[Checkpoint], list[LoggedTau], int]:
    """
    Args:
        name (`str`): Of the stage.
        folder (`Path`): Its training's folder.
        before (`int`): Texts of the stages before.

    Returns:
        `tuple`: Its checkpoints in order, its log, and the texts up to its end.
    """
    path = folder / "training_log.json"
    if not path.exists():
        raise SystemExit(f"--stage {name}: {folder} has no training_log.json; give the folder of a finished training.")
    state = json.loads(path.read_text(encoding="utf-8"))
    batch, last = state["train_batch_size"], state["global_step"]
    steps = {last: folder}
    for entry in folder.glob("checkpoint-*"):
        if (match := re.fullmatch(r"checkpoint-(\d+)", entry.name)) and int(match[1]) < last:
            steps[int(match[1])] = entry
    checkpoints = [
        Checkpoint(f"{name}-{step}", name, before + batch * step, entry) for step, entry in sorted(steps.items())
    ]
    log = [
        LoggedTau(name, before + batch * entry["step"], entry["simulated_acceptance_length"])
        for entry in state["log_history"]
        if "simulated_acceptance_length" in entry
    ]
    return checkpoints, log, before + batch * last


def smooth(log: list[LoggedTau], points: int = 15) -> list[LoggedTau]:
    """Means over equal stretches of a stage's log."""
    size = max(1, len(log) // points)
    parts = [log[i : i + size] for i in range(0, len(log), size)]
    return [LoggedTau(p[0].stage, sum(e.texts for e in p) // len(p), sum(e.tau for e in p) / len(p)) for p in parts]


def draw(results: dict, path: Path) -> None:
    """Training and held-out tau over the texts trained on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for i, stage in enumerate(results["stages"]):
        log = [entry for entry in results["training"] if entry["stage"] == stage]
        axes.plot([e["texts"] for e in log], [e["tau"] for e in log], color=f"C{i}", alpha=0.45, linewidth=1)
        points = [entry for entry in results["held_out"] if entry["stage"] == stage]
        texts, tau = [e["texts"] for e in points], [e["tau"] for e in points]
        below = [e["tau"] - e["low"] for e in points]
        above = [e["high"] - e["tau"] for e in points]
        axes.errorbar(texts, tau, yerr=[below, above], fmt="o-", color=f"C{i}", capsize=2, label=f"{stage}, held out")
    axes.plot([], [], color="0.5", alpha=0.45, linewidth=1, label="on its training texts (simulated)")
    axes.set_xlabel("texts trained on")
    axes.set_ylabel(f"tau, bonus token included, windows of {results['window']}")
    axes.legend()
    save_figure(figure, path)


def report(results: dict) -> str:
    """The curve as a Markdown table."""
    lines = [
        f"Acceptance length (tau, bonus token included), windows of {results['window']}, on the target's greedy "
        f"answers to {results['prompts']} held-out prompts; brackets: 95% bootstrap interval over prompts.",
        "",
        "| stage | texts trained on | " + " | ".join(results["suites"]) + " | mean |",
        "|---|---|" + "---|" * (len(results["suites"]) + 1),
    ]
    for entry in results["held_out"]:
        cells = [f"{entry['by_suite'][suite]:.3f}" for suite in results["suites"]]
        mean = f"{entry['tau']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
        lines.append(f"| {entry['stage']} | {entry['texts']:,} | " + " | ".join([*cells, mean]) + " |")
    return "\n".join([*lines, "", "![tau over the texts trained on](curve.png)"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", action="append", required=True, metavar="NAME=FOLDER", help="in order of training")
    parser.add_argument("--suite", action="append", required=True, help="held-out prompts, as for `ppow data`")
    parser.add_argument("--target", default=DEFAULT_TARGET)
    parser.add_argument("--window", type=int, default=5, help="draft tokens per window")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--work", type=Path, default=Path("runs/learning_curve"), help="for what can be taken again")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    checkpoints, training, texts = [], [], 0
    try:
        stages = named_folders(args.stage, "--stage")
    except ValueError as error:
        parser.error(str(error))
    for name, folder in stages.items():
        found, log, texts = read_stage(name, Path(folder), texts)
        checkpoints += found
        training += smooth(log)
    target, tokenizer = load_target(args.target)
    compared = compare_drafters(
        target,
        tokenizer,
        {checkpoint.name: checkpoint.folder for checkpoint in checkpoints},
        args.suite,
        args.work,
        window=args.window,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    held_out = []
    for checkpoint in checkpoints:
        figures = compared["results"][checkpoint.name]
        suites, mean = [entry for entry in figures if entry["suite"] != MEAN], figures[-1]
        held_out.append(
            {
                "stage": checkpoint.stage,
                "texts": checkpoint.texts,
                "tau": mean["acceptance_length"],
                "low": mean["low"],
                "high": mean["high"],
                "by_suite": {entry["suite"]: entry["acceptance_length"] for entry in suites},
            }
        )
    results = {
        "environment": compared["environment"],
        "stages": list(dict.fromkeys(checkpoint.stage for checkpoint in checkpoints)),
        "window": args.window,
        "prompts": sum(entry["prompts"] for entry in suites),
        "suites": [entry["suite"] for entry in suites],
        "held_out": held_out,
        "training": [asdict(entry) for entry in training],
    }
    args.output.mkdir(parents=True, exist_ok=True)
    write_json_whole(args.output / "results.json", results)
    draw(results, args.output / "curve.png")
    write_text_whole(args.output / "report.md", report(results))
    print(report(results))


if __name__ == "__main__":
    main()
