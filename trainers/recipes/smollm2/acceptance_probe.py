# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
What would a head that predicts acceptance be worth? The window policies estimate from a few numbers of the draft
distribution how likely a draft token is to be accepted; a head could read the drafter's hidden state as well.

    python trainers/recipes/smollm2/acceptance_probe.py --responses runs/responses

On the target's own greedy answers every draft token that a chain reaches (all before it accepted) gives one outcome.
Each way to predict it is fitted on answers from the training set, and judged on answers that were held out of it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import set_seed

from ppow_hf import AutoDrafter, load_target
from ppow_hf.data import DrafterDataCollator, load_responses, split_holdout
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.markdown import table
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.trainer.drafter_sft_trainer import predicting_positions, scored_columns
from ppow_hf.trainer.target_pass import TargetPass
from ppow_hf.whole_files import write_json_whole, write_text_whole

NUMBERS = ("log_odds", "margin", "entropy", "log_position")
WAYS = {
    "confidence": "the draft token's probability",
    "estimate": "probability, margin, entropy and position: what the policies read",
    "linear head": "the same and the hidden state, linearly",
    "head of one layer": "the same and the hidden state, through 64 units",
}


@dataclass
class Outcomes:
    """
    Draft tokens that a chain reached.

    Args:
        numbers (`torch.Tensor` of shape `(N, 4)`): See `NUMBERS`.
        states (`torch.Tensor` of shape `(N, hidden_size)`): What the drafter's head reads.
        accepted (`torch.Tensor` of shape `(N,)`): 1.0 where the draft token is the target's own.
    """

    numbers: torch.Tensor
    states: torch.Tensor
    accepted: torch.Tensor


class Collector:
    """Called inside of the drafter's forward pass: keeps what a chain that was right so far sees at each step."""

    def __init__(self, columns: torch.Tensor, argmax: torch.Tensor, offset: int, draft_token_ids: torch.Tensor | None):
        self.columns, self.argmax, self.offset, self.draft_token_ids = columns, argmax, offset, draft_token_ids
        self.alive = columns[0].clone()
        self.parts: list[Outcomes] = []

    def __call__(self, step: int, states: torch.Tensor, head: nn.Linear) -> torch.Tensor:
        batch, column = self.columns[step].nonzero(as_tuple=True)
        reached = self.alive[batch, column]
        batch, column, states = batch[reached], column[reached], states[reached]
        log_probs = head(states).float().log_softmax(-1)
        (top, second), best = log_probs.topk(2).values.unbind(-1), log_probs.argmax(-1)
        tokens = best if self.draft_token_ids is None else self.draft_token_ids[best]
        accepted = tokens == self.argmax[batch, column + self.offset - 1 + step]
        self.alive = torch.zeros_like(self.alive)
        self.alive[batch, column] = accepted
        log_odds = top - torch.log1p(-top.exp().clamp(max=1 - 1e-6))
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        position = torch.full_like(top, step).log1p()
        numbers = torch.stack([log_odds.clamp(-8, 8), (top - second).clamp(max=8), entropy, position], dim=-1)
        self.parts.append(Outcomes(numbers, states.float(), accepted.float()))
        return log_probs.new_zeros(())


@torch.no_grad()
def collect(target, drafter, rows: Dataset, steps: int, batch_size: int = 4) -> Outcomes:
    """
    Outcomes of the drafter on the target's greedy answers.

    Args:
        target, drafter: The models.
        rows ([`~datasets.Dataset`]): Rows with `input_ids` and `loss_mask`, greedy.
        steps (`int`): Longest chain.
        batch_size (`int`, *optional*, defaults to 4): Texts at a time.
    """
    run, collator, parts = TargetPass(target, drafter), DrafterDataCollator(0, 512), []
    for first in tqdm(range(0, len(rows), batch_size), desc="outcomes", unit="batch"):
        batch = collator([rows[index] for index in range(first, min(first + batch_size, len(rows)))])
        ids, attention = batch["input_ids"], batch["attention_mask"]
        scored = batch["loss_mask"].bool() & attention.bool()
        positions = predicting_positions(scored)
        features, teacher = run(ids, attention, positions)
        argmax = torch.zeros_like(ids)
        argmax[positions] = teacher.argmax
        columns = scored_columns(scored, drafter.prediction_offset, steps)
        collector = Collector(columns, argmax, drafter.prediction_offset, drafter.draft_token_ids)
        drafter(
            input_ids=ids,
            target_features=features.float(),
            attention_mask=attention,
            ttt_steps=steps,
            column_mask=columns,
            score=collector,
        )
        parts += collector.parts
    return Outcomes(*(torch.cat([getattr(p, name) for p in parts]) for name in ("numbers", "states", "accepted")))


def inputs_of(way: str, outcomes: Outcomes) -> torch.Tensor:
    """What a way to predict reads, `(N, features)`."""
    if way == "confidence":
        return outcomes.numbers[:, :1]
    return outcomes.numbers if way == "estimate" else torch.cat([outcomes.numbers, outcomes.states], dim=-1)


