# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Does the proximity reward have anything to say? Delta of the windows refused at once, and what a threshold does.

    python trainers/recipes/smollm2/proximity_gap.py --responses runs/responses --output runs/proximity_gap

Draws windows as PPOW does (nothing is learned: the rate is 0) and keeps `k` and Delta of each. A group of windows from
one start teaches something only if its rewards differ. Where all of its windows are refused, only the proximity reward
can make them differ, and only with a threshold that some of them pass and others do not.
Writes `results.json`, `report.md` and `gap.png`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

from ppow_hf import AutoDrafter, PPOWConfig, PPOWTrainer, load_target
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.markdown import number, percent, table
from ppow_hf.evaluation.plots import save_figure
from ppow_hf.rl import ProximityReward, speedup_reward
from ppow_hf.scripts.training_run import load_all_responses
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.whole_files import write_json_whole, write_text_whole

SIZES, TEMPERATURES = (4, 6, 10), (0.7, 1.0)
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
USUAL = 2.0  # the threshold that PPOWConfig begins with
GROUP = 8


class Recorder:
    """A reward that only looks."""

    __name__ = "recorder"

    def __init__(self):
        self.accepted: list[int] = []
        self.gaps: list[float] = []

    def __call__(self, *, accepted, target_gap, **kwargs) -> list[float]:
        self.accepted += accepted
        self.gaps += target_gap
        return [0.0] * len(accepted)


def draw_windows(target, tokenizer, drafter: str, rows, size: int, temperature: float, steps: int, seed: int):
    """`k` and Delta of windows, `(groups, GROUP)` each."""
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        args = PPOWConfig(
            folder,
            learning_rate=0.0,
            num_windows=8,
            num_generations=GROUP,
            window_size=size,
            rollout_temperature=temperature,
            adaw_warmup=0,
            uniform_share=0.3,
            greedy_window=False,
            proximity_eta=0.5,
            per_device_train_batch_size=4,
            max_length=512,
            max_steps=steps,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            eval_strategy="no",
            eval_on_start=False,
            eval_decode_prompts=0,
            save_strategy="no",
            report_to="none",
            seed=seed,
        )
        model = AutoDrafter.from_pretrained(drafter, dtype=torch.float32)
        # The proximity reward is among them so that Delta is computed.
        rewards = [recorder, ProximityReward(args.proximity_eta, args.proximity_epsilon)]
        PPOWTrainer(model, target, args, rows, processing_class=tokenizer, reward_funcs=rewards).train()
    shape = (-1, GROUP)
    return np.array(recorder.accepted).reshape(shape), np.array(recorder.gaps).reshape(shape)


def flat_share(accepted: np.ndarray, gaps: np.ndarray, eta: float, epsilon: float, cost_ratio: float) -> float:
    """The share of groups all of whose windows earn the same."""
    rewards = np.array(speedup_reward(accepted=accepted.flatten().tolist(), cost_ratio=cost_ratio))
    rewards = rewards.reshape(accepted.shape) + np.where((accepted == 0) & (gaps < epsilon), eta, 0.0)
    return float((np.ptp(rewards, axis=1) < 1e-9).mean())


def figures(accepted: np.ndarray, gaps: np.ndarray, cost_ratio: float = 0.06) -> dict:
    """What the windows say of a threshold."""
    refused = gaps[accepted == 0]
    quantiles = [float(value) for value in np.quantile(refused, QUANTILES)]
    median = quantiles[QUANTILES.index(0.5)]
    return {
        "windows": int(accepted.size),
        "groups": len(accepted),
        "mean_accepted": float(accepted.mean()),
        "share_none_accepted": float((accepted == 0).mean()),
        "share_all_refused": float((accepted == 0).all(axis=1).mean()),
        "gap_quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
        "share_within_usual": float((refused < USUAL).mean()),
        "flat_without": flat_share(accepted, gaps, 0.0, USUAL, cost_ratio),
        "flat_usual": flat_share(accepted, gaps, 0.5, USUAL, cost_ratio),
        "flat_median": flat_share(accepted, gaps, 0.5, median, cost_ratio),
        "histogram": np.histogram(refused, bins=np.arange(-10, 62, 2))[0].tolist(),
    }


def report(results: list[dict]) -> str:
    header = ["K", "temperature", "mean k", "k = 0", "group all refused"]
    header += [f"Delta, {100 * q:g}%" for q in QUANTILES]
    header += [f"Delta < {USUAL:g}", "flat, no proximity", f"flat, epsilon {USUAL:g}", "flat, epsilon = median"]
    lines = []
    for row in results:
        lines.append(
            [
                str(row["window_size"]),
                f"{row['temperature']:g}",
                number(row["mean_accepted"]),
                percent(row["share_none_accepted"]),
                percent(row["share_all_refused"]),
                *(number(value, 1) for value in row["gap_quantiles"].values()),
                percent(row["share_within_usual"]),
                *(percent(row[name]) for name in ("flat_without", "flat_usual", "flat_median")),
            ]
        )
    return (
        "# What the proximity reward has to say\n\n"
        f"Delta (nats) of windows of K tokens refused at once, {GROUP} windows a start, ADAW with 30% uniform starts. "
        "A group is flat if all of its windows earn the same: it teaches nothing. Speedup reward with gamma 0.06; eta "
        "0.5.\n\n" + table(header, lines) + "\n\n![Delta of refused windows](gap.png)\n"
    )


def draw(results: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, len(TEMPERATURES), sharey=True, squeeze=False)[0]
    middles = np.arange(-10, 60, 2) + 1
    for axes, temperature in zip(panels, TEMPERATURES, strict=True):
        for row in (row for row in results if row["temperature"] == temperature):
            counts = np.array(row["histogram"])
            axes.plot(
                middles, 100 * counts / max(counts.sum(), 1), drawstyle="steps-mid", label=f"K = {row['window_size']}"
            )
        axes.axvline(USUAL, color="0.4", linewidth=1, linestyle="--")
        axes.set_title(f"temperature {temperature:g}", fontsize=10, loc="left")
        axes.set_xlabel("Delta, nats (dashed: epsilon = 2)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("% of refused windows")
    panels[0].legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", nargs="+", required=True, help="folders written by `ppow data`")
    parser.add_argument("--drafter", default="model_cards/smollm2-135m-instruct-eagle3")
    parser.add_argument("--target", default=DEFAULT_TARGET)
    parser.add_argument("--output", type=Path, default=Path("runs/proximity_gap"))
    parser.add_argument("--steps", type=int, default=8, help="batches of 4 texts for every setting")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)
    target, tokenizer = load_target(args.target, dtype="bfloat16")
    rows, _ = load_all_responses(args.responses)
    rows = rows.remove_columns("prompt")
    results = []
    for temperature in TEMPERATURES:
        for size in SIZES:
            drawn = draw_windows(target, tokenizer, args.drafter, rows, size, temperature, args.steps, args.seed)
            results.append({"window_size": size, "temperature": temperature, **figures(*drawn)})
            print(json.dumps(results[-1]))
    args.output.mkdir(parents=True, exist_ok=True)
    content = {
        "environment": describe_environment(target.device),
        "arguments": {"steps": args.steps, "seed": args.seed, "responses": len(rows)},
        "results": results,
    }
    write_json_whole(args.output / "results.json", content)
    write_text_whole(args.output / "report.md", report(results))
    draw(results, args.output / "gap.png")


if __name__ == "__main__":
    main()
