# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Acceptance length without decoding: what speculative decoding would have done on texts that are already there. Ours.

The text does not depend on the drafter, so every drafter can be replayed on the same texts: one target pass, the
drafter's window from every position in one batch, and the cycles follow by walking through the text. It takes a
fraction of decoding's time, which makes comparisons over many prompts affordable.

- At temperature 0 the cycles are those of decoding (up to near-ties of the target between shapes in low precision).
- When sampling, `x` is drafted with the chance `q(x)` and then survives with `min(1, p(x) / q(x))`; the text's token
  is `x` with the chance `p(x)` whatever the drafter does. Given the text, its token was drafted and accepted with the
  chance `min(q(x), p(x)) / p(x) = min(1, q(x) / p(x))`, independently of everything behind it. The expected number of
  cycles over all that decoding could have drawn follows exactly, where decoding gives one draw of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..drafters import DrafterModel
from ..drafters.draft_vocabulary import draft_id_table
from ..rl.rollout import column_log_probs
from ..rl.target_prefix import ROWS_IN_CACHE, TargetPrefix, target_prefix
from ..row_blocks import rows_per_block


@dataclass
class ReplayedText:
    """
    Decoding one text with windows of a fixed size.

    Args:
        committed (`int`): Tokens committed by the cycles: all of the response but its first, which the prefill gives.
        verifications (`float`): Cycles; when sampling, their expected number.
        accepted (`list[int]`, *optional*): Accepted draft tokens of each cycle; not known when sampling.
    """

    committed: int
    verifications: float
    accepted: list[int] | None = None

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
    prefix: TargetPrefix | None = None,
) -> torch.LongTensor:
    """
    Length of the accepted prefix of the drafter's greedy window from every position of a greedy text.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter, bound to it.
        input_ids (`torch.LongTensor` of shape `(1, length)`): Prompt and the target's greedy response.
        first (`int`): First position a window may start at, at least 2.
        window_size (`int`): Draft tokens per window.
        prefix ([`TargetPrefix`], *optional*): The target's pass over the text, with the drafter's features, where it
            is at hand.

    Returns:
        `torch.LongTensor` of shape `(length - first,)`: accepted tokens of the window that starts at `first + i`.
    """
    prefix = prefix or _pass(target, input_ids, drafter.feature_layer_ids)
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


@torch.no_grad()
def acceptance_from_everywhere(
    target: PreTrainedModel,
    drafter: DrafterModel,
    input_ids: torch.LongTensor,
    first: int,
    window_size: int,
    temperature: float,
    prefix: TargetPrefix | None = None,
) -> torch.Tensor:
    """
    Chance that the tokens of a sampled text were drafted and accepted, for windows from every position of it.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter, bound to it.
        input_ids (`torch.LongTensor` of shape `(1, length)`): Prompt and a response sampled from the target, without
            top-k or top-p.
        first (`int`): First position a window may start at, at least 2.
        window_size (`int`): Draft tokens per window.
        temperature (`float`): The response was sampled at, and the drafter drafts at.
        prefix ([`TargetPrefix`], *optional*): The target's pass over the text, with the drafter's features, where it
            is at hand.

    Returns:
        `torch.Tensor` of shape `(length - first, window_size)`, float32: chance of the token at `first + i + j`, if
        the window began at `first + i` and all its tokens before were accepted; 0 behind the end of the text.
    """
    prefix = prefix or _pass(target, input_ids, drafter.feature_layer_ids)
    length, device = input_ids.shape[1], input_ids.device
    starts = torch.arange(first, length, device=device)[None]
    target_log_probs = torch.zeros(length + window_size, device=device)
    # Projected and read a block at a time.
    for places in starts[0].split(rows_per_block(device, ROWS_IN_CACHE, drafter.config.vocab_size)):
        logits = prefix.logits_at(torch.zeros_like(places), places - 1)
        target_log_probs[places] = column_log_probs(logits, input_ids[0, places], temperature).to(device)
    ids = drafter.draft_token_ids
    table = None if ids is None else draft_id_table(ids.to(device), drafter.config.vocab_size)
    text = torch.nn.functional.pad(input_ids[0], (0, window_size))
    chances = torch.zeros(length - first, window_size, device=device)
    state, logits = drafter.begin_windows(input_ids, prefix.features, starts)
    for k in range(window_size):
        places = starts[0] + k
        tokens = text[places]
        columns = tokens if table is None else table[tokens]
        known = (columns >= 0) & (places < length)
        draft = column_log_probs(logits[0], columns.clamp_min(0), temperature)
        chances[:, k] = torch.where(known, (draft - target_log_probs[places]).clamp(max=0).exp(), 0.0)
        if k + 1 < window_size:
            logits = drafter.step_windows(state, tokens[None])
    return chances


