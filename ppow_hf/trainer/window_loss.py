# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The loss of PPOW on rolled-out windows, a few windows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..rl import entropy, expected_length_loss, policy_loss, target_kl
from ..row_blocks import rows_per_block
from .chunked_head import chosen_log_probs

if TYPE_CHECKING:
    from .ppow_config import PPOWConfig
    from .window_experience import Experience

BlockLoss = Callable[[torch.Tensor, slice], tuple[torch.Tensor, dict[str, torch.Tensor]]]
# Rows of logits in a block: few enough to stay in a processor's cache with what a loss makes of them.
_ROWS = 96


def blockwise_loss(logits: torch.Tensor, block_loss: BlockLoss) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    A loss that is a sum over windows, made and differentiated in blocks of windows (ours).

    Logits of a thousand positions over ten thousand tokens are 40 MB, and a loss makes many tensors of that size. Here
    a block is widened, scored and differentiated while it is in the cache; only its gradient is kept.

    Args:
        logits (`torch.Tensor` of shape `(num_windows, window_size, draft_vocab_size)`): In any floating dtype.
        block_loss (`Callable`): Given a block's logits in float32 and the slice of windows they belong to, returns
            their share of the loss, a scalar, and a dict of scalars to be summed over the blocks.

    Returns:
        `tuple`: The loss, a float32 scalar with a gradient, and the sums, without.
    """
    sums: dict[str, torch.Tensor] = {}
    return _Blockwise.apply(logits, block_loss, sums), sums


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, block_loss, sums):
        needs_grad = logits.requires_grad
        rows = rows_per_block(logits.device, _ROWS, logits.shape[-1])
        windows = max(1, rows // max(logits.shape[1], 1))
        gradient = torch.empty_like(logits) if needs_grad else None
        total = logits.new_zeros((), dtype=torch.float32)
        # At least one block, so that no window gives the names of the sums all the same.
        for start in range(0, max(len(logits), 1), windows):
            block = slice(start, min(start + windows, len(logits)))
            part = logits[block].detach().float().requires_grad_(needs_grad)
            with torch.set_grad_enabled(needs_grad):
                loss, others = block_loss(part, block)
            total += loss.detach()
            for name, value in others.items():
                sums[name] = sums.get(name, 0.0) + value.detach()
            if needs_grad:
                gradient[block] = torch.autograd.grad(loss, part)[0]
        if needs_grad:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, total_gradient):
        (gradient,) = ctx.saved_tensors
        return gradient * total_gradient.to(gradient.dtype), None, None


@dataclass
class WindowLoss:
    """
    Clipped policy gradient, KL to the target and expected accepted length of windows (see [`~ppow_hf.rl.losses`]).

    Args:
        args ([`PPOWConfig`]): Weights and kinds of the parts.
        experience ([`Experience`]): The windows.
        fresh (`bool`): Whether these logits are those of the very drafter that rolled the windows out.
        tokens, reached, windows (`torch.Tensor`, scalars): What the sums are divided by: drafted tokens, their sum of
            weights by reach, and windows.
    """

    args: PPOWConfig
    experience: Experience
    fresh: bool
    tokens: torch.Tensor
    reached: torch.Tensor
    windows: torch.Tensor

    def __call__(self, logits: torch.Tensor, block: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The windows of a block: their share of the loss, and sums for [`WindowLoss.metrics`]."""
        args, experience = self.args, self.experience
        mask, old = experience.mask[block], experience.old_log_probs[block]
        probs, reach = experience.target_probs[block], experience.reach[block]
        tempered = logits / args.rollout_temperature
        columns = experience.columns[block]
        log_probs = chosen_log_probs(tempered.flatten(0, 1), columns.flatten(), 1.0).view(columns.shape)
        policy, statistics = policy_loss(
            log_probs,
            None if self.fresh else old,
            experience.advantages[block],
            mask,
            clip=args.epsilon,
            denominator=self.tokens,
        )
        if args.acceptance == "greedy":
            tempered = logits
        by_reach = args.kl_weighting == "reach"
        divergence = target_kl(
            tempered,
            probs,
            args.kl_direction,
            mask,
            weights=reach if by_reach else None,
            denominator=self.reached if by_reach else self.tokens,
        )
        loss = args.policy_weight * policy + args.beta * divergence
        drift = torch.where(mask, log_probs.detach() - old, 0.0)
        count = mask.sum()
        sums = {
            "policy": policy,
            "kl": divergence,
            "clipped": statistics["clip_ratio"] * count,
            "entropy": entropy(logits.detach(), mask) * count,
            "drift": drift.abs().sum(),
        }
        if args.expected_length_weight:
            length = expected_length_loss(tempered, probs, mask, denominator=self.windows)
            loss = loss + args.expected_length_weight * length
            sums["length"] = length
        return loss, sums

    def metrics(self, sums: dict[str, torch.Tensor]) -> dict[str, tuple[float, float]]:
        """Sums and counts of what is logged, from the sums over all blocks."""
        experience = self.experience
        count = float(experience.mask.sum())
        by_reach = self.args.kl_weighting == "reach"
        weight = float((experience.reach * experience.mask).sum()) if by_reach else count
        metrics = {
            "policy_loss": (float(sums["policy"]) * float(self.tokens), count),
            "kl": (float(sums["kl"]) * float(self.reached if by_reach else self.tokens), weight),
            "clip_ratio": (float(sums["clipped"]), count),
            "entropy": (float(sums["entropy"]), count),
            # What the same windows' log-probabilities differ by between rollout and training pass.
            "log_prob_drift": (float(sums["drift"]), count),
        }
        if "length" in sums:
            length = -float(sums["length"]) * float(self.windows)
            metrics["expected_length"] = (length, float(experience.mask.any(-1).sum()))
        return metrics
