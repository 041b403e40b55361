# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The supervised stage by loops: drafting from every position in turn, one token at a time."""

from dataclasses import dataclass

import torch

from ppow_hf.drafters import gather_features


@dataclass
class NaiveStep:
    """One drafted position: the target's probabilities over the draft vocabulary, the drafter's, and who is right."""

    p: torch.Tensor
    q: torch.Tensor
    right: bool

    @property
    def overlap(self) -> float:
        return sum(min(a, b) for a, b in zip(self.p.tolist(), self.q.tolist(), strict=True))

    def loss(self, loss_type: str) -> float:
        share = self.p / self.p.sum()
        divergence = sum(a * (a / b).log().item() for a, b in zip(share, self.q, strict=True)).item()
        acceptance = -torch.tensor(self.overlap).log().item()
        return {
            "forward_kl": divergence,
            "total_variation": 1 - self.overlap,
            "lk": acceptance,
            "mixed": 0.5 * divergence + 0.5 * acceptance,
        }[loss_type]


@torch.no_grad()
def naive_windows(drafter, target, row, ttt_steps: int) -> list[list[NaiveStep]]:
    """The steps of the window behind every token of a row, as far as it lies in the target's own text."""
    ids, mask = row["input_ids"], row["loss_mask"]
    input_ids = torch.tensor([ids])
    output = target(input_ids, output_hidden_states=True)
    layers = drafter.feature_layer_ids
    features = gather_features(output.hidden_states, layers) if layers else None
    draft_ids = drafter.draft_token_ids
    windows = []
    for begin in range(drafter.prediction_offset, len(ids)):
        if not mask[begin]:
            continue
        state, steps = drafter.new_state(), []
        for k in range(ttt_steps):
            token = begin + k
            if token >= len(ids) or not mask[token]:
                break
            if k == 0:
                seen = features[:, : begin - 1] if features is not None else None
                logits = drafter.extend(state, input_ids[:, :begin], seen)
            else:
                logits = drafter.step(state, input_ids[:, token - 1])
            p = output.logits[0, token - 1].double().softmax(-1)
            best = p.argmax().item()
            found = logits[0].argmax().item()
            found = found if draft_ids is None else draft_ids[found].item()
            p = p if draft_ids is None else p[draft_ids]
            steps.append(NaiveStep(p, logits[0].double().softmax(-1), found == best))
        windows.append(steps)
    return windows


def naive_loss(windows: list[list[NaiveStep]], loss_type: str = "forward_kl", decay: float = 0.8) -> float:
    """Per window start."""
    return sum(decay**k * step.loss(loss_type) for steps in windows for k, step in enumerate(steps)) / len(windows)


def naive_figures(windows: list[list[NaiveStep]], ttt_steps: int) -> dict[str, float]:
    """What the trainer logs about held-out rows."""
    figures = {"loss": naive_loss(windows)}
    for k in range(ttt_steps):
        steps = [window[k] for window in windows if len(window) > k]
        figures[f"step_{k}/loss"] = sum(step.loss("forward_kl") for step in steps) / len(steps)
        figures[f"step_{k}/accuracy"] = sum(step.right for step in steps) / len(steps)
        figures[f"step_{k}/expected_acceptance"] = sum(step.overlap for step in steps) / len(steps)
    survived = 0
    for window in windows:
        for step in window:
            if not step.right:
                break
            survived += 1
    figures["simulated_acceptance_length"] = 1 + survived / len(windows)
    return figures