def fit(way: str, outcomes: Outcomes, seed: int, epochs: int = 40) -> nn.Module:
    """
    Fits a way to predict; how long is chosen on a tenth of the outcomes that is left out.

    Args:
        way (`str`): One of `WAYS`.
        outcomes ([`Outcomes`]): To fit to.
        seed (`int`): Of the order and of the start.
        epochs (`int`, *optional*, defaults to 40): At most.
    """
    torch.manual_seed(seed)
    x, y = inputs_of(way, outcomes), outcomes.accepted
    inside = max(1, len(x) // 10)  # whole texts at the end, so that no text is on both sides
    centre, scale = x[:-inside].mean(0), x[:-inside].std(0).clamp(min=1e-6)
    width = x.shape[1]
    layers = [nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 1)] if "layer" in way else [nn.Linear(width, 1)]
    model = nn.Sequential(Standardized(centre, scale), *layers, nn.Flatten(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if width > len(NUMBERS) else 3e-2, weight_decay=0.1)
    best, kept = float("inf"), None
    for _ in range(epochs):
        for rows in torch.randperm(len(x) - inside).split(512):
            loss = nn.functional.binary_cross_entropy_with_logits(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            left_out = float(nn.functional.binary_cross_entropy_with_logits(model(x[-inside:]), y[-inside:]))
        if left_out < best:
            best, kept = left_out, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return model.eval()


class Standardized(nn.Module):
    """Inputs less their mean, over their deviation."""

    def __init__(self, centre: torch.Tensor, scale: torch.Tensor):
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.centre) / self.scale


@torch.no_grad()
def judge(way: str, model: nn.Module, outcomes: Outcomes) -> dict[str, float]:
    """Brier score, cross-entropy and ranking of predictions."""
    logits, y = model(inputs_of(way, outcomes)), outcomes.accepted
    return {
        "brier": float((logits.sigmoid() - y).square().mean()),
        "cross_entropy": float(nn.functional.binary_cross_entropy_with_logits(logits, y)),
        "ranking": ranking(logits, y),
    }


def ranking(scores: torch.Tensor, outcomes: torch.Tensor) -> float:
    """How often an accepted token has the higher score of it and a refused one (area under the ROC curve)."""
    order = scores.double().argsort()
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[order] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    accepted = outcomes.bool()
    hits, misses = int(accepted.sum()), int((~accepted).sum())
    return (float(ranks[accepted].sum()) - hits * (hits + 1) / 2) / (hits * misses)


def report(results: dict[str, Any]) -> str:
    """The Markdown; every number comes from `results`."""
    facts = results["outcomes"]
    rows = [
        [way, WAYS[way], f"{row['brier']:.4f}", f"{row['cross_entropy']:.4f}", f"{row['ranking']:.4f}"]
        for way, row in results["results"].items()
    ]
    intro = (
        f"Fitted on {facts['fitted']} draft tokens of {facts['fitted_texts']} answers of the training set, judged on "
        f"{facts['judged']} of {facts['judged_texts']} held-out ones; {100 * facts['accepted']:.1f}% of these were "
        "accepted. Greedy, one chain from every position, tokens behind a refused one left out. Lower is better for "
        "Brier score and cross-entropy; ranking is the chance that an accepted token is told from a refused one."
    )
    header = ["prediction", "reads", "Brier score", "cross-entropy", "ranking"]
    return "\n\n".join(["# What a head that predicts acceptance is worth", intro, table(header, rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", required=True, help="folder written by `ppow data`, with greedy answers")
    parser.add_argument("--drafter", default="model_cards/smollm2-135m-instruct-eagle3")
    parser.add_argument("--target", default=DEFAULT_TARGET)
    parser.add_argument("--texts", type=int, default=200, help="answers to fit to")
    parser.add_argument("--holdout", type=int, default=32, help="as the drafter was trained with")
    parser.add_argument("--steps", type=int, default=8, help="longest chain")
    parser.add_argument("--output", type=Path, default=Path("runs/acceptance_probe"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)
    target, _ = load_target(args.target)
    drafter = AutoDrafter.from_pretrained(args.drafter, dtype=torch.float32).eval()
    drafter.bind_target(target)
    known, held_out = (
        part.filter(lambda temperature: temperature == 0, input_columns="temperature")
        for part in split_holdout(load_responses(args.responses), args.holdout)
    )
    known = known.shuffle(seed=args.seed).select(range(min(args.texts, len(known))))
    fitted, judged = (collect(target, drafter, rows, args.steps) for rows in (known, held_out))
    results = {
        "environment": describe_environment(target.device),
        "arguments": {"texts": args.texts, "holdout": args.holdout, "steps": args.steps, "seed": args.seed},
        "outcomes": {
            "fitted": len(fitted.accepted),
            "fitted_texts": len(known),
            "judged": len(judged.accepted),
            "judged_texts": len(held_out),
            "accepted": float(judged.accepted.mean()),
        },
        "results": {way: judge(way, fit(way, fitted, args.seed), judged) for way in WAYS},
    }
    write_json_whole(args.output / "results.json", results)
    write_text_whole(args.output / "report.md", report(results))
    print(report(results))


if __name__ == "__main__":
    main()