def expected_replay(chances: Sequence[Sequence[float]], window_size: int) -> ReplayedText:
    """
    Expected number of cycles of a sampled text.

    Args:
        chances (`Sequence[Sequence[float]]` of shape `(length, at least window_size)`): From
            [`acceptance_from_everywhere`], from the first position a window can start at.
        window_size (`int`): Draft tokens per window; windows are shorter where the text ends, as in [`replay`].

    Returns:
        [`ReplayedText`], without `accepted`.
    """
    remaining = len(chances)
    begins = [0.0] * (remaining + 1)  # the chance that a cycle begins there
    begins[0] = 1.0
    for position, row in enumerate(chances):
        reach = begins[position]
        taken = min(window_size, remaining - position - 1)
        for k in range(taken):
            begins[position + k + 1] += reach * (1.0 - row[k])
            reach *= row[k]
        begins[position + taken + 1] += reach
    return ReplayedText(remaining, sum(begins[:remaining]))


def replay_texts(
    target: PreTrainedModel,
    drafters: Mapping[str, DrafterModel],
    texts: Sequence[tuple[list[int], int]],
    window_sizes: Sequence[int],
    temperature: float = 0.0,
    progress: bool = False,
) -> dict[str, dict[int, list[ReplayedText]]]:
    """
    Replays drafters on texts of their target. The target passes over every text once for all of them, and a drafter
    drafts the longest windows only: shorter ones are their beginnings.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafters (`Mapping[str, DrafterModel]`): The drafters by name.
        texts (`Sequence[tuple[list[int], int]]`): Token ids of prompt and response, and the prompt's length. The
            responses are the target's own: greedy ones at temperature 0, else sampled without top-k or top-p.
        window_sizes (`Sequence[int]`): Draft tokens per window, each at least 1.
        temperature (`float`, *optional*, defaults to 0.0): Of the texts.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

    Returns:
        `dict[str, dict[int, list[ReplayedText]]]`: By drafter and window size, one per text.

    Raises:
        ValueError: If a window size is below 1, there is none, the temperature is negative, or a prompt is empty.
    """
    if not window_sizes or min(window_sizes) < 1:
        raise ValueError(f"`window_sizes` must hold sizes of at least 1, got {list(window_sizes)}.")
    if temperature < 0:
        raise ValueError(f"`temperature` must not be negative, got {temperature}.")
    for drafter in drafters.values():
        drafter.bind_target(target)
    found = {name: {size: [] for size in window_sizes} for name in drafters}
    for token_ids, prompt_length in tqdm(texts, unit="text", disable=not progress):
        if prompt_length < 1:
            raise ValueError(f"`texts` must hold prompts of at least one token, got a length of {prompt_length}.")
        first, passes = prompt_length + 1, {}
        input_ids = torch.tensor([token_ids], device=target.device)
        for name, drafter in drafters.items():
            if len(token_ids) <= first:
                outcome = dict.fromkeys(window_sizes, ReplayedText(0, 0, []))
            else:
                layers = tuple(drafter.feature_layer_ids)
                if layers not in passes:
                    passes[layers] = _pass(target, input_ids, layers)
                outcome = _replay_text(target, drafter, input_ids, first, window_sizes, temperature, passes[layers])
            for size in window_sizes:
                found[name][size].append(outcome[size])
    return found


def _pass(target: PreTrainedModel, input_ids: torch.LongTensor, layer_ids: Sequence[int]) -> TargetPrefix:
    return target_prefix(target, input_ids, torch.ones_like(input_ids), layer_ids, keep_cache=False)


def _replay_text(target, drafter, input_ids, first, window_sizes, temperature, prefix) -> dict[int, ReplayedText]:
    longest = max(window_sizes)
    if temperature == 0:
        accepted = accepted_from_everywhere(target, drafter, input_ids, first, longest, prefix).tolist()
        return {size: replay(accepted, size) for size in window_sizes}
    chances = acceptance_from_everywhere(target, drafter, input_ids, first, longest, temperature, prefix).tolist()
    return {size: expected_replay(chances, size) for size in window_sizes}
