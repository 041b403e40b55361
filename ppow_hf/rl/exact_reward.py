# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
r"""
The expected window reward in closed form, for windows that are verified greedily (ours).

Greedy verification accepts exactly the target's own greedy path `a_1 a_2 ...`, so a window drawn from the drafter at
temperature T is accepted up to `k` with probability

    P(k) = prod_{j <= k} q_j(a_j) * (1 - q_{k+1}(a_{k+1}))

where `q_j` is the draft distribution behind the path so far. PPOW's expected reward `E[R(k)]` needs no rollouts then:
it is what the average over infinitely many of them would give, without their variance, and the gradient is exact.
"""

from __future__ import annotations

import torch

from .acceptance import window_mask

__all__ = ["expected_speedup_reward"]


def expected_speedup_reward(
    log_probs: torch.Tensor, cost_ratio: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    E[R(k)] with the paper's `R = k / (k * gamma + 1)`, for `k` the accepted length under greedy verification.

    Args:
        log_probs (`torch.Tensor` of shape `(num_windows, window_size)`):
            Log-probabilities `log q_j(a_j)` that the drafter gives to the target's greedy tokens, each behind the
            greedy tokens before it. `-inf` where the drafter does not know the token.
        cost_ratio (`float`): gamma, one draft step in plain target steps.
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*):
            Positions whose greedy token is known. A window counts as ended at its first masked position.

    Returns:
        `torch.Tensor` of shape `(num_windows,)`, float32: between 0 and `R(window_size)`.

    Raises:
        ValueError: If `cost_ratio` is not above 0, or the shapes differ.
    """
    if not cost_ratio > 0:
        raise ValueError(f"`cost_ratio` must be above 0, got {cost_ratio}.")
    mask = window_mask(mask, log_probs.shape, log_probs.device)
    # Behind a token the drafter does not know (-inf) nothing is accepted; -inf itself has no gradient to multiply.
    known = mask & log_probs.isfinite().cumprod(-1, dtype=torch.int8).bool()
    reach = torch.where(known, log_probs.float(), 0.0).cumsum(-1).exp()
    length = torch.arange(1, log_probs.shape[1] + 1, device=log_probs.device, dtype=torch.float32)
    rewards = length / (length * cost_ratio + 1)
    # E[R(k)] = sum_j (R(j) - R(j - 1)) * P(k >= j)
    gains = rewards - torch.cat([rewards.new_zeros(1), rewards[:-1]])
    return (reach * known * gains).sum(-1)
