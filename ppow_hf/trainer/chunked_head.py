# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Vocabulary projection and row-wise loss in one pass over small blocks of rows.

Logits of a thousand rows over ten thousand tokens are 40 MB, and a loss on them makes a dozen tensors of that size,
which costs far more than the projection itself: memory traffic on a GPU, page faults on a CPU. Here a block of rows is
widened, scored and differentiated while it is in the cache; only its gradient is kept. Ours, in the manner of fused
linear cross-entropy kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..row_blocks import rows_per_block

RowLoss = Callable[[torch.Tensor, slice], tuple[torch.Tensor, dict[str, torch.Tensor]]]
_ROWS = 128


@dataclass
class HeadLoss:
    """
    What [`head_loss`] returns for `N` rows.

    Args:
        total (`torch.Tensor`): Sum of the rows' losses, with a gradient.
        rows (`dict[str, torch.Tensor]`): What the row loss returned beside it, each `(N, ...)`, without gradient.
        log_probs (`torch.Tensor` of shape `(N,)`, *optional*): Log-probabilities of the chosen tokens, float32, with a
            gradient.
    """

    total: torch.Tensor
    rows: dict[str, torch.Tensor]
    log_probs: torch.Tensor | None = None


def head_loss(
    states: torch.Tensor,
    weight: torch.Tensor,
    row_loss: RowLoss,
    chosen: torch.LongTensor | None = None,
    temperature: float = 1.0,
) -> HeadLoss:
    """
    Applies a head without bias to states, and a loss to every row of logits.

    Args:
        states (`torch.Tensor` of shape `(N, hidden_size)`): Inputs of the head.
        weight (`torch.Tensor` of shape `(vocab_size, hidden_size)`): The head.
        row_loss (`Callable`): Given float32 logits `(n, vocab_size)` and the slice of rows they belong to, returns
            their losses `(n,)` and a dict of further tensors with `n` rows.
        chosen (`torch.LongTensor` of shape `(N,)`, *optional*): Tokens whose log-probability is wanted; -1 for none,
            which gives `-inf`.
        temperature (`float`, *optional*, defaults to 1.0): Divides the logits behind these log-probabilities.

    Returns:
        [`HeadLoss`].
    """
    if torch.is_autocast_enabled(states.device.type):
        dtype = torch.get_autocast_dtype(states.device.type)
        states, weight = states.to(dtype), weight.to(dtype)
    with torch.autocast(states.device.type, enabled=False):
        rows: dict[str, list[torch.Tensor]] = {}
        total, log_probs = _HeadLoss.apply(states, weight, row_loss, rows, chosen, temperature)
    gathered = {name: torch.cat(parts) for name, parts in rows.items()}
    return HeadLoss(total, gathered, log_probs if chosen is not None else None)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, row_loss, rows, chosen, temperature):
        needs_grad = states.requires_grad or weight.requires_grad
        # One product for all rows; every block's gradient takes the place of its logits.
        table = states @ weight.T
        total = states.new_zeros((), dtype=torch.float32)
        log_probs = states.new_zeros(len(states), dtype=torch.float32)
        size = rows_per_block(states.device, _ROWS, len(weight))
        for start in range(0, len(states), size):
            block = slice(start, min(start + size, len(states)))
            logits = table[block].float().requires_grad_(needs_grad)
            with torch.set_grad_enabled(needs_grad):
                losses, others = row_loss(logits, block)
                loss = losses.sum()
            total += loss.detach()
            if chosen is not None:
                log_probs[block] = chosen_log_probs(logits.detach(), chosen[block], temperature)
            for name, value in others.items():
                rows.setdefault(name, []).append(value.detach())
            if needs_grad:  # last: in float32 `logits` is a view of what is written over
                table[block] = torch.autograd.grad(loss, logits)[0]
        if needs_grad:
            ctx.save_for_backward(states, weight, table @ weight, table.T @ states)
        ctx.chosen, ctx.temperature = chosen, temperature
        ctx.mark_non_differentiable(*([] if chosen is not None else [log_probs]))
        return total, log_probs

    @staticmethod
    def backward(ctx, total_gradient, log_prob_gradient):
        states, weight, states_gradient, weight_gradient = ctx.saved_tensors
        states_gradient, weight_gradient = states_gradient * total_gradient, weight_gradient * total_gradient
        if ctx.chosen is not None and log_prob_gradient is not None and bool((log_prob_gradient != 0).any()):
            # The logits are cheaper to make again than to keep.
            table = states @ weight.T
            size = rows_per_block(states.device, _ROWS, len(weight))
            for start in range(0, len(states), size):
                block = slice(start, min(start + size, len(states)))
                # d log q(a) / d logits = (one-hot of a - q) / T
                scale = log_prob_gradient[block] / ctx.temperature
                known = ctx.chosen[block] >= 0
                scale = torch.where(known, scale, 0.0)[:, None]
                part = (table[block].float() / ctx.temperature).softmax(-1).mul_(-scale)
                part.scatter_add_(1, ctx.chosen[block].clamp_min(0)[:, None], scale)
                table[block] = part
            states_gradient = states_gradient + table @ weight
            weight_gradient = weight_gradient + table.T @ states
        return states_gradient, weight_gradient, None, None, None, None


def chosen_log_probs(logits: torch.Tensor, chosen: torch.LongTensor, temperature: float) -> torch.Tensor:
    """Log-probabilities of one token per row of logits, `(N,)`, at a temperature; `-inf` where it is -1."""
    logits = logits / temperature
    found = logits.gather(-1, chosen.clamp_min(0)[:, None])[:, 0] - logits.logsumexp(-1)
    return found.masked_fill(chosen < 0, -torch.inf)
