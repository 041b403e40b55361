# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Drawing tokens from distributions over a vocabulary."""

from __future__ import annotations

import torch


def distribution(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Probabilities and entropy of rows of logits, with one exponential per token and no logarithm.

    Args:
        scores (`torch.Tensor` of shape `(rows, width)`): Logits; `-inf` for impossible tokens.

    Returns:
        `(probs, entropy)`: `(rows, width)` and `(rows, 1)`, in nats. NaN in rows without any possible token.
    """
    log_probs = scores.log_softmax(dim=-1)
    probs = log_probs.exp()
    # An impossible token has 0 times -inf, and adds nothing.
    bounded = log_probs.clamp_min(torch.finfo(log_probs.dtype).min)
    return probs, -torch.linalg.vecdot(probs, bounded).unsqueeze(-1)


def draw_in_turn(probs: torch.Tensor, count: int = 1, generator: torch.Generator | None = None) -> torch.LongTensor:
    """
    Draws without replacement, in order: the first from `probs`, the next from what is left of them, and so on.

    By inversion of the distribution function in float64: one random number per draw, where `torch.multinomial` takes
    one per token of the vocabulary, which costs several times as much.

    Args:
        probs (`torch.Tensor` of shape `(rows, width)`): Probabilities, normalised or not.
        count (`int`, *optional*, defaults to 1): Draws per row.
        generator (`torch.Generator`, *optional*): Source of randomness; the global one by default.

    Returns:
        `torch.LongTensor` of shape `(rows, count)`: the columns drawn. Once a row has no probability left, what is
        drawn from it means nothing.
    """
    left = probs.double() if count == 1 else probs.to(torch.float64, copy=True)
    shape, last = (len(left), 1), left.shape[-1] - 1
    drawn = []
    for turn in range(count):
        if turn:
            left.scatter_(-1, drawn[-1], 0.0)
        mass = left.cumsum(dim=-1)
        points = torch.rand(shape, dtype=torch.float64, device=left.device, generator=generator) * mass[:, -1:]
        # The first column whose mass exceeds the point: never one of probability 0.
        drawn.append(torch.searchsorted(mass, points, right=True).clamp_max_(last))
    return torch.cat(drawn, dim=-1)
