# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Grouped rollouts: G windows of K draft tokens from each of many places of many texts, in one batch.

The drafter's own state is fed back exactly as in decoding, and the loop that draws the tokens is the decoding loop
itself ([`~ppow_hf.generation.window_loop.draft_window`]): what is trained is what runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper

from ..drafters import DrafterModel
from ..generation.policies import make_policy
from ..generation.window_config import WindowConfig
from ..generation.window_loop import DraftSampler, draft_window
from ..row_blocks import rows_per_block
from .target_prefix import ROWS_IN_CACHE


@dataclass
class Rollouts:
    """
    Windows drafted from `S` starts in each of `B` texts, `G` from each start, `K` tokens long.

    Args:
        starts (`torch.LongTensor` of shape `(B, S)`): Position of each window's first draft token; -1 for none.
        tokens (`torch.LongTensor` of shape `(B, S, G, K)`): Draft tokens, as target ids.
        columns (`torch.LongTensor` of shape `(B, S, G, K)`): The same tokens as columns of the draft logits.
        log_probs (`torch.Tensor` of shape `(B, S, G, K)`, float32): Log-probability of each token under the draft
            distribution at the rollout temperature. For a greedy window: of its tokens under that distribution too.
        mask (`torch.Tensor` of shape `(B, S, G, K)`, bool): `False` behind a token that ends the text, and for missing
            starts.
    """

    starts: torch.LongTensor
    tokens: torch.LongTensor
    columns: torch.LongTensor
    log_probs: torch.Tensor
    mask: torch.Tensor


class _GroupSampler(DraftSampler):
    """
    Samples, except in the rows that take the drafter's most probable token, as greedy decoding would.

    Rows are drawn from in blocks: the probabilities of a thousand windows are 40 MB and more, and a CPU that fetches
    tensors of that size anew for every token spends several times as long on them as it spends on drawing.
    """

    def __init__(self, *args, greedy_rows: torch.Tensor | None = None, **kwargs):
        super().__init__(*args, do_sample=True, **kwargs)
        self.greedy_rows = greedy_rows

    def draw(self, scores: torch.Tensor) -> tuple[torch.LongTensor, torch.LongTensor, torch.Tensor]:
        blocks = [super(_GroupSampler, self).draw(block) for block in scores.split(_rows(scores))]
        columns, token_ids, stats = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        if self.greedy_rows is None:
            return columns, token_ids, stats
        columns = torch.where(self.greedy_rows, scores.argmax(dim=-1), columns)
        return columns, self.draft_token_ids[columns] if self.mapped else columns, stats


@torch.no_grad()
def rollout_windows(
    drafter: DrafterModel,
    input_ids: torch.LongTensor,
    features: torch.Tensor | None,
    starts: torch.LongTensor,
    *,
    window_size: int,
    group_size: int,
    temperature: float = 1.0,
    greedy_window: bool = False,
    eos_token_ids: frozenset[int] = frozenset(),
    generator: torch.Generator | None = None,
) -> Rollouts:
    """
    Drafts groups of windows.

    Args:
        drafter ([`DrafterModel`]): The policy.
        input_ids (`torch.LongTensor` of shape `(B, T)`): Texts, padded on the right.
        features (`torch.Tensor` of shape `(B, T, F)`, *optional*): The target's features of the texts.
        starts (`torch.LongTensor` of shape `(B, S)`): Position of each window's first draft token; -1 for none.
        window_size (`int`): K, tokens per window.
        group_size (`int`): G, windows per start.
        temperature (`float`, *optional*, defaults to 1.0): Of the draft distribution.
        greedy_window (`bool`, *optional*, defaults to `False`): Make the first window of every group the drafter's
            most probable one, so that what greedy decoding runs is always in the comparison (ours).
        eos_token_ids (`frozenset[int]`, *optional*): Tokens that end the text; what is drafted behind them is masked.
        generator (`torch.Generator`, *optional*): Source of randomness.

    Returns:
        [`Rollouts`].

    Raises:
        ValueError: If `window_size`, `group_size` or `temperature` is not positive.
    """
    if window_size < 1:
        raise ValueError(f"`window_size` must be at least 1, got {window_size}.")
    if temperature <= 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}. For the greedy window, `greedy_window`.")
    state, logits = drafter.begin_windows(input_ids, features, starts, group_size)
    batch, num_starts = starts.shape
    rows = batch * num_starts * group_size
    greedy_rows = None
    if greedy_window:
        greedy_rows = torch.arange(rows, device=logits.device) % group_size == 0
    ids = drafter.draft_token_ids
    sampler = _GroupSampler(
        ids if ids is None else ids.to(logits.device),
        drafter.config.vocab_size,
        LogitsProcessorList([] if temperature == 1 else [TemperatureLogitsWarper(float(temperature))]),
        generator=generator,
        greedy_rows=greedy_rows,
    )

    def step(packed, token_ids: torch.LongTensor) -> torch.Tensor:
        return drafter.step_windows(packed, token_ids.view(batch, -1)).flatten(0, 1)

    policy = make_policy(WindowConfig.parse(f"fixed:{window_size}"))
    window = draft_window(
        drafter,
        state,
        logits.repeat_interleave(group_size, dim=1).flatten(0, 1),
        sampler=sampler,
        policies=[policy] * rows,
        sizes=[window_size] * rows,
        record=False,
        step=step,
    )
    log_probs = torch.stack(
        [column_log_probs(scores, window.columns[:, k]) for k, scores in enumerate(window.scores)], dim=1
    )
    shape = (batch, num_starts, group_size, window_size)
    tokens = window.token_ids.view(shape)
    return Rollouts(
        starts=starts,
        tokens=tokens,
        columns=window.columns.view(shape),
        log_probs=log_probs.view(shape),
        mask=text_mask(tokens, eos_token_ids) & (starts != -1)[..., None, None],
    )


def _rows(scores: torch.Tensor) -> int:
    return rows_per_block(scores.device, ROWS_IN_CACHE, scores.shape[-1])


def column_log_probs(logits: torch.Tensor, columns: torch.LongTensor, temperature: float = 1.0) -> torch.Tensor:
    """
    Log-probability of one column of every row, in blocks of rows.

    Args:
        logits (`torch.Tensor` of shape `(rows, width)`): In any floating dtype.
        columns (`torch.LongTensor` of shape `(rows,)`): Which column.
        temperature (`float`, *optional*, defaults to 1.0): Of the distribution.

    Returns:
        `torch.Tensor` of shape `(rows,)`, float32.
    """
    rows = _rows(logits)
    parts = zip(logits.split(rows), columns[:, None].split(rows), strict=True)
    return torch.cat([(x.float() / temperature).log_softmax(-1).gather(-1, chosen)[:, 0] for x, chosen in parts])


def text_mask(tokens: torch.LongTensor, eos_token_ids: frozenset[int]) -> torch.Tensor:
    """`True` up to and including the first token that ends the text, along the last dimension."""
    ends = torch.isin(tokens, torch.tensor(sorted(eos_token_ids), dtype=tokens.dtype, device=tokens.device))
    return (ends.cumsum(-1) - ends.long()) == 0
