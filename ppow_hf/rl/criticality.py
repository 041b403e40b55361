# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Criticality (ADAW): where the target is sure of itself and the drafter disagrees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..row_blocks import rows_per_block
from .target_prefix import ROWS_IN_CACHE

# A token without probability counts as e^-10000: p * log p is then 0 instead of 0 * inf, and a masked draft logit
# leaves the KL large instead of infinite.
_LOG_FLOOR = -1e4
# Below this share of the target's mass, no draft token stands a chance of being accepted, whatever the drafter learns.
_MIN_MASS = 1e-6


@dataclass
class Criticality:
    """
    Criticality of positions, as [`criticality`] computes it.

    Args:
        confidence (`torch.Tensor` of shape `(positions,)`, float32): C(P), from 0 (uniform) to 1 (one token has all).
        divergence (`torch.Tensor` of shape `(positions,)`, float32): KL(P || Q) in nats, not negative.
        value (`torch.Tensor` of shape `(positions,)`, float32): v = C(P) * KL(P || Q).
    """

    confidence: torch.Tensor
    divergence: torch.Tensor
    value: torch.Tensor


@torch.no_grad()
def criticality(
    target_logits: Callable[[torch.LongTensor], torch.Tensor],
    draft_logits: Callable[[torch.LongTensor], torch.Tensor],
    num_positions: int,
    draft_token_ids: torch.LongTensor | None,
    *,
    chunk_size: int = 256,
    device: torch.device | str | None = None,
) -> Criticality:
    """
    v_t = C(P_t) * KL(P_t || Q_t) with C(P) = 1 - H(P) / log|V| (PPOW, ADAW), P the target and Q the drafter.

    C is taken over the target's whole vocabulary. A drafter with a reduced vocabulary gives every other token no
    probability, which makes the paper's KL infinite; ours restricts P to the draft vocabulary and renormalises it, as
    EAGLE-3's supervised loss does. Where P leaves less than 1e-6 of its mass to the draft vocabulary the divergence
    is 0 (ours): nothing the drafter proposes there can be accepted, so there is nothing for a window to teach.

    Logits are asked for chunk by chunk, so that neither model's logits exist for all positions at once.

    Args:
        target_logits (`Callable`): From positions, a `torch.LongTensor` of shape `(n,)` with values in
            `[0, num_positions)`, to the target's logits `(n, vocab_size)`. Any floating dtype; float32 inside.
        draft_logits (`Callable`): From the same positions to the drafter's logits `(n, draft_vocab_size)` of the same
            next tokens. What a position means is up to the two callables, and must be the same for both.
        num_positions (`int`): Number of positions.
        draft_token_ids (`torch.LongTensor` of shape `(draft_vocab_size,)`, *optional*): Target id of every column of
            the draft logits; `None` when the drafter proposes the whole vocabulary.
        chunk_size (`int`, *optional*, defaults to 256): Positions computed at a time.
        device (`torch.device` or `str`, *optional*): Where the positions passed to the callables and the results
            live. By default the positions are on the CPU (they index tensors of any device) and the results stay
            with the target's logits.

    Returns:
        [`Criticality`]: One entry per position.

    Raises:
        ValueError: If sizes do not fit, or if logits hold NaN or infinity (`-inf` for some tokens is fine).
    """
    if num_positions < 0:
        raise ValueError(f"`num_positions` must not be negative, got {num_positions}.")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
    parts: list[torch.Tensor] = []
    for start in range(0, num_positions, chunk_size):
        positions = torch.arange(start, min(start + chunk_size, num_positions), device=device)
        target, draft = target_logits(positions), draft_logits(positions)
        _check_logits(target, draft, len(positions), draft_token_ids)
        rows = rows_per_block(target.device, ROWS_IN_CACHE, target.shape[-1])
        blocks = zip(target.split(rows), draft.to(target.device).split(rows), strict=True)
        parts += [_chunk(*block, draft_token_ids) for block in blocks]
    stacked = torch.cat(parts, dim=1) if parts else torch.zeros(2, 0, device=device)
    if device is not None:
        stacked = stacked.to(device)
    broken = ~stacked.isfinite().all(dim=0)
    if broken.any():
        raise ValueError(
            f"Criticality is not finite at {int(broken.sum())} of {num_positions} positions (first: "
            f"{int(broken.nonzero()[0])}): `target_logits` or `draft_logits` hold NaN or infinity there. Check the "
            "models' dtype (float16 overflows) and the drafter's weights."
        )
    confidence, divergence = stacked.unbind()
    return Criticality(confidence, divergence, confidence * divergence)


