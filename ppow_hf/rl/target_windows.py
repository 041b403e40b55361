# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the target would have written itself: its own greedy windows, for the proximity reward."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ..row_blocks import rows_per_block
from .target_prefix import ROWS_IN_CACHE, TargetPrefix
from .verification import MAX_PACKED_TOKENS, check_windows, last_logits, packed_pass, use_packing


@torch.no_grad()
def target_windows(
    target: PreTrainedModel,
    prefix: TargetPrefix,
    starts: torch.LongTensor,
    window_size: int,
    *,
    temperature: float = 1.0,
    packed: bool | str = "auto",
    chunk_size: int = 256,
) -> tuple[torch.LongTensor, torch.Tensor]:
    """
    The windows the target itself would write: its most probable tokens, each given the ones before (arXiv 2605.14978,
    the `y` of the proximity reward).

    As long as the text itself is what the target would write, they come from the prefix pass at no cost.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        prefix ([`TargetPrefix`]): Its pass over the texts.
        starts (`torch.LongTensor` of shape `(B, S)`): Position of each window's first token; -1 for no window.
        window_size (`int`): K, tokens per window.
        temperature (`float`, *optional*, defaults to 1.0): Of the distribution the log-probabilities are taken from.
        packed (`bool` or `"auto"`, *optional*, defaults to `"auto"`): As in [`verify_windows`].
        chunk_size (`int`, *optional*, defaults to 256): Positions whose vocabulary is projected at a time.

    Returns:
        `tuple[torch.LongTensor, torch.Tensor]`: Tokens `(B, S, K)` and their log-probabilities, float32, of the same
        shape; zero where there is no window.

    Raises:
        ValueError: As [`verify_windows`].
    """
    if window_size < 1:
        raise ValueError(f"`window_size` must be at least 1, got {window_size}.")
    tokens = starts.new_zeros(*starts.shape, 1, window_size)
    check_windows(prefix, starts, tokens, temperature, chunk_size)
    tokens = tokens[:, :, 0]
    log_probs = torch.zeros(tokens.shape, device=tokens.device)
    valid = starts >= 0
    if not valid.any():
        return tokens, log_probs

    def best(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tops, ids = [], []
        for block in logits.split(rows_per_block(logits.device, ROWS_IN_CACHE, logits.shape[-1])):
            block = block.float() / temperature
            top, id_ = block.max(-1)
            tops.append(top - block.logsumexp(-1))
            ids.append(id_)
        return torch.cat(ids).to(tokens.device), torch.cat(tops).to(log_probs.device)

    with torch.autocast(prefix.input_ids.device.type, enabled=False):
        known = _from_text(prefix, starts, valid, tokens, log_probs, best, chunk_size)
        open_ = valid & (known < window_size)
        if open_.any():
            continue_ = _continue_packed if use_packing(target, prefix, packed) else _continue_one_by_one
            continue_(target, prefix, starts, known, open_, tokens, log_probs, best, chunk_size)
    return tokens, log_probs


def _from_text(prefix, starts, valid, tokens, log_probs, best, chunk_size: int) -> torch.LongTensor:
    """Writes the tokens that the prefix pass gives away; returns how many of each window, `(B, S)`."""
    size, device = tokens.shape[-1], starts.device
    lengths = prefix.lengths.to(device)[:, None, None]
    places = starts[..., None] + torch.arange(size, device=device)
    read = valid[..., None] & (places <= lengths)
    # Windows overlap: every position is projected once.
    sources = (places - 1).clamp(0, prefix.input_ids.shape[1] - 1)
    wanted = torch.zeros_like(prefix.input_ids, dtype=torch.bool, device=device)
    rows = torch.arange(len(starts), device=device)[:, None, None].expand_as(places)
    wanted[rows[read], sources[read]] = True
    ids, top = tokens.new_zeros(wanted.shape), log_probs.new_zeros(wanted.shape)
    for at in wanted.nonzero().split(chunk_size):
        ids[at[:, 0], at[:, 1]], top[at[:, 0], at[:, 1]] = best(prefix.logits_at(at[:, 0], at[:, 1]))

    preferred = ids[rows, sources]
    text = prefix.input_ids.to(device)[rows, places.clamp(max=prefix.input_ids.shape[1] - 1)]
    agrees = read & (places < lengths) & (text == preferred)
    # A token is known if the text before it is what the target wrote; the one at the first difference is, too.
    reached = torch.cat([torch.ones_like(agrees[..., :1]), agrees[..., :-1].cumprod(-1).bool()], dim=-1) & read
    tokens[reached], log_probs[reached] = preferred[reached], top[rows, sources][reached]
    return reached.sum(-1)


def _continue_packed(target, prefix, starts, known, open_, tokens, log_probs, best, chunk_size: int) -> None:
    """Greedy continuation of all open windows side by side, one token of each per pass."""
    size = tokens.shape[-1]
    most = int(open_.sum(-1).max())
    order = open_.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :most]
    alive = open_.gather(1, order)
    known = torch.where(alive, known.gather(1, order), size)
    rows = torch.arange(len(starts), device=starts.device)[:, None].expand_as(order)
    # The last token known differs from the text (or lies behind it): it is the first to be fed.
    first = torch.where(alive, starts.gather(1, order) + known - 1, 1)
    current = torch.where(alive, tokens[rows, order, (known - 1).clamp(max=size - 1)], 0)
    per_pass = MAX_PACKED_TOKENS if prefix.head is not None else max(1, chunk_size // len(starts))
    for part in torch.arange(most, device=starts.device).split(per_pass):
        if not alive[:, part].any():
            continue
        position, token = known[:, part].clone(), current[:, part]
        last = int((starts.gather(1, order) + size - 2)[:, part][alive[:, part]].max())
        steps = size - int(position.min())
        # Windows that are done are fed on, unread, until the last one is.
        packed = packed_pass(target, prefix, first[:, part], keep=steps > 1, last_position=last)
        for _ in range(steps):
            states = packed.feed(token[..., None])[:, :, 0]
            live = position < size
            chosen = [best(prefix.project(chunk)) for chunk in states[live.to(states.device)].split(chunk_size)]
            token = torch.zeros_like(token).masked_scatter(live, torch.cat([ids for ids, _ in chosen]))
            at = rows[:, part][live], order[:, part][live], position[live]
            tokens[at], log_probs[at] = token[live], torch.cat([top for _, top in chosen])
            position = position + 1


def _continue_one_by_one(target, prefix, starts, known, open_, tokens, log_probs, best, chunk_size: int) -> None:
    """Greedy continuation by plain passes, one window after another."""
    for row, column in open_.nonzero().tolist():
        text = prefix.input_ids[row, : int(starts[row, column])]
        for place in range(int(known[row, column]), tokens.shape[-1]):
            ids = torch.cat([text, tokens[row, column, :place].to(text.device)])
            token, top = best(last_logits(target, ids[None], 1)[0])
            tokens[row, column, place], log_probs[row, column, place] = token[0], top[0]
