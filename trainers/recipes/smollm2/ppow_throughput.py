# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a window costs in PPOW training, as starts and group size grow, and how much of it is spent inside of models.

    python trainers/recipes/smollm2/ppow_throughput.py --drafter runs/sft --responses runs/responses

Writes results.json and throughput.png. "Inside of models" is the time in forward passes of target and drafter,
rollouts and verification included, and in the backward pass; the rest is selection, rewards, losses and the optimiser.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from ppow_hf import AutoDrafter, PPOWConfig, PPOWTrainer, load_target
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.plots import save_figure
from ppow_hf.scripts.training_run import load_all_responses
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.whole_files import write_json_whole

STARTS, GROUPS = (2, 4, 8, 16), (4, 8, 16)


class Stopwatch:
    """Seconds spent in wrapped callables, those called from within one another counted once."""

    def __init__(self):
        self.seconds = 0.0
        self._depth = 0

    def around(self, function: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - start

        return timed


class StepTimes(TrainerCallback):
    """Wall clock and time inside of models, per optimiser step."""

    def __init__(self, models: Stopwatch):
        self.models, self.steps = models, []

    def on_step_begin(self, args, state, control, **kwargs):
        self._begin = time.perf_counter(), self.models.seconds

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append((time.perf_counter() - self._begin[0], self.models.seconds - self._begin[1]))


def measure(target, tokenizer, drafter_folder: str, rows, starts: int, group: int, steps: int, seed: int) -> dict:
    """Median seconds of a step with so many window starts per text and windows per start."""
    drafter = AutoDrafter.from_pretrained(drafter_folder, dtype=torch.float32)
    watch = Stopwatch()
    for module, names in (
        (target.base_model, ("forward",)),
        (target.get_output_embeddings(), ("forward",)),
        (drafter, ("forward", "begin_windows", "step_windows", "text_logits")),
    ):
        for name in names:
            setattr(module, name, watch.around(getattr(type(module), name).__get__(module)))
    with tempfile.TemporaryDirectory() as folder:
        args = PPOWConfig(
            folder,
            num_windows=starts,
            num_generations=group,
            window_size=6,
            adaw_warmup=0,
            per_device_train_batch_size=4,
            max_length=512,
            max_steps=steps + 1,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            eval_strategy="no",
            eval_on_start=False,
            eval_decode_prompts=0,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            seed=seed,
        )
        times = StepTimes(watch)
        trainer = PPOWTrainer(drafter, target, args, rows, processing_class=tokenizer, callbacks=[times])
        trainer.accelerator.backward = watch.around(trainer.accelerator.backward)
        trainer.train()
    for module in (target.base_model, target.get_output_embeddings()):
        del module.forward
    phases = defaultdict(list)
    for log in trainer.state.log_history[1:]:
        for name, value in log.items():
            if name.startswith("seconds/"):
                phases[name.removeprefix("seconds/")].append(value)
    wall, inside = (torch.tensor(times.steps[1:]).median(dim=0).values).tolist()
    windows = 4 * starts * group
    return {
        "starts": starts,
        "group_size": group,
        "windows": windows,
        "step_seconds": wall,
        "milliseconds_per_window": 1000 * wall / windows,
        "share_inside_models": inside / wall,
        "seconds": {name: sorted(values)[len(values) // 2] for name, values in phases.items()},
    }


def draw(results: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    cost, share = figure.subplots(1, 2)
    for group in GROUPS:
        rows = [row for row in results if row["group_size"] == group]
        cost.plot(
            [r["starts"] for r in rows], [r["milliseconds_per_window"] for r in rows], "o-", label=f"G = {group}"
        )
        share.plot([r["starts"] for r in rows], [100 * r["share_inside_models"] for r in rows], "o-")
    share.axhline(70, color="0.5", linewidth=1, linestyle="--")
    for axes, label in ((cost, "ms per window"), (share, "% of a step inside of models")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(STARTS, STARTS)
        axes.set_xlabel("window starts per text")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    cost.legend()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafter", required=True, help="folder of a drafter")
    parser.add_argument("--responses", nargs="+", required=True, help="folders written by `ppow data`")
    parser.add_argument("--target", default=DEFAULT_TARGET)
    parser.add_argument("--steps", type=int, default=4, help="steps measured for every setting, after one to warm up")
    parser.add_argument("--output", type=Path, default=Path("runs/ppow_throughput"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)
    target, tokenizer = load_target(args.target)
    rows, _ = load_all_responses(args.responses)
    rows = rows.shuffle(seed=args.seed).select(range(min(len(rows), 8 * (args.steps + 1)))).remove_columns("prompt")
    results = []
    for group in GROUPS:
        for starts in STARTS:
            results.append(measure(target, tokenizer, args.drafter, rows, starts, group, args.steps, args.seed))
            print(json.dumps(results[-1]), flush=True)
    content = {"environment": describe_environment(torch.device(target.device)), "results": results}
    write_json_whole(args.output / "results.json", content)
    draw(results, args.output / "throughput.png")


if __name__ == "__main__":
    main()