def _check_logits(target: torch.Tensor, draft: torch.Tensor, rows: int, draft_token_ids: torch.Tensor | None) -> None:
    for name, logits in (("target_logits", target), ("draft_logits", draft)):
        if logits.dim() != 2 or logits.shape[0] != rows:
            raise ValueError(
                f"`{name}` was asked for {rows} positions and must return ({rows}, vocabulary), got "
                f"{tuple(logits.shape)}."
            )
    if target.shape[1] < 2:
        raise ValueError(f"`target_logits` must cover a vocabulary of at least 2 tokens, got {target.shape[1]}.")
    width = target.shape[1] if draft_token_ids is None else len(draft_token_ids)
    if draft.shape[1] != width:
        source = "the target's vocabulary" if draft_token_ids is None else "`draft_token_ids`"
        raise ValueError(f"`draft_logits` returned {draft.shape[1]} columns, but {source} has {width} tokens.")


def _chunk(target: torch.Tensor, draft: torch.Tensor, draft_token_ids: torch.Tensor | None) -> torch.Tensor:
    """Confidence and divergence of a few positions, `(2, n)` in float32."""
    log_p = torch.log_softmax(target.float(), dim=-1).clamp_min_(_LOG_FLOOR)
    entropy = -(log_p.exp() * log_p).sum(-1)
    confidence = (1 - entropy / math.log(target.shape[-1])).clamp(0, 1)

    reachable = None
    if draft_token_ids is not None:
        log_p = log_p.index_select(-1, draft_token_ids.to(log_p.device))
        log_mass = log_p.logsumexp(-1, keepdim=True)
        # In log space the renormalised row is exact however little mass is left.
        log_p = (log_p - log_mass).clamp_min_(_LOG_FLOOR)
        reachable = log_mass.squeeze(-1) >= math.log(_MIN_MASS)
    log_q = torch.log_softmax(draft.float(), dim=-1).clamp_min_(_LOG_FLOOR)
    # Rounding can leave a KL of equal distributions just below 0.
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min_(0)
    if reachable is not None:
        # Multiplying keeps the NaN of a broken drafter visible, where `torch.where` would hide it.
        divergence = divergence * reachable
    return torch.stack([confidence, divergence])


def window_values(values: torch.Tensor, window_size: int) -> torch.Tensor:
    """
    Priority of every window: the mean of v over it (PPOW, ADAW).

    Args:
        values (`torch.Tensor` of shape `(batch, length)`): v of the distribution that *token* t is drawn from, at
            index t: the target's and the drafter's logits of row `t - 1` of a teacher-forced pass. 0 where there is
            none (padding, first token).
        window_size (`int`): Tokens in a window, K.

    Returns:
        `torch.Tensor` of shape `(batch, length)`, float32: At n, the mean over `n .. n + K - 1`, the window whose
        first draft token stands at n; 0 where that window leaves the row.

    Raises:
        ValueError: If `window_size` is below 1, or `values` are not a batch of finite numbers >= 0.
    """
    if window_size < 1:
        raise ValueError(f"`window_size` must be at least 1, got {window_size}.")
    if values.dim() != 2:
        raise ValueError(f"`values` must have shape (batch, length), got {tuple(values.shape)}.")
    if not (values.isfinite() & (values >= 0)).all():
        raise ValueError("`values` must be finite and not negative: put 0 where a position has no criticality.")
    length = values.shape[1]
    result = values.new_zeros(values.shape, dtype=torch.float32)
    if window_size > length:
        return result
    total = torch.nn.functional.pad(values.double().cumsum(1), (1, 0))
    # A parallel sum need not be monotone to the last bit, and a negative priority has no meaning.
    means = (total[:, window_size:] - total[:, : length - window_size + 1]).clamp_min(0) / window_size
    result[:, : length - window_size + 1] = means.float()
    return result
