# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
How much of a drafted window the target accepts.

A window is `K` draft tokens `y_1 .. y_K` after one prefix; verification keeps the longest accepted prefix of it, of
length `k`. With `p_i` and `q_i` the probabilities that target and drafter give to `y_i`, both at the temperature that
decoding will use:

- greedy: `y_i` is accepted if it is the target's argmax (paper: temperature 0);
- sampled: `y_i` is accepted with probability `min(1, p_i / q_i)` (speculative sampling, Leviathan et al. 2023; paper:
  temperature 1);
- expected: `E[k] = sum_i prod_{j<=i} min(1, p_j / q_j)`, the mean of the sampled `k` over the coins, the window given.
  Ours: the same reward with less variance.

Windows may be shorter than `K` (a drafted end of sequence): `mask` is `True` on the drafted positions, and everything
after the first `False` of a row is outside the window, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

__all__ = [
    "acceptance_probabilities",
    "committed_tokens",
    "distribution_expected_accepted",
    "expected_accepted",
    "greedy_accepted",
    "prefix_credit_mask",
    "reach_probabilities",
    "sampled_accepted",
    "window_mask",
]


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor in float32, or as it is in float64: half precision is never accumulated in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def window_mask(mask: torch.Tensor | None, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """
    Args:
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Drafted positions; `None` for all.
        shape (`tuple[int, int]`): `(num_windows, window_size)`.
        device (`torch.device`): Where the result goes.

    Returns:
        `torch.BoolTensor` of shape `(num_windows, window_size)`: `True` up to the first `False` of each row.

    Raises:
        ValueError: If the shapes differ.
    """
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(
            f"`mask` has the shape {tuple(mask.shape)} but the windows {tuple(shape)}: give one entry per drafted "
            "position, `(num_windows, window_size)`."
        )
    return mask.to(device=device, dtype=torch.int8).cumprod(-1, dtype=torch.int8).bool()


def greedy_accepted(
    tokens: torch.LongTensor, target_argmax: torch.LongTensor, mask: torch.Tensor | None = None
) -> torch.LongTensor:
    """
    Accepted length at temperature 0: the draft tokens before the first one that is not the target's argmax (paper).

    Args:
        tokens (`torch.LongTensor` of shape `(num_windows, window_size)`): Draft tokens, as target ids.
        target_argmax (`torch.LongTensor` of shape `(num_windows, window_size)`):
            The target's most probable token at every position, after the prefix and the draft tokens before it.
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Drafted positions.

    Returns:
        `torch.LongTensor` of shape `(num_windows,)`: `k`, from 0 to the window's length. The target's own token is
        not counted.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape("tokens", tokens, "target_argmax", target_argmax, dims=2)
    matches = (tokens == target_argmax) & window_mask(mask, tokens.shape, tokens.device)
    return matches.long().cumprod(-1).sum(-1)


def committed_tokens(
    tokens: torch.LongTensor,
    survived: torch.Tensor,
    eos_token_ids: Collection[int] = (),
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Tokens that verifying a window adds to the text: the accepted ones and one of the target's own, which is missing
    where the text ends on an accepted draft token (as [`GenerationTrace`] counts).

    Args:
        tokens (`torch.LongTensor` of shape `(num_windows, window_size)`): Draft tokens, as target ids.
        survived (`torch.Tensor` of shape `(num_windows, window_size)`):
            Whether each token is accepted with all before it, or how likely; 0 behind the end of a window.
        eos_token_ids (`Collection[int]`, *optional*): Tokens that end the text. Only the last drafted one can be one.
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Drafted positions.

    Returns:
        `torch.Tensor` of shape `(num_windows,)`: Whole numbers (int64) where `survived` is bool, else of its dtype.
    """
    # A window without a token has no end: nothing of it survives, and the first place is as good as any.
    last = (window_mask(mask, tokens.shape, tokens.device).sum(-1, keepdim=True) - 1).clamp_min(0)
    ends = torch.tensor(sorted(eos_token_ids), dtype=tokens.dtype, device=tokens.device)
    ended = survived.gather(-1, last) * torch.isin(tokens.gather(-1, last), ends)
    accepted = survived.sum(-1)
    return accepted + 1 - ended.squeeze(-1).to(accepted.dtype)


@torch.no_grad()
def acceptance_probabilities(
    target_log_probs: torch.Tensor, draft_log_probs: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    `min(1, p_i / q_i)` of every draft token.

    Args:
        target_log_probs (`torch.Tensor` of shape `(num_windows, window_size)`):
            `log p_i` of the draft tokens, over the target's whole vocabulary; `-inf` where the target excludes it.
        draft_log_probs (`torch.Tensor` of shape `(num_windows, window_size)`):
            `log q_i` under the distribution the tokens were drawn from.
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Drafted positions.

    Returns:
        `torch.Tensor` of shape `(num_windows, window_size)`, at least float32, without gradient: 0 outside the window.

    Raises:
        ValueError: If the shapes differ, a drafted token has no finite `log q`, or a `log p` is NaN or `+inf`.
    """
    _check_same_shape("target_log_probs", target_log_probs, "draft_log_probs", draft_log_probs, dims=2)
    inside = window_mask(mask, target_log_probs.shape, target_log_probs.device)
    target, draft = widen(target_log_probs), widen(draft_log_probs)
    bad = ~draft.isfinite() | target.isnan() | target.isposinf()
    if (bad & inside).any():
        row, column = (bad & inside).nonzero()[0].tolist()
        raise ValueError(
            f"`target_log_probs` / `draft_log_probs` at window {row}, position {column} are "
            f"{target[row, column].item()} / {draft[row, column].item()}: a drafted token needs a finite draft "
            "log-probability and a target log-probability that is finite or -inf. Positions that were not drafted "
            "belong outside `mask`."
        )
    return torch.where(inside, (target - draft).clamp(max=0).exp(), 0.0)


@torch.no_grad()
def sampled_accepted(
    target_log_probs: torch.Tensor,
    draft_log_probs: torch.Tensor,
    generator: torch.Generator | None = None,
    mask: torch.Tensor | None = None,
) -> torch.LongTensor:
    """
    Accepted length by sequential rejection, as in speculative sampling (paper: temperature 1).

    Args:
        target_log_probs (`torch.Tensor` of shape `(num_windows, window_size)`): As in [`acceptance_probabilities`].
        draft_log_probs (`torch.Tensor` of shape `(num_windows, window_size)`): As in [`acceptance_probabilities`].
        generator (`torch.Generator`, *optional*): Source of the coins, on the tensors' device. One coin is drawn per
            position whatever the outcome, so the state of the generator does not depend on the data.
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Drafted positions.

    Returns:
        `torch.LongTensor` of shape `(num_windows,)`: `k`.

    Raises:
        ValueError: As [`acceptance_probabilities`].
    """
    probabilities = acceptance_probabilities(target_log_probs, draft_log_probs, mask)
    coins = torch.rand(
        probabilities.shape, generator=generator, device=probabilities.device, dtype=probabilities.dtype
    )
    return (coins < probabilities).long().cumprod(-1).sum(-1)


@torch.no_grad()
def expected_accepted(
    target_log_probs: torch.Tensor, draft_log_probs: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Mean accepted length of these windows over the coins of the rejection: `sum_i prod_{j<=i} min(1, p_j / q_j)`.

    Ours. A reward without the coins' noise, not a loss: the tokens were drawn from the drafter, so its gradient alone
    would not be that of the expected length. See [`distribution_expected_accepted`] for one to differentiate.

    Args:
        target_log_probs (`torch.Tensor` of shape `(num_windows, window_size)`): As in [`acceptance_probabilities`].
        draft_log_probs (`torch.Tensor` of shape `(num_windows, window_size)`): As in [`acceptance_probabilities`].
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Drafted positions.

    Returns:
        `torch.Tensor` of shape `(num_windows,)`, at least float32: `E[k]`, between 0 and the window's length.

    Raises:
        ValueError: As [`acceptance_probabilities`].
    """
    return acceptance_probabilities(target_log_probs, draft_log_probs, mask).cumprod(-1).sum(-1)


@torch.no_grad()
def reach_probabilities(
    target_log_probs: torch.Tensor, draft_log_probs: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    The chance that a position matters, that is that every draft token before it is accepted:
    `prod_{j<i} min(1, p_j / q_j)`. Ours, to weight losses by position.

    Args:
        target_log_probs (`torch.Tensor` of shape `(num_windows, window_size)`): As in [`acceptance_probabilities`].
        draft_log_probs (`torch.Tensor` of shape `(num_windows, window_size)`): As in [`acceptance_probabilities`].
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Drafted positions.

    Returns:
        `torch.Tensor` of shape `(num_windows, window_size)`, at least float32: 1 at the first position, never rising,
        0 outside the window.

    Raises:
        ValueError: As [`acceptance_probabilities`].
    """
    probabilities = acceptance_probabilities(target_log_probs, draft_log_probs, mask)
    inside = window_mask(mask, probabilities.shape, probabilities.device)
    before = torch.cat([torch.ones_like(probabilities[:, :1]), probabilities[:, :-1]], dim=-1)
    return before.cumprod(-1) * inside


def prefix_credit_mask(
    accepted: torch.LongTensor, window_size: int, mask: torch.Tensor | None = None
) -> torch.BoolTensor:
    """
    The tokens that decided `k`: the accepted ones and the first that was refused (ours).

    Args:
        accepted (`torch.LongTensor` of shape `(num_windows,)`): `k`, greedy or sampled.
        window_size (`int`): `K`.
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Drafted positions.

    Returns:
        `torch.BoolTensor` of shape `(num_windows, window_size)`: `True` at the positions `0 .. k` (0-based).

    Raises:
        ValueError: If `accepted` is not of an integer dtype (an expected length has no first mismatch), or a shape
            does not fit.
    """
    if accepted.dim() != 1 or accepted.is_floating_point() or accepted.dtype == torch.bool:
        raise ValueError(
            f"`accepted` must be integers of shape (num_windows,), got {accepted.dtype} of shape "
            f"{tuple(accepted.shape)}. Credit up to the first mismatch needs a greedy or sampled length, not an "
            "expected one."
        )
    positions = torch.arange(window_size, device=accepted.device)
    inside = window_mask(mask, (len(accepted), window_size), accepted.device)
    return (positions <= accepted.unsqueeze(-1)) & inside


def distribution_expected_accepted(
    target_probs: torch.Tensor, draft_log_probs: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Expected accepted length from the distributions along a window: `sum_i prod_{j<=i} a_j`, with
    `a_j = sum_x min(p_j(x), q_j(x))` the chance that a token drawn from `q_j` survives verification.

    Ours, and differentiable in `q`. It looks only at the states the window visits and does not follow how `q` would
    change them; for `K = 1` it is the exact expected length, beyond that `q` stands for the law of the accepted
    tokens, which is `min(p, q) / a`.

    Args:
        target_probs (`torch.Tensor` of shape `(num_windows, window_size, draft_vocab_size)`):
            The target's probabilities of the draft vocabulary, *not* renormalised: mass the drafter cannot reach
            counts as refused.
        draft_log_probs (`torch.Tensor` of shape `(num_windows, window_size, draft_vocab_size)`):
            Log-probabilities of the drafter.
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*): Drafted positions.

    Returns:
        `torch.Tensor` of shape `(num_windows,)`, at least float32.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape("target_probs", target_probs, "draft_log_probs", draft_log_probs, dims=3)
    p, log_q = widen(target_probs.detach()), widen(draft_log_probs)
    if mask is not None:
        inside = window_mask(mask, p.shape[:2], p.device).unsqueeze(-1)
        # Before `exp`, so that what lies outside the window reaches neither the value nor the gradient.
        p, log_q = p.masked_fill(~inside, 0.0), log_q.masked_fill(~inside, 0.0)
    return torch.minimum(p, log_q.exp()).sum(-1).cumprod(-1).sum(-1)


def _check_same_shape(name: str, one: torch.Tensor, other_name: str, other: torch.Tensor, dims: int) -> None:
    if one.dim() != dims or one.shape != other.shape:
        wanted = ("num_windows", "window_size", "draft_vocab_size")[:dims]
        raise ValueError(
            f"`{name}` and `{other_name}` must both have the shape ({', '.join(wanted)}), got {tuple(one.shape)} and "
            f"{tuple(other.shape)}."
        )
