# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Group-relative advantages (paper, after GRPO), those among survivors (ours), and which tokens get them."""

from __future__ import annotations

import torch

from .acceptance import prefix_credit_mask, widen, window_mask

__all__ = ["ADVANTAGE_SCALES", "BASELINES", "CREDITS", "group_advantages", "survivor_advantages", "token_advantages"]

ADVANTAGE_SCALES = ("group", "none")
BASELINES = ("group", "survivors")
CREDITS = ("window", "prefix")


def group_advantages(
    rewards: torch.Tensor, scale: str = "group", epsilon: float = 1e-4, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Reward minus the mean of its group, over the group's standard deviation (paper; Bessel's correction and `epsilon`
    as in TRL's `GRPOTrainer`).

    Args:
        rewards (`torch.Tensor` of shape `(num_starts, group_size)` or `(num_starts, group_size, window_size)`):
            Rewards of the windows rolled out from the same start. With a third dimension (per-token rewards, ours)
            every position is compared with the same position of the group's other windows.
        scale (`str`, *optional*, defaults to `"group"`): `"group"` divides by the standard deviation, `"none"` does
            not.
        epsilon (`float`, *optional*, defaults to 1e-4): Added to the standard deviation.
        valid (`torch.BoolTensor` of shape `(num_starts,)` or the shape of `rewards`, *optional*):
            `False` for starts or windows that are missing: they do not enter the mean, their reward may be NaN, and
            their advantage is 0.

    Returns:
        `torch.Tensor` of the shape of `rewards`, at least float32. Exactly 0 for a group whose rewards are all equal,
        and for a group with fewer than two valid windows.

    Raises:
        ValueError: If a shape or `scale` is wrong, there are fewer than two windows in a group, or a valid reward is
            not finite.
    """
    if scale not in ADVANTAGE_SCALES:
        raise ValueError(f"`scale` must be one of {', '.join(ADVANTAGE_SCALES)}, got {scale!r}.")
    if rewards.dim() not in (2, 3) or (len(rewards) and rewards.shape[1] < 2):
        raise ValueError(
            "`rewards` must have the shape (num_starts, group_size[, window_size]) with a group_size of at least 2, "
            f"got {tuple(rewards.shape)}: a single window has nothing to be compared with."
        )
    if epsilon < 0:
        raise ValueError(f"`epsilon` must be at least 0, got {epsilon}.")
    rewards = widen(rewards.detach())
    if valid is None:
        valid = torch.ones_like(rewards, dtype=torch.bool)
    else:
        if valid.shape not in (rewards.shape, rewards.shape[:1]):
            raise ValueError(
                f"`valid` must have the shape {tuple(rewards.shape[:1])} or {tuple(rewards.shape)}, got "
                f"{tuple(valid.shape)}."
            )
        valid = valid.to(device=rewards.device, dtype=torch.bool)
        valid = valid.reshape(valid.shape + (1,) * (rewards.dim() - valid.dim())).expand(rewards.shape)
    if (~rewards.isfinite() & valid).any():
        raise ValueError(
            "`rewards` holds NaN or infinite values among the valid windows. Check the reward functions with "
            "`combine_rewards`, or mark missing windows in `valid`."
        )
    rewards = rewards.masked_fill(~valid, 0.0)
    count = valid.sum(1, keepdim=True)
    centred = (rewards - rewards.sum(1, keepdim=True) / count.clamp_min(1)).masked_fill(~valid, 0.0)
    # Rounding of the mean would otherwise leave a group of equal rewards with tiny advantages of a common sign.
    lowest = rewards.masked_fill(~valid, float("inf")).amin(1, keepdim=True)
    highest = rewards.masked_fill(~valid, float("-inf")).amax(1, keepdim=True)
    centred = torch.where(highest > lowest, centred, 0.0)
    if scale == "none":
        return centred
    deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
    return torch.where(highest > lowest, centred / (deviation + epsilon), 0.0)


def survivor_advantages(
    rewards: torch.Tensor,
    accepted: torch.LongTensor,
    window_size: int,
    scale: str = "group",
    epsilon: float = 1e-4,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Advantages of the tokens of windows that are verified greedily: a window's reward minus the mean reward of the
    other windows of its group that were accepted as far (ours).

    Greedy verification accepts the target's own path and nothing else, so all windows that are accepted up to a
    position stand in the same state there, and which token is best in it is told by them alone. The mean of the whole
    group rewards a window for the luck of having got there: for sampled windows that cancels on average, at the price
    of variance, but the greedy window, which is no sample, is taught the very token it was refused at.

    Args:
        rewards (`torch.Tensor` of shape `(num_starts, group_size)`): Rewards of the windows.
        accepted (`torch.LongTensor` of shape `(num_starts, group_size)`): `k`, by greedy verification.
        window_size (`int`): K.
        scale (`str`, *optional*, defaults to `"group"`): `"group"` divides by the standard deviation of the group's
            rewards, `"none"` does not.
        epsilon (`float`, *optional*, defaults to 1e-4): Added to the standard deviation.
        valid (`torch.BoolTensor` of shape `(num_starts,)` or `(num_starts, group_size)`, *optional*): As in
            [`group_advantages`].

    Returns:
        `torch.Tensor` of shape `(num_starts, group_size, window_size)`, at least float32: of the accepted tokens and
        the first refused one; 0 behind them, and where no other window of the group has come.

    Raises:
        ValueError: If a shape or `scale` is wrong, there are fewer than two windows in a group, or a reward is not
            finite.
    """
    group = group_advantages(rewards, scale, epsilon, valid)
    if rewards.dim() != 2 or accepted.shape != rewards.shape:
        raise ValueError(
            "`rewards` and `accepted` must have the shape (num_starts, group_size), got "
            f"{tuple(rewards.shape)} and {tuple(accepted.shape)}."
        )
    rewards, accepted = widen(rewards.detach())[..., None], accepted.to(rewards.device)[..., None]
    present = torch.ones_like(accepted, dtype=torch.bool)
    if valid is not None:
        present &= valid.to(rewards.device).reshape(len(rewards), -1, 1)
        rewards = rewards.masked_fill(~present, 0.0)
    reached = present & (accepted >= torch.arange(window_size, device=rewards.device))
    count = reached.sum(1, keepdim=True)
    mean = torch.where(reached, rewards, 0.0).sum(1, keepdim=True) / count.clamp_min(1)
    # Of the others alone: with itself among them, what few survivors say would count for less.
    centred = (rewards - mean) * (count / (count - 1).clamp_min(1))
    lowest = torch.where(reached, rewards, float("inf")).amin(1, keepdim=True)
    highest = torch.where(reached, rewards, float("-inf")).amax(1, keepdim=True)
    centred = torch.where(reached & (highest > lowest), centred, 0.0)
    if scale == "none":
        return centred
    number = present.sum(1, keepdim=True)
    spread = torch.where(present, rewards - rewards.sum(1, keepdim=True) / number.clamp_min(1), 0.0)
    deviation = (spread.square().sum(1, keepdim=True) / (number - 1).clamp_min(1)).sqrt() + epsilon
    return torch.where((group != 0).any(1)[:, None, None], centred / deviation, 0.0)


def token_advantages(
    advantages: torch.Tensor,
    mask: torch.Tensor,
    credit: str = "window",
    accepted: torch.LongTensor | None = None,
    whole: torch.BoolTensor | None = None,
) -> torch.Tensor:
    """
    Gives the advantage of a window to its tokens.

    Args:
        advantages (`torch.Tensor` of shape `(num_windows,)` or `(num_windows, window_size)`):
            Advantages of the windows, or of their tokens (token-level rewards).
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`): Drafted positions.
        credit (`str`, *optional*, defaults to `"window"`):
            `"window"` gives it to every token (paper); `"prefix"` only to the accepted tokens and the first refused
            one (ours: what follows cannot have changed `k`).
        accepted (`torch.LongTensor` of shape `(num_windows,)`, *optional*): `k`; needed by `"prefix"`.
        whole (`torch.BoolTensor` of shape `(num_windows,)`, *optional*):
            Windows that get it on every token although the credit is `"prefix"`: what sets them apart is no matter of
            `k`.

    Returns:
        `torch.Tensor` of shape `(num_windows, window_size)`: 0 where no credit is given.

    Raises:
        ValueError: If `credit` is unknown, `accepted` is missing, or a shape does not fit.
    """
    if credit not in CREDITS:
        raise ValueError(f"`credit` must be one of {', '.join(CREDITS)}, got {credit!r}.")
    if mask.dim() != 2 or advantages.shape not in (mask.shape, mask.shape[:1]):
        raise ValueError(
            "`mask` must have the shape (num_windows, window_size) and `advantages` (num_windows,) or that of `mask`, "
            f"got {tuple(mask.shape)} and {tuple(advantages.shape)}."
        )
    if credit == "prefix":
        if accepted is None:
            raise ValueError('`credit="prefix"` needs `accepted`, the accepted length of every window.')
        credited = prefix_credit_mask(accepted.to(advantages.device), mask.shape[1], mask)
        if whole is not None:
            every = window_mask(mask, mask.shape, advantages.device)
            credited = torch.where(whole.to(advantages.device)[:, None], every, credited)
    else:
        credited = window_mask(mask, mask.shape, advantages.device)
    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(-1)
    return torch.where(credited, advantages, 0.0)
