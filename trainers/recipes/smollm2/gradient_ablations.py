# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
What every arm of an experiment would teach in one step, judged on texts it has not seen: the ablations of PPOW without
training any of them.

    python trainers/recipes/smollm2/gradient_ablations.py --responses runs/responses --output runs/gradient_ablations

For every arm of `gpu_arms.yaml` (more supervised training, the exact reward, PPOW, token-level RL, PPOW without each
of its parts) the gradient of its own loss, with its own options, is taken on steps of a few texts. Other texts give
the direction that raises the expected speedup reward of all their windows (`expected_speedup_reward`, closed form).
The cosine between the two says how much of the arm's step is learned for texts it has not seen; it is far less noisy
than the acceptance length of a drafter trained for minutes. Of first order, at the drafter it starts from, and of the
plain gradient: Adam scales it, and what many steps add up to is not in it. Writes `results.json`, `report.md` and
`ablations.png`; finished arms are kept in `arms.jsonl`. Ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from gradient_probe import batches_of, cosine, exact_gradient, flat_gradient, make_trainer, starts_in
from tqdm.auto import tqdm
from transformers import PreTrainedModel, set_seed

from ppow_hf import (
    AutoDrafter,
    DrafterModel,
    DrafterSFTConfig,
    DrafterSFTTrainer,
    PPOWConfig,
    PPOWTrainer,
    load_target,
)
from ppow_hf.evaluation.aggregate import bootstrap_interval
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.markdown import environment_list, interval, number, table
from ppow_hf.evaluation.plots import save_figure
from ppow_hf.evaluation.precision import content_hash, fingerprint
from ppow_hf.evaluation.records import RecordLog
from ppow_hf.scripts.train_ppow import choose_rewards
from ppow_hf.scripts.training_run import load_all_responses
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.trainer.drafter_trainer import DrafterTrainer
from ppow_hf.whole_files import write_json_whole, write_text_whole

CONFIGS = {"sft": DrafterSFTConfig, "ppow": PPOWConfig}
# Of how it is run and not of what is learned; windows are drawn by ADAW from the first step.
RUNNING = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "eval_decode_prompts": 0,
    "save_strategy": "no",
    "report_to": "none",
    "adaw_warmup": 0,
    "dataloader_num_workers": 0,
}


def trainer_of(
    arm: dict[str, Any],
    folder: str,
    target: PreTrainedModel,
    drafter: DrafterModel,
    rows: Dataset,
    tokenizer=None,
    **changes: Any,
) -> DrafterTrainer:
    """
    The trainer of an arm, which is only asked for gradients.

    Args:
        arm (`dict`): Its options as in the experiment's file, `stage` included.
        folder (`str`): For what it writes.
        target ([`~transformers.PreTrainedModel`]), drafter ([`DrafterModel`]): The models.
        rows (`Dataset`): Responses.
        tokenizer: For reward functions that read text.
        changes: Options that replace the arm's.
    """
    kind = CONFIGS[arm["stage"]]
    known = {field.name for field in dataclasses.fields(kind)}
    options = {name: value for name, value in {**arm, **RUNNING, **changes}.items() if name in known}
    args = kind(folder, **{**options, "use_cpu": not torch.cuda.is_available()})
    if arm["stage"] == "sft":
        return DrafterSFTTrainer(drafter, target, args, rows)
    rewards = choose_rewards(arm.get("rewards"), args)
    return PPOWTrainer(drafter, target, args, rows, processing_class=tokenizer, reward_funcs=rewards)


