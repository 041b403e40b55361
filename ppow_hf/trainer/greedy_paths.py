# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The target's greedy path behind every token of a text, for the exact window reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..drafters import draft_id_table
from ..rl.exact_reward import expected_speedup_reward

if TYPE_CHECKING:
    from ..drafters import DrafterModel
    from .drafter_sft_config import DrafterSFTConfig


class GreedyPaths:
    """
    Follows, over the steps of a training-time test, the windows that start behind every token.

    The test follows the text. It is the target's greedy path as long as the text's tokens are the target's most
    probable ones; behind a token that was sampled otherwise, the path is not known and the window ends.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, length)`): The texts.
        drafter ([`DrafterModel`]): The drafter.
        args ([`DrafterSFTConfig`]): `cost_ratio`.
    """

    def __init__(self, input_ids: torch.LongTensor, drafter: DrafterModel, args: DrafterSFTConfig):
        self.input_ids = input_ids
        self.offset = drafter.prediction_offset
        self.cost_ratio = args.cost_ratio
        self._draft_ids: torch.Tensor | None = None
        ids = drafter.draft_token_ids
        if ids is not None:
            self._draft_ids = draft_id_table(ids, drafter.config.vocab_size)
        self._known: list[torch.Tensor] = []
        self._on_path: torch.Tensor | None = None

    def draft_ids(self, token_ids: torch.LongTensor) -> torch.LongTensor:
        """Draft ids of target ids; -1 for tokens outside the draft vocabulary."""
        return token_ids if self._draft_ids is None else self._draft_ids[token_ids]

    def add(self, step: int, columns: torch.Tensor, argmax: torch.LongTensor) -> None:
        """
        Takes in one step.

        Args:
            step (`int`): Index of the step, from 0.
            columns (`torch.BoolTensor` of shape `(batch, length)`): Which window starts it scored.
            argmax (`torch.LongTensor` of shape `(rows,)`): The target's most probable tokens there, as target ids.
        """
        known = columns if self._on_path is None else columns & self._on_path
        self._known.append(known)
        batch_index, column = columns.nonzero(as_tuple=True)
        follows = torch.zeros_like(columns)
        follows[batch_index, column] = self.input_ids[batch_index, column + self.offset + step] == argmax
        self._on_path = known & follows

    def rewards(self, log_probs: Sequence[torch.Tensor], columns: torch.Tensor) -> torch.Tensor:
        """
        Args:
            log_probs (`Sequence[torch.Tensor]`): For every step, the drafter's log-probabilities of the target's
                greedy tokens, `(rows,)`.
            columns (`torch.BoolTensor` of shape `(steps, batch, length)`): The columns they belong to.

        Returns:
            `torch.Tensor` of shape `(starts,)`: Expected reward of the window behind every column of step 0.
        """
        starts = columns[0]
        grids = []
        for values, mask in zip(log_probs, columns, strict=True):
            grids.append(values.new_zeros(mask.shape).masked_scatter(mask, values)[starts])
        known = torch.stack([known[starts] for known in self._known], dim=-1)
        return expected_speedup_reward(torch.stack(grids, dim=-1), self.cost_ratio, known)
