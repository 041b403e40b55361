# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
How much of PPOW's sampled gradient is signal? Compared with the exact gradient of the expected reward, on one batch.

    python trainers/recipes/smollm2/gradient_probe.py --responses runs/responses --output runs/gradient_probe

Under greedy verification the expected reward of the windows from a start has a closed form
(`ppow_hf.rl.expected_speedup_reward`), and so has the gradient that sampled windows estimate. From the same starts,
windows are drawn again and again; nothing is learned. And since a step's starts are few: how far the exact gradient of
some starts in 4 texts is that of many starts in many other texts. Writes `results.json`, `report.md` and `probe.png`.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cosine_similarity
from tqdm.auto import tqdm
from transformers import PreTrainedModel, set_seed

from ppow_hf import AutoDrafter, DrafterModel, PPOWConfig, PPOWTrainer, load_target
from ppow_hf.drafters import draft_id_table
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.markdown import environment_list, number, percent, table
from ppow_hf.evaluation.plots import save_figure
from ppow_hf.rl import expected_speedup_reward, select_windows, target_prefix, target_windows, text_mask
from ppow_hf.scripts.training_run import load_all_responses
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.trainer.window_experience import Experience, window_mask_of
from ppow_hf.trainer.window_loss import WindowLoss, blockwise_loss
from ppow_hf.whole_files import write_json_whole, write_text_whole

# What is compared: the recipe's estimator first, then each of its parts left out.
VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {"greedy_window": True, "proximity_eta": 0.5},
    "no proximity": {"greedy_window": True},
    "samples only": {},
    "samples only unscaled": {"scale_rewards": "none"},
    "survivors with greedy window": {"baseline": "survivors", "greedy_window": True},
    "survivors": {"baseline": "survivors"},
    "survivors unscaled": {"baseline": "survivors", "scale_rewards": "none"},
}
PARTS = {
    "policy": {"policy_weight": 1.0, "beta": 0.0},
    "kl": {"policy_weight": 0.0, "beta": 1.0, "kl_weighting": "all"},
    "kl_on_path": {"policy_weight": 0.0, "beta": 1.0, "kl_weighting": "reach"},
}


def make_trainer(
    folder: str, target: PreTrainedModel, drafter: DrafterModel, rows: Dataset, options: dict[str, Any]
) -> PPOWTrainer:
    """A trainer that is only asked for gradients."""
    settings = {
        "num_windows": 8,
        "num_generations": 8,
        "window_size": 6,
        "window_selection": "uniform",
        "rollout_temperature": 0.7,
        "credit": "prefix",
        "cost_ratio": 0.06,
        "proximity_eta": 0.0,
        "per_device_train_batch_size": 4,
        "max_length": 512,
        "bf16": True,
        **options,
    }
    args = PPOWConfig(
        folder,
        eval_strategy="no",
        eval_on_start=False,
        eval_decode_prompts=0,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        **settings,
    )
    return PPOWTrainer(drafter, target, args, rows)


