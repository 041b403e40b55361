# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Acceptance length without decoding: what greedy speculative decoding would have done on texts that are already there.

At temperature 0 the text does not depend on the drafter, so every drafter can be replayed on the same texts: one
target pass, the drafter's greedy window from every position in one batch, and the cycles follow by walking through
the text. It takes a fraction of decoding's time and gives its very acceptance length (up to near-ties of the target
between shapes in low precision), which makes comparisons over many prompts affordable. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..drafters import DrafterModel
from ..rl.target_prefix import target_prefix


@dataclass
class ReplayedText:
    """
    Decoding one text with windows of a fixed size.

    Args:
        committed (`int`): Tokens committed by the cycles: all of the response but its first, which the prefill gives.
        verifications (`int`): Cycles.
        accepted (`list[int]`): Accepted draft tokens of each cycle.
    """

    committed: int
    verifications: int
    accepted: list[int]

    @property
    def acceptance_length(self) -> float | None:
        """tau: committed tokens per verification, bonus token included; `None` without a cycle."""
        return self.committed / self.verifications if self.verifications else None


@torch.no_grad()
def accepted_from_everywhere(
    target: PreTrainedModel,
    drafter: DrafterModel,
    input_ids: torch.LongTensor,
    first: int,
    window_size: int,
) -> torch.LongTensor:
    """
    Length of the accepted prefix of the drafter's greedy window from every position of a greedy text.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter, bound to it.
        input_ids (`torch.LongTensor` of shape `(1, length)`): Prompt and the target's greedy response.
        first (`int`): First position a window may start at, at least 2.
        window_size (`int`): Draft tokens per window.

    Returns:
        `torch.LongTensor` of shape `(length - first,)`: accepted tokens of the window that starts at `first + i`.
    """
    prefix = target_prefix(target, input_ids, torch.ones_like(input_ids), drafter.feature_layer_ids, keep_cache=False)
    length = input_ids.shape[1]
    starts = torch.arange(first, length, device=input_ids.device)[None]
    state, logits = drafter.begin_windows(input_ids, prefix.features, starts)
    ids = drafter.draft_token_ids
    alive = torch.ones_like(starts, dtype=torch.bool)
    accepted = torch.zeros_like(starts)
    text = torch.nn.functional.pad(input_ids, (0, window_size), value=-1)
    for k in range(window_size):
        columns = logits.argmax(-1)
        tokens = columns if ids is None else ids.to(columns.device)[columns]
        alive = alive & (tokens == text[:, first + k : length + k])
        accepted += alive
        if k + 1 == window_size or not alive.any():
            break
        logits = drafter.step_windows(state, tokens)
    return accepted[0]


def replay(accepted: Sequence[int], window_size: int) -> ReplayedText:
    """
    Walks through a text cycle by cycle.

    Args:
        accepted (`Sequence[int]`): From [`accepted_from_everywhere`], from the first position a window can start at.
        window_size (`int`): Draft tokens per window; windows are shorter where the text ends, as in decoding, which
            leaves room for the target's own token.

    Returns:
        [`ReplayedText`].
    """
    cycles = []
    position, remaining = 0, len(accepted)
    while position < remaining:
        taken = min(int(accepted[position]), window_size, remaining - position - 1)
        cycles.append(taken)
        position += taken + 1
    return ReplayedText(remaining, len(cycles), cycles)


def replay_texts(
    target: PreTrainedModel,
    drafter: DrafterModel,
    texts: Sequence[tuple[list[int], int]],
    window_size: int,
    progress: bool = False,
) -> list[ReplayedText]:
    """
    Replays a drafter on greedy texts of its target.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
        texts (`Sequence[tuple[list[int], int]]`): Token ids of prompt and greedy response, and the prompt's length.
        window_size (`int`): Draft tokens per window, at least 1.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

    Returns:
        `list[ReplayedText]`: One per text.

    Raises:
        ValueError: If `window_size` is below 1, or a prompt is empty.
    """
    if window_size < 1:
        raise ValueError(f"`window_size` must be at least 1, got {window_size}.")
    drafter.bind_target(target)
    results = []
    for token_ids, prompt_length in tqdm(texts, unit="text", disable=not progress):
        if prompt_length < 1:
            raise ValueError(f"`texts` must hold prompts of at least one token, got a length of {prompt_length}.")
        first = prompt_length + 1
        if len(token_ids) <= first:
            results.append(ReplayedText(0, 0, []))
            continue
        input_ids = torch.tensor([token_ids], device=target.device)
        accepted = accepted_from_everywhere(target, drafter, input_ids, first, window_size)
        results.append(replay(accepted.tolist(), window_size))
    return results
