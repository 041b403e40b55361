# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Losses on drafted windows: the clipped policy gradient, the KL to the target, the expected accepted length.

Every function computes in float32 (float64 stays float64) and looks only at the positions of its `mask`, so padding
may hold anything. With an empty mask a loss is 0 and still has a (zero) gradient.
"""

from __future__ import annotations

import torch

from .acceptance import distribution_expected_accepted, widen, window_mask

__all__ = [
    "KL_DIRECTIONS",
    "NORMALISATIONS",
    "entropy",
    "expected_length_loss",
    "policy_loss",
    "target_kl",
]

NORMALISATIONS = ("token", "window", "constant")
KL_DIRECTIONS = ("forward", "reverse")


def policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor | None = None,
    clip: float = 0.2,
    normalisation: str = "token",
    denominator: float | torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    PPO's clipped surrogate on the draft tokens, `-min(r A, clip(r, 1 - c, 1 + c) A)` with
    `r = exp(log_probs - old_log_probs)` (paper; the value of `clip` is ours).

    Args:
        log_probs (`torch.Tensor` of shape `(num_windows, window_size)`):
            Log-probabilities of the draft tokens under the drafter being trained.
        old_log_probs (`torch.Tensor` of shape `(num_windows, window_size)`, *optional*):
            The same when the windows were rolled out. `None` on the first pass over fresh rollouts: the ratio is then
            exactly 1 and only its gradient remains.
        advantages (`torch.Tensor` of shape `(num_windows, window_size)`): From [`token_advantages`].
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*):
            Positions that enter the loss and its normalisation. With prefix credit either the drafted positions or
            only the credited ones: the former lets a window that was refused early weigh less.
        clip (`float`, *optional*, defaults to 0.2): Half-width of the trusted range of the ratio. Above 0.
        normalisation (`str`, *optional*, defaults to `"token"`):
            `"token"`: mean over all tokens of the mask; `"window"`: mean over the tokens of each window, then over the
            windows that have any; `"constant"`: sum over `num_windows * window_size`, whatever the mask.
        denominator (`float`, *optional*):
            Replaces the number of tokens (`"token"`), of windows (`"window"`) or their product (`"constant"`), for
            batches that are split over micro-batches or processes.

    Returns:
        `tuple`: The loss, a scalar, and the metrics `clip_ratio` (share of tokens whose clip binds, that is whose
        gradient is cut) and `ratio_mean`, as detached scalars.

    Raises:
        ValueError: If a shape, `clip` or `normalisation` is wrong.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"`normalisation` must be one of {', '.join(NORMALISATIONS)}, got {normalisation!r}.")
    if not clip > 0:
        raise ValueError(f"`clip` must be above 0, got {clip!r}.")
    for name, tensor in (("old_log_probs", old_log_probs), ("advantages", advantages)):
        if tensor is not None and (log_probs.dim() != 2 or tensor.shape != log_probs.shape):
            raise ValueError(
                f"`log_probs` and `{name}` must both have the shape (num_windows, window_size), got "
                f"{tuple(log_probs.shape)} and {tuple(tensor.shape)}."
            )
    mask = _position_mask(mask, log_probs)
    log_probs, advantages = widen(log_probs), widen(advantages.detach())
    old_log_probs = log_probs.detach() if old_log_probs is None else widen(old_log_probs.detach())
    # Masked before `exp`, so that padding reaches neither the value nor the gradient.
    ratio = torch.where(mask, log_probs - old_log_probs, 0.0).exp()
    advantages = torch.where(mask, advantages, 0.0)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    loss = -_mean(surrogate, mask, normalisation, denominator)
    with torch.no_grad():
        binds = ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))
        metrics = {
            "clip_ratio": _mean(binds.to(ratio.dtype), mask),
            "ratio_mean": _mean(ratio, mask),
        }
    return loss, metrics


def target_kl(
    draft_logits: torch.Tensor,
    target_probs: torch.Tensor,
    direction: str = "forward",
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    minimum_mass: float = 1e-6,
    denominator: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """
    KL divergence between target and drafter at the states the drafter's windows visit, the anchor of the policy
    (paper: anchored to the target, not to the initial drafter). Exact over the draft vocabulary, to which the target
    `P` is renormalised (ours: the drafter can put no mass elsewhere, and the full KL would be infinite or unhelpful).

    Args:
        draft_logits (`torch.Tensor` of shape `(num_windows, window_size, draft_vocab_size)`): Finite logits.
        target_probs (`torch.Tensor` of shape `(num_windows, window_size, draft_vocab_size)`):
            The target's probabilities of the draft vocabulary, not renormalised.
        direction (`str`, *optional*, defaults to `"forward"`): `"forward"` is `KL(P || Q)`, which makes the drafter
            cover the target; `"reverse"` is `KL(Q || P)`, which makes it avoid what the target does not say.
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Positions that enter.
        weights (`torch.Tensor` of shape `(num_windows, window_size)`, *optional*):
            Weights of the positions, such as [`reach_probabilities`] (ours); the result is then their weighted mean.
        minimum_mass (`float`, *optional*, defaults to 1e-6):
            Positions where the draft vocabulary holds less of the target's mass are left out: what would be
            renormalised there is noise.
        denominator (`float`, *optional*): Replaces the number of positions (or the sum of their weights).

    Returns:
        `torch.Tensor`: A scalar in nats, at least 0 and finite.

    Raises:
        ValueError: If a shape or `direction` is wrong.
    """
    if direction not in KL_DIRECTIONS:
        raise ValueError(f"`direction` must be one of {', '.join(KL_DIRECTIONS)}, got {direction!r}.")
    _check_distributions(draft_logits, target_probs)
    mask = _position_mask(mask, draft_logits)
    p = widen(target_probs.detach())
    mass = p.sum(-1)
    # Not `>=`, by which NaN would pass for too little mass.
    mask = mask & ~(mass < minimum_mass)
    p = torch.where(mask.unsqueeze(-1), p / mass.unsqueeze(-1).clamp_min(minimum_mass), 0.0)
    log_q = widen(draft_logits).masked_fill(~mask.unsqueeze(-1), 0.0).log_softmax(-1)
    if direction == "forward":
        log_p = p.clamp_min(torch.finfo(torch.float32).tiny).log()
        divergence = torch.linalg.vecdot(p, log_p) - torch.linalg.vecdot(p, log_q)
    else:
        # Probabilities that underflowed to 0 cost what the smallest normal float32 does: 87 nats, not infinity.
        log_p = p.clamp_min(torch.finfo(torch.float32).tiny).log()
        divergence = (log_q.exp() * (log_q - log_p)).sum(-1)
    if weights is None:
        return _mean(divergence, mask, denominator=denominator)
    if weights.shape != mask.shape:
        raise ValueError(f"`weights` must have the shape {tuple(mask.shape)}, got {tuple(weights.shape)}.")
    weights = torch.where(mask, weights.detach().to(divergence.dtype), 0.0)
    total = weights.sum() if denominator is None else denominator
    return torch.where(mask, divergence * weights, 0.0).sum() / _at_least_tiny(total)


def expected_length_loss(
    draft_logits: torch.Tensor,
    target_probs: torch.Tensor,
    mask: torch.Tensor | None = None,
    denominator: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Minus the mean of [`distribution_expected_accepted`] over the windows: a window-level objective that is
    differentiable in the drafter and needs no reward on samples (ours).

    Args:
        draft_logits (`torch.Tensor` of shape `(num_windows, window_size, draft_vocab_size)`):
            Logits, already divided by the temperature that decoding will use.
        target_probs (`torch.Tensor` of shape `(num_windows, window_size, draft_vocab_size)`):
            The target's probabilities of the draft vocabulary at that temperature, not renormalised.
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Drafted positions.
        denominator (`float`, *optional*): Replaces the number of windows that have any position.

    Returns:
        `torch.Tensor`: A scalar, between minus the window size and 0.

    Raises:
        ValueError: If a shape is wrong.
    """
    _check_distributions(draft_logits, target_probs)
    mask = window_mask(mask, draft_logits.shape[:2], draft_logits.device)
    logits = widen(draft_logits).masked_fill(~mask.unsqueeze(-1), 0.0)
    lengths = distribution_expected_accepted(target_probs, logits.log_softmax(-1), mask)
    return -_mean(lengths, mask.any(-1), denominator=denominator)