def flat_gradient(loss: torch.Tensor, drafter: DrafterModel) -> torch.Tensor:
    """The gradient in all weights as one vector, float32."""
    parameters = [p for p in drafter.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return torch.cat([part.float().flatten() for part in parts])


def sampled_gradients(trainer: PPOWTrainer, experience: Experience) -> dict[str, torch.Tensor]:
    """Gradients of the policy loss and of the KL at weight 1, all of it and as far as verification comes."""
    tokens, _, windows, _ = trainer._count([experience])
    with trainer.accelerator.autocast():
        logits = trainer._window_logits(trainer.model, experience, experience.inputs["window_tokens"])
    gradients = {}
    for name, changes in PARTS.items():
        args = copy.copy(trainer.args)
        for key, value in changes.items():
            setattr(args, key, value)
        # All of them per drafted token, so that they can be compared.
        loss, _ = blockwise_loss(logits, WindowLoss(args, experience, True, tokens, tokens, windows))
        gradients[name] = flat_gradient(loss, trainer.model)
    return gradients


def exact_gradient(
    trainer: PPOWTrainer, batch: dict[str, torch.Tensor], starts: torch.LongTensor
) -> tuple[torch.Tensor, int]:
    """Gradient of minus the mean expected reward of the windows from these starts, and how many there are."""
    drafter, target, args = trainer.model, trainer.target_model, trainer.args
    with torch.no_grad():
        prefix = target_prefix(target, batch["input_ids"], batch["attention_mask"], drafter.feature_layer_ids)
        tokens, _ = target_windows(target, prefix, starts, args.window_size)
    inputs = {"input_ids": prefix.input_ids, "target_features": prefix.features, "starts": starts}
    windows = SimpleNamespace(inputs=inputs, chosen=starts >= 0)
    with trainer.accelerator.autocast():
        logits = trainer._window_logits(drafter, windows, tokens[:, :, None])
    path = tokens[windows.chosen]
    columns = path
    if (ids := drafter.draft_token_ids) is not None:
        columns = draft_id_table(ids, drafter.config.vocab_size).to(path.device)[path]
    log_q = (logits.float() / args.rollout_temperature).log_softmax(-1)
    log_q = log_q.gather(-1, columns.clamp_min(0)[..., None])[..., 0]
    log_q = torch.where(columns >= 0, log_q, float("-inf"))
    mask = text_mask(path, trainer.experience_maker.eos_token_ids)
    return flat_gradient(-expected_speedup_reward(log_q, args.cost_ratio, mask).mean(), drafter), len(path)


def batches_of(trainer: PPOWTrainer, rows: Dataset) -> list[dict[str, torch.Tensor]]:
    """The rows in batches of the trainer's size."""
    size, device = trainer.args.per_device_train_batch_size, trainer.target_model.device
    parts = [[rows[i] for i in range(first, min(first + size, len(rows)))] for first in range(0, len(rows), size)]
    return [{key: value.to(device) for key, value in trainer.data_collator(part).items()} for part in parts]


def starts_in(trainer: PPOWTrainer, batch: dict[str, torch.Tensor], count: int, seed: int) -> torch.LongTensor:
    """Up to `count` starts in every row of a batch, drawn uniformly."""
    mask = window_mask_of(batch["loss_mask"].bool() & batch["attention_mask"].bool())
    generator = torch.Generator().manual_seed(seed)
    return select_windows(mask, trainer.args.window_size, count, generator=generator).starts


def starts_curve(
    target: PreTrainedModel,
    drafter: DrafterModel,
    rows: Dataset,
    counts: Sequence[int],
    *,
    seed: int,
    progress: bool = True,
    **options: Any,
) -> list[dict[str, Any]]:
    """
    How well the exact gradient of a batch with so many starts a text agrees with that of all other texts.

    Args:
        target ([`~transformers.PreTrainedModel`]), drafter ([`DrafterModel`]): The models.
        rows (`Dataset`): Responses, in batches of the trainer's size.
        counts (`Sequence[int]`): Starts a text.
        seed (`int`): Of the starts.
        progress (`bool`): Show a progress bar.
        options: Options of the trainer.

    Returns:
        `list[dict]`: For every count, the mean cosine over the batches, and the starts of a batch.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, target, drafter, rows, options)
    drafter.eval()
    batches = batches_of(trainer, rows)
    found: dict[int, list[tuple[torch.Tensor, int]]] = {count: [] for count in counts}
    for index, batch in enumerate(tqdm(batches, desc="starts", unit="batch", disable=not progress)):
        for count in counts:
            found[count].append(exact_gradient(trainer, batch, starts_in(trainer, batch, count, seed + index)))
    # The most starts stand for all there are; a batch is compared with the other batches.
    many = found[max(counts)]
    total = sum(gradient * number for gradient, number in many)
    others = [total - gradient * number for gradient, number in many]
    return [
        {
            "starts_a_text": count,
            "starts_a_batch": sum(number for _, number in parts) / len(parts),
            "batches": len(parts),
            "cosine": sum(cosine(part[0], other) for part, other in zip(parts, others, strict=True)) / len(parts),
        }
        for count, parts in found.items()
    ]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(cosine_similarity(a, b, dim=0, eps=1e-30))


def reinforced_refusals(experience: Experience, group_size: int) -> float:
    """Share of the first windows of their groups whose first refused token has a positive advantage."""
    reached = (experience.reach > 0) & experience.mask
    last = reached.sum(-1) - 1
    # Where all of the window was accepted there is none.
    refused = experience.advantages.gather(1, last[:, None])[:, 0] > 0
    complete = reached.all(-1)
    first = torch.arange(len(refused), device=refused.device) % group_size == 0
    judged = first & ~complete
    return float((refused & judged).sum() / judged.sum().clamp_min(1))


def probe(
    target: PreTrainedModel,
    drafter: DrafterModel,
    rows: Dataset,
    variants: dict[str, dict[str, Any]],
    *,
    repeats: int,
    seed: int,
    progress: bool = True,
    **options: Any,
) -> list[dict[str, Any]]:
    """
    Args:
        target ([`~transformers.PreTrainedModel`]), drafter ([`DrafterModel`]): The models.
        rows (`Dataset`): Responses; the first batch of them is used.
        variants (`dict[str, dict]`): Options of the trainer, by name.
        repeats (`int`): Draws of windows from the same starts.
        seed (`int`): Of the starts and the draws.
        progress (`bool`): Show a progress bar.
        options: Options of all variants.

    Returns:
        `list[dict]`: For every variant, cosines of its policy gradient with the exact one (`cosine_of_one`: mean over
        single draws; `cosine_of_mean`: of their mean; `cosine_of_two`: mean over pairs of draws) and norms of the
        parts of the loss.
    """
    results = []
    for name, changes in variants.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(folder, target, drafter, rows, {**options, **changes})
        drafter.eval()
        batch = batches_of(trainer, rows)[0]
        found, refusals, active, exact = [], [], [], None
        for draw in tqdm(range(repeats), desc=name, unit="draw", disable=not progress):
            experience = trainer.experience_maker(
                drafter,
                batch,
                law="uniform",
                seed=2 * seed,
                precision=trainer.accelerator.autocast,
                rollout_seed=1000 * seed + draw + 1,
            )
            found.append(sampled_gradients(trainer, experience))
            refusals.append(reinforced_refusals(experience, trainer.args.num_generations))
            active.append(float((experience.advantages != 0).sum() / experience.mask.sum()))
            if exact is None:
                exact, _ = exact_gradient(trainer, batch, experience.inputs["starts"])
        policy = torch.stack([part["policy"] for part in found])
        unit = policy / policy.norm(dim=1, keepdim=True).clamp_min(1e-30)
        pairs = (unit @ unit.T).triu(1).sum() / max(repeats * (repeats - 1) / 2, 1)
        off_path = [part["kl"] - part["kl_on_path"] for part in found]
        results.append(
            {
                "variant": name,
                "options": changes,
                "starts": len(experience.mask) // trainer.args.num_generations,
                "repeats": repeats,
                "cosine_of_one": sum(cosine(g, exact) for g in policy) / repeats,
                "cosine_of_mean": cosine(policy.mean(0), exact),
                "cosine_of_two": float(pairs),
                "norm_policy": float(policy.norm(dim=1).mean()),
                "norm_mean_policy": float(policy.mean(0).norm()),
                "norm_kl_on_path": sum(float(part["kl_on_path"].norm()) for part in found) / repeats,
                "norm_kl_off_path": sum(float(part.norm()) for part in off_path) / repeats,
                "cosine_kl_exact": sum(cosine(part["kl"], exact) for part in found) / repeats,
                "credited": sum(active) / repeats,
                "refused_token_reinforced": sum(refusals) / repeats,
            }
        )
    return results


def curve_table(curve: list[dict[str, Any]]) -> str:
    """The starts' curve as a table."""
    lines = [[str(row["starts_a_text"]), number(row["starts_a_batch"], 0), number(row["cosine"], 3)] for row in curve]
    return table(["starts a text", "starts a step", "cosine with all other texts"], lines)


def report(
    results: list[dict[str, Any]], curve: list[dict[str, Any]], arguments: dict[str, Any], environment: dict[str, Any]
) -> str:
    header = ["estimator", "one draw", "mean of all", "two draws", "policy", "its mean", "KL on path", "KL behind it"]
    header += ["credited tokens", "refused token reinforced"]
    lines = [
        [
            row["variant"],
            *(number(row[name], 3) for name in ("cosine_of_one", "cosine_of_mean", "cosine_of_two")),
            *(
                number(row[name], 4)
                for name in ("norm_policy", "norm_mean_policy", "norm_kl_on_path", "norm_kl_off_path")
            ),
            percent(row["credited"]),
            percent(row["refused_token_reinforced"]),
        ]
        for row in results
    ]
    text = (
        f"{results[0]['starts']} starts, {results[0]['repeats']} draws of windows from them, rollout temperature "
        f"{arguments['temperature']:g}. Cosine of the sampled policy gradient with the exact gradient of the expected "
        "reward: of one draw (a training step), of the mean of all draws, and of two draws with each other. Norms of "
        "the gradients per drafted token: of the policy loss, of its mean over the draws, and of the KL to the target "
        "at weight 1 as far as verification comes and behind the first refused token. Credited: share of tokens with "
        "an advantage. Last: how often the first window of a group (the greedy one, where there is one) is taught the "
        "token it was refused at."
    )
    many = (
        "The exact gradient of a step's few starts is itself a sample. Its cosine with that of all starts tried in "
        f"the other texts, mean over {curve[0]['batches']} batches of 4 texts:"
    )
    parts = ["# What PPOW's sampled gradient says", text, table(header, lines), "![Cosines](probe.png)"]
    parts += ["## Starts", many, curve_table(curve)]
    return "\n\n".join([*parts, environment_list(environment)]) + "\n"


def draw_picture(results: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 0.5 * len(results)), layout="constrained")
    axes = figure.subplots()
    names = [row["variant"] for row in results]
    for shift, (key, label) in enumerate((("cosine_of_one", "one draw"), ("cosine_of_mean", "mean of all draws"))):
        places = [i + 0.36 * shift for i in range(len(results))]
        axes.barh(places, [row[key] for row in results], height=0.34, label=label)
    axes.set_yticks([i + 0.18 for i in range(len(results))], names)
    axes.invert_yaxis()
    axes.set_xlabel("cosine with the exact gradient of the expected reward")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", nargs="+", required=True, help="folders written by `ppow data`")
    parser.add_argument("--drafter", default="model_cards/smollm2-135m-instruct-eagle3")
    parser.add_argument("--target", default=DEFAULT_TARGET)
    parser.add_argument("--output", type=Path, default=Path("runs/gradient_probe"))
    parser.add_argument("--repeats", type=int, default=12, help="draws of windows from the same starts")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the rollouts")
    parser.add_argument("--texts", type=int, default=64, help="for the curve over starts")
    parser.add_argument("--starts", default="2,8,32,128", help="starts a text of that curve, comma-separated")
    parser.add_argument("--variants", help="comma-separated; all by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = args.variants.split(",") if args.variants else list(VARIANTS)
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ValueError(f"`--variants` takes {', '.join(VARIANTS)}, got {unknown[0]!r}.")
    set_seed(args.seed)
    target, _ = load_target(args.target, dtype="bfloat16")
    drafter = AutoDrafter.from_pretrained(args.drafter, dtype=torch.float32)
    rows, _ = load_all_responses(args.responses)
    # Windows of a greedy text stay on the target's own path; long texts have room for many starts.
    rows = rows.filter(lambda row: sum(row["loss_mask"]) >= 64).shuffle(seed=args.seed)
    rows = rows.select(range(min(max(args.texts, 4), len(rows)))).remove_columns("prompt")
    curve = starts_curve(
        target,
        drafter,
        rows,
        [int(count) for count in args.starts.split(",")],
        seed=args.seed,
        rollout_temperature=args.temperature,
    )
    print(curve_table(curve))
    results = probe(
        target,
        drafter,
        rows,
        {name: VARIANTS[name] for name in names},
        repeats=args.repeats,
        seed=args.seed,
        rollout_temperature=args.temperature,
    )
    environment = describe_environment(target.device)
    arguments = {"repeats": args.repeats, "temperature": args.temperature, "seed": args.seed}
    args.output.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment, "arguments": arguments, "results": results, "starts": curve}
    write_json_whole(args.output / "results.json", content)
    write_text_whole(args.output / "report.md", report(results, curve, arguments, environment))
    draw_picture(results, args.output / "probe.png")
    print(report(results, curve, arguments, environment))


if __name__ == "__main__":
    main()
