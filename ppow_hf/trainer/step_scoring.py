# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a supervised step makes of the drafter's states: losses, metrics and, if wanted, the window reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from .acceptance_losses import TeacherRows, distillation_loss
from .chunked_head import HeadLoss, chosen_log_probs, head_loss
from .greedy_paths import GreedyPaths

if TYPE_CHECKING:
    from ..drafters import DrafterModel
    from .drafter_sft_config import DrafterSFTConfig


class StepScoring:
    """
    Scores every step of a training-time test inside of the drafter's forward pass, where its head is at hand.

    Args:
        drafter ([`DrafterModel`]): The drafter.
        args ([`DrafterSFTConfig`]): Loss and window reward.
        input_ids (`torch.LongTensor` of shape `(batch, length)`): The texts.
        columns (`torch.BoolTensor` of shape `(ttt_steps, batch, length)`): Columns that are scored at each step.
        teacher ([`TeacherRows`]): The target's distributions.
        teacher_row (`torch.LongTensor` of shape `(batch, length)`): Row of `teacher` at every position.
    """

    def __init__(
        self,
        drafter: DrafterModel,
        args: DrafterSFTConfig,
        input_ids: torch.LongTensor,
        columns: torch.Tensor,
        teacher: TeacherRows,
        teacher_row: torch.LongTensor,
    ):
        self.args, self.columns, self.teacher = args, columns, teacher
        self.offset, self.draft_token_ids = drafter.prediction_offset, drafter.draft_token_ids
        self._teacher_row = teacher_row
        self.paths = GreedyPaths(input_ids, drafter, args) if args.window_reward_weight else None
        # For every step, figures of every text of the batch, `(batch,)` each.
        self.sums: list[dict[str, torch.Tensor]] = []
        self.window_rewards: torch.Tensor | None = None
        self._alive: torch.Tensor | None = None

    def __call__(self, step: int, states: torch.Tensor, head: nn.Linear | None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Scores one step.

        Args:
            step (`int`): Index of the step, from 0.
            states (`torch.Tensor` of shape `(rows, hidden_size)`): Inputs of the head at this step's columns; with
                `head=None`, the logits themselves.
            head (`torch.nn.Linear`, *optional*): The drafter's head.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Sum of the losses, and the log-probabilities of the target's greedy
            tokens, `(rows,)`, for the window reward (empty without it).
        """
        batch_index, column = self.columns[step].nonzero(as_tuple=True)
        rows = self._teacher_row[batch_index, column + self.offset - 1 + step]
        argmax = self.teacher.argmax[rows]

        def row_loss(logits: torch.Tensor, block: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            target = self.teacher[rows[block]]
            log_q = logits.log_softmax(-1)
            losses = distillation_loss(
                self.args.loss_type,
                target.probs,
                log_q,
                acceptance_weight=self.args.acceptance_loss_weight,
                negative_entropy=target.negative_entropy,
            )
            with torch.no_grad():
                best = logits.argmax(-1)
                found = best if self.draft_token_ids is None else self.draft_token_ids[best]
                acceptance = torch.minimum(target.probs, log_q.detach().exp()).sum(-1)
            return losses, {"loss": losses, "matches": found == target.argmax, "acceptance": acceptance}

        chosen = self.paths.draft_ids(argmax) if self.paths is not None else None
        temperature = self.args.window_temperature
        scored = self._score(states, head, row_loss, chosen, temperature)
        self._add_sums(step, scored.rows)
        if self.paths is None:
            return scored.total, scored.total.new_zeros(0)
        self.paths.add(step, self.columns[step], argmax)
        return scored.total, scored.log_probs

    @staticmethod
    def _score(states, head, row_loss, chosen, temperature) -> HeadLoss:
        if head is not None and head.bias is None:
            return head_loss(states, head.weight, row_loss, chosen, temperature)
        logits = (states if head is None else head(states)).float()
        losses, others = row_loss(logits, slice(0, len(logits)))
        log_probs = None if chosen is None else chosen_log_probs(logits, chosen, temperature)
        return HeadLoss(losses.sum(), {name: value.detach() for name, value in others.items()}, log_probs)

    def _add_sums(self, step: int, rows: dict[str, torch.Tensor]) -> None:
        columns = self.columns[step]
        text = columns.nonzero(as_tuple=True)[0]

        def by_text(values: torch.Tensor) -> torch.Tensor:
            return _sums_by_index(values, text, len(columns))

        # For every column, whether this step and all before it were right: the greedy window survives up to here.
        matches = rows["matches"] if rows else columns.new_zeros(0)
        grid = torch.zeros_like(columns)
        grid[columns] = matches
        self._alive = grid if self._alive is None else grid & self._alive
        none = torch.zeros(0, device=columns.device)
        self.sums.append(
            {
                "count": columns.sum(1).float(),
                "loss": by_text(rows.get("loss", none)),
                "correct": by_text(matches),
                "acceptance": by_text(rows.get("acceptance", none)),
                "chain": self._alive.sum(1).float(),
            }
        )

    def total(self, scores: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """
        The loss of a batch, summed over its window starts.

        Args:
            scores (`list[tuple[torch.Tensor, torch.Tensor]]`): What the calls returned, in order.

        Returns:
            `torch.Tensor`: A scalar.
        """
        total = sum(self.args.step_loss_decay**step * score[0] for step, score in enumerate(scores))
        total = self.args.distillation_weight * total
        if self.paths is None:
            return total
        rewards = self.paths.rewards([score[1] for score in scores], self.columns)
        starts = self.columns[0]
        self.window_rewards = _sums_by_index(rewards.detach(), starts.nonzero(as_tuple=True)[0], len(starts))
        return total - self.args.window_reward_weight * rewards.sum()


def _sums_by_index(values: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """Sums of the values that share an index, `(size,)`, in float32."""
    return torch.zeros(size, device=index.device).index_add_(0, index, values.float())
