# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Windows that could have been drafted where the target sampled a text (ours).

Sampling is lossless: whatever the windows, texts follow the target's own law. What rejection sampling (Leviathan et
al. 2023) did can therefore be drawn afterwards. Where the text goes on with `x`, the drafter had drawn `x` and it was
accepted with probability `min(1, q(x) / p(x))`; else it had drawn a token in proportion to `max(0, q - p)`, whatever
the text goes on with, and that was rejected. Behind a rejected token the drafter went on by itself. So all policies
can be compared on the same texts and draws.
"""

from __future__ import annotations

import torch
from transformers import LogitsProcessorList, PreTrainedModel, TemperatureLogitsWarper

from ..drafters import DrafterModel
from ..drafters.draft_vocabulary import draft_id_table
from ..generation.divergence import window_divergence
from ..generation.draws import draw_in_turn
from ..generation.window_loop import DraftSampler
from ..rl.target_prefix import ROWS_IN_CACHE, target_prefix
from ..row_blocks import rows_per_block
from .simulation import RecordedWindows


@torch.no_grad()
def record_sampled_windows(
    target: PreTrainedModel,
    drafter: DrafterModel,
    input_ids: torch.LongTensor,
    first: int,
    window_size: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    kl: bool = False,
) -> RecordedWindows:
    """
    Draws one window from every position of a sampled text, by the law of what decoding would have drafted there given
    the text.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter, bound to it.
        input_ids (`torch.LongTensor` of shape `(1, length)`): Prompt and a response sampled from the target, without
            top-k or top-p.
        first (`int`): First position a window may start at: behind the prompt and the first token of the response.
        window_size (`int`): Draft tokens per window.
        temperature (`float`, *optional*, defaults to 1.0): The response was sampled at, and the drafter drafts at.
        generator (`torch.Generator`, *optional*): Source of randomness, on the drafter's device; the global one by
            default.
        kl (`bool`, *optional*, defaults to `False`): Record KL divergences too.

    Returns:
        [`RecordedWindows`]: Place `i` is the window that starts at `first + i`.
    """
    prefix = target_prefix(target, input_ids, torch.ones_like(input_ids), drafter.feature_layer_ids, keep_cache=False)
    length, device = input_ids.shape[1], input_ids.device
    starts = torch.arange(first, length, device=device)[None]
    ids = drafter.draft_token_ids
    warpers = [TemperatureLogitsWarper(float(temperature))] if temperature != 1 else []
    sampler = DraftSampler(
        ids, drafter.config.vocab_size, LogitsProcessorList(warpers), do_sample=True, generator=generator
    )
    table = None if ids is None else draft_id_table(ids.to(device), drafter.config.vocab_size)
    text = input_ids[0]
    places = length - first
    alive = torch.ones(places, dtype=torch.bool, device=device)
    accepted = torch.zeros(places, dtype=torch.long, device=device)
    variation: list[list[float]] = [[] for _ in range(places)]
    divergence: list[list[float]] = [[] for _ in range(places)]
    block = rows_per_block(device, ROWS_IN_CACHE, drafter.config.vocab_size)
    stats = []
    state, logits = drafter.begin_windows(input_ids, prefix.features, starts)
    for k in range(window_size):
        scores = sampler.scores(logits[0], None)
        # By the drafter's own law, which holds behind a rejected token.
        _, tokens, values = sampler.draw(scores)
        tokens, values = tokens.clone(), values.clone()
        going_on = torch.zeros_like(alive)
        # What follows the text's last token was never decoded.
        reached = (alive & (starts[0] + k < length)).nonzero()[:, 0]
        for rows in reached.split(block):
            target_scores = prefix.logits_at(torch.zeros_like(rows), first + rows + k - 1).float() / temperature
            found = window_divergence([scores[rows]], target_scores, sampler, kl=kl)
            for parts, column in zip((variation, divergence), found, strict=True):
                for place, value in zip(rows.tolist(), column, strict=False):
                    parts[place].append(value)
            truth = text[first + rows + k]
            columns = truth if table is None else table[truth]
            p, q = target_scores.softmax(-1), scores[rows].softmax(-1)
            of_truth = q.gather(-1, columns.clamp_min(0)[:, None])[:, 0].masked_fill(columns < 0, 0.0)
            chance = of_truth / p.gather(-1, truth[:, None])[:, 0]
            taken = torch.rand(chance.shape, device=device, generator=generator) < chance
            left = (q - sampler.probabilities_at(p)).clamp_min(0)
            chosen = torch.where(taken, columns, draw_in_turn(left, 1, generator)[:, 0])
            tokens[rows] = chosen if ids is None else ids[chosen]
            values[rows, 3] = tokens[rows].to(values.dtype)
            values[rows, 4] = q.gather(-1, chosen[:, None])[:, 0]
            going_on[rows] = taken
        alive = going_on
        accepted += alive
        stats.append(values)
        if k + 1 < window_size:
            logits = drafter.step_windows(state, tokens[None])
    return RecordedWindows(torch.stack(stats, dim=1).cpu(), accepted.tolist(), variation, divergence)