def arm_gradient(trainer: DrafterTrainer, batch: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
    """The gradient of an arm's own loss on one batch, as one vector."""
    drafter = trainer.model
    supervised = isinstance(trainer, DrafterSFTTrainer)
    drafter.train(supervised)
    if supervised:
        with trainer.accelerator.autocast():
            return flat_gradient(trainer.compute_loss(drafter, batch), drafter)
    experience = trainer.experience_maker(
        drafter, batch, law=trainer.args.window_selection, seed=seed, precision=trainer.accelerator.autocast
    )
    trainer._counts = trainer._count([experience])
    with trainer.accelerator.autocast():
        loss, _ = trainer._compute_loss(drafter, experience)
    return flat_gradient(loss, drafter)


def reference_gradients(
    target: PreTrainedModel,
    drafter: DrafterModel,
    rows: Dataset,
    starts: int,
    seed: int,
    progress: bool,
    **options: Any,
) -> Iterator[torch.Tensor]:
    """Per batch, the exact gradient of minus the expected reward of windows from up to `starts` starts a text."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, target, drafter, rows, options)
    drafter.eval()
    for index, batch in enumerate(tqdm(batches_of(trainer, rows), desc="reference", disable=not progress)):
        gradient, count = exact_gradient(trainer, batch, starts_in(trainer, batch, starts, seed + index))
        yield gradient * count


def measure_arm(
    make: Callable[[str], DrafterTrainer],
    rows: Dataset,
    reference: torch.Tensor,
    seed: int,
    label: str,
    progress: bool,
) -> dict[str, Any]:
    """
    Args:
        make (`Callable`): From a folder to the arm's trainer.
        rows (`Dataset`): What it steps on.
        reference (`torch.Tensor`): The direction of other texts.
        seed (`int`): Of what is drawn.
        label (`str`): Of the progress bar.
        progress (`bool`): Show it.

    Returns:
        `dict`: `cosines` of every step with the reference, `cosine_of_all` of their sum, `norm` (mean over the
        steps), `seconds` of a gradient (median).
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(folder)
        cosines, norms, seconds, total = [], [], [], torch.zeros_like(reference)
        for index, batch in enumerate(tqdm(batches_of(trainer, rows), desc=label, unit="step", disable=not progress)):
            begin = time.perf_counter()
            gradient = arm_gradient(trainer, batch, 2 * (seed * 1_000_003 + index))
            seconds.append(time.perf_counter() - begin)
            cosines.append(cosine(gradient, reference))
            norms.append(float(gradient.norm()))
            total += gradient
    return {
        "cosines": cosines,
        "cosine_of_all": cosine(total, reference),
        "norm": sum(norms) / len(norms),
        "seconds": sorted(seconds)[len(seconds) // 2],
    }


def figures_of(arms: dict[str, dict[str, Any]], baseline: str, seed: int) -> list[dict[str, Any]]:
    """One row per arm: mean cosine with its interval over the steps, and the difference to an arm, by step."""
    rows = []
    for name, found in arms.items():
        cosines, ones = found["cosines"], [1.0] * len(found["cosines"])
        row = {"arm": name, **found, "cosine": sum(cosines) / len(cosines)}
        row["interval"] = bootstrap_interval(cosines, ones, seed)
        if name != baseline and baseline in arms:
            differences = [one - other for one, other in zip(cosines, arms[baseline]["cosines"], strict=True)]
            row["difference"] = sum(differences) / len(differences)
            row["difference_interval"] = bootstrap_interval(differences, ones, seed)
        rows.append(row)
    return rows


def report(rows: list[dict[str, Any]], arguments: dict[str, Any], environment: dict[str, Any]) -> str:
    steps, baseline = len(rows[0]["cosines"]), arguments["baseline"]
    text = (
        f"The gradient of every arm's own loss on {steps} steps of {arguments['batch_size']} texts, against the exact "
        f"gradient of the expected speedup reward of all windows in {arguments['reference_texts']} other texts (up to "
        f"{arguments['reference_starts']} starts in each, temperature {arguments['temperature']:g}, gamma "
        f"{arguments['cost_ratio']:g}). One step: mean cosine over the steps, with 95% bootstrap intervals over them; "
        f"all steps: cosine of the sum of their gradients. Over `{baseline}`: paired by step. Seconds: of a gradient."
    )
    header = ["arm", "one step", f"over `{baseline}`", "all steps", "norm", "seconds"]
    lines = [
        [
            f"`{row['arm']}`",
            number(row["cosine"], 3) + interval(row["interval"]),
            f"{row['difference']:+.3f}" + interval(row["difference_interval"]) if "difference" in row else "",
            number(row["cosine_of_all"], 3),
            number(row["norm"], 3),
            number(row["seconds"], 1),
        ]
        for row in rows
    ]
    parts = ["# What a step of every arm teaches for other texts", text, table(header, lines)]
    return "\n\n".join([*parts, "![Cosines](ablations.png)", environment_list(environment)]) + "\n"


def draw_picture(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.8 + 0.36 * len(rows)), layout="constrained")
    one, every = figure.subplots(1, 2, sharey=True)
    names, places = [row["arm"] for row in rows], range(len(rows))
    one.barh(places, [row["cosine"] for row in rows], color="#7A1F00")
    for place, row in zip(places, rows, strict=True):
        if row["interval"]:
            one.plot(row["interval"], [place, place], color="#222222", linewidth=1)
    every.barh(places, [row["cosine_of_all"] for row in rows], color="#56B4E9")
    one.set_yticks(places, names)
    one.invert_yaxis()
    one.set_title("one step", loc="left", fontsize=10)
    every.set_title("all steps together", loc="left", fontsize=10)
    for axes in (one, every):
        axes.axvline(0, color="#222222", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("cosine with the exact gradient of the expected reward on other texts", fontsize=9)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", nargs="+", required=True, help="folders written by `ppow data`")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("gpu_arms.yaml"))
    parser.add_argument("--arms", help="comma-separated; all by default")
    parser.add_argument("--drafter", default="model_cards/smollm2-135m-instruct-eagle3")
    parser.add_argument("--target", default=DEFAULT_TARGET)
    parser.add_argument("--output", type=Path, default=Path("runs/gradient_ablations"))
    parser.add_argument("--steps", type=int, default=24, help="steps of every arm")
    parser.add_argument("--batch-size", type=int, default=4, help="texts of a step")
    parser.add_argument("--reference-texts", type=int, default=128, help="other texts, that say what is to be learned")
    parser.add_argument("--reference-starts", type=int, default=128, help="most starts in each of them")
    parser.add_argument("--baseline", default="ppow", help="the arm that others are compared with")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    names = args.arms.split(",") if args.arms else list(config["arms"])
    if unknown := [name for name in names if name not in config["arms"]]:
        raise ValueError(f"`--arms` names {', '.join(unknown)}; the configuration has {', '.join(config['arms'])}.")
    arms = {name: {**config["common"], **config["arms"][name]} for name in names}
    set_seed(args.seed)
    target, tokenizer = load_target(args.target, dtype="bfloat16")
    drafter = AutoDrafter.from_pretrained(args.drafter, dtype=torch.float32)
    rows, _ = load_all_responses(args.responses)
    # Long texts, which have room for all starts.
    rows = rows.filter(lambda row: sum(row["loss_mask"]) >= 64).shuffle(seed=args.seed)
    own, others = args.steps * args.batch_size, args.reference_texts
    if len(rows) < own + others:
        raise ValueError(
            f"{args.steps} steps of {args.batch_size} texts and {others} other texts are asked for; the responses "
            f"have {len(rows)} of at least 64 tokens. Give more `--responses`, or ask for fewer."
        )
    rows = rows.select(range(own + others)).remove_columns("prompt")
    steps_on, judged_on = rows.select(range(own)), rows.select(range(own, own + others))
    sampled = next((arm for arm in config["arms"].values() if arm["stage"] == "ppow"), {})
    judged_by = {
        "rollout_temperature": sampled.get("rollout_temperature", 0.7),
        "window_size": sampled.get("window_size", 6),
        "cost_ratio": float(sampled.get("cost_ratio", 0.06)),
        "per_device_train_batch_size": args.batch_size,
    }
    arguments = {
        "batch_size": args.batch_size,
        "steps": args.steps,
        "reference_texts": others,
        "reference_starts": args.reference_starts,
        "temperature": judged_by["rollout_temperature"],
        "cost_ratio": judged_by["cost_ratio"],
        "baseline": args.baseline,
        "seed": args.seed,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    identity = {**arguments, "drafter": fingerprint(drafter), "arms": content_hash(config["arms"])}
    log = RecordLog(args.output / "arms.jsonl", identity)
    done = {record["arm"]: record["found"] for record in log.records}
    missing = [name for name in names if name not in done]
    if missing:
        gradients = reference_gradients(
            target, drafter, judged_on, args.reference_starts, args.seed, True, **judged_by
        )
        reference = sum(gradients)
    for name in missing:

        def make(folder: str, arm: dict[str, Any] = arms[name]) -> DrafterTrainer:
            size = {"per_device_train_batch_size": args.batch_size}
            return trainer_of(arm, folder, target, drafter, steps_on, tokenizer, **size)

        found = measure_arm(make, steps_on, reference, args.seed, name, True)
        log.append({"arm": name, "found": found})
        done[name] = found
    figures = figures_of({name: done[name] for name in names}, args.baseline, args.seed)
    environment = describe_environment(target.device)
    text = report(figures, arguments, environment)
    content = {
        "environment": environment,
        "arguments": arguments,
        "arms": {name: config["arms"][name] for name in names},
        "results": figures,
    }
    write_json_whole(args.output / "results.json", content)
    write_text_whole(args.output / "report.md", text)
    draw_picture(figures, args.output / "ablations.png")
    print(text)


if __name__ == "__main__":
    main()