def entropy(draft_logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Mean entropy of the draft distributions.

    Args:
        draft_logits (`torch.Tensor` of shape `(num_windows, window_size, draft_vocab_size)`): Finite logits.
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Positions that enter.

    Returns:
        `torch.Tensor`: A scalar in nats.
    """
    mask = _position_mask(mask, draft_logits)
    log_q = widen(draft_logits).masked_fill(~mask.unsqueeze(-1), 0.0).log_softmax(-1)
    return _mean(-(log_q.exp() * log_q).sum(-1), mask)


def _position_mask(mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    # Unlike the mask of a window, this one may have holes: which positions a loss counts is the caller's choice.
    if mask is None:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    if mask.shape != like.shape[:2]:
        raise ValueError(
            f"`mask` must have the shape {tuple(like.shape[:2])} (num_windows, window_size), got {tuple(mask.shape)}."
        )
    return mask.to(device=like.device, dtype=torch.bool)


def _check_distributions(draft_logits: torch.Tensor, target_probs: torch.Tensor) -> None:
    if draft_logits.dim() != 3 or draft_logits.shape != target_probs.shape:
        raise ValueError(
            "`draft_logits` and `target_probs` must both have the shape (num_windows, window_size, draft_vocab_size), "
            f"got {tuple(draft_logits.shape)} and {tuple(target_probs.shape)}. The target's probabilities must be "
            "those of the draft vocabulary."
        )


def _mean(
    values: torch.Tensor,
    mask: torch.Tensor,
    normalisation: str = "token",
    denominator: float | torch.Tensor | None = None,
) -> torch.Tensor:
    values = torch.where(mask, values, 0.0)
    if normalisation == "token":
        total, count = values.sum(), mask.sum()
    elif normalisation == "window":
        lengths = mask.sum(-1)
        total, count = (values.sum(-1) / lengths.clamp_min(1)).sum(), (lengths > 0).sum()
    else:
        total, count = values.sum(), mask.numel()
    return total / _at_least_tiny(count if denominator is None else denominator)


def _at_least_tiny(count: float | torch.Tensor) -> float | torch.Tensor:
    # An empty sum over nothing is 0, not NaN; real counts and weights are far above this.
    tiny = 1e-12
    return count.clamp_min(tiny) if isinstance(count, torch.Tensor) else max(count, tiny)
