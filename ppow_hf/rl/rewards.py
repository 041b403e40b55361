# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
r"""
Rewards of drafted windows, with the calling convention of `GRPOTrainer`'s `reward_funcs`.

A reward function is any callable `reward(prompts=..., completions=..., completion_ids=..., **kwargs)` that returns one
number per window, or `None` where it does not apply. It sees the windows of one micro-batch of one process. The
trainer passes what `GRPOTrainer` does (texts, the dataset's columns, `trainer_state`, `log_metric`, `log_extra`) and,
with one entry per window in lists:

| argument | type | meaning |
|---|---|---|
| `completion_ids` | `list[list[int]]` | draft tokens of the window, as target ids |
| `accepted` | `list[int]` or `list[float]` | accepted length `k`; fractional if it is an expectation |
| `committed` | `list[int]` or `list[float]` | `k + 1`, or `k` where the text ends on an accepted draft token |
| `first_rejected` | `list[bool]` | whether the greedy or sampled `k` is 0 |
| `target_gap` | `list[float]` | `Delta` of [`window_target_gap`], in nats |
| `target_argmax` | `list[list[int]]` | the target's most probable token at every position of the window |
| `window_size` | `int` or `list[int]` | drafted tokens, all of which cost a draft step |
| `cost_ratio` | `float` | `gamma`, one draft step in plain target steps |
| `cost_model` | [`CostModel`] or `None` | measured costs |

A function with a true attribute `token_level` returns a list of numbers per window instead, one for each draft token.

What a `functools.partial` holds stays as it was set, whatever the trainer would pass under that name:
`partial(speedup_reward, cost_ratio=0.06)` is charged 0.06.

`k = 0` when `accepted` is an expectation: `E[k]` is never quite 0, so the proximity reward then goes by
`first_rejected`, the outcome of the greedy or sampled verification of the same window.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .acceptance import widen, window_mask

if TYPE_CHECKING:
    from ..generation import CostModel

__all__ = [
    "ProximityReward",
    "measured_speedup_reward",
    "proximity_reward",
    "speedup_reward",
    "token_agreement_reward",
    "window_target_gap",
]

# `epsilon` of the proximity reward: the nearer half.
MEDIAN = "median"


def as_list(name: str, argument: str | None, values: Any) -> list:
    """Returns the argument of a reward function, or what it returned (`argument=None`), as a list, or raises."""
    if hasattr(values, "tolist"):  # tensors and arrays
        values = values.tolist()
    if isinstance(values, Sequence) and not isinstance(values, str):
        return list(values)
    if argument is None:
        raise ValueError(f"The reward function {name} must return a list with one reward per window, got {values!r}.")
    raise ValueError(f"`{argument}` of {name} must be a list with one entry per window, got {values!r}.")


def _numbers(name: str, argument: str, values: Any, length: int | None = None) -> list[float]:
    values = as_list(name, argument, values)
    if length is not None and len(values) != length:
        raise ValueError(f"`{argument}` of {name} has {len(values)} entries for {length} windows.")
    for value in values:
        if not is_number(value) or value < 0:
            raise ValueError(f"`{argument}` of {name} must hold numbers of at least 0, got {value!r}.")
    return values


def is_number(value: Any) -> bool:
    """Whether the value is a finite number, and not a bool."""
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def window_target_gap(
    preferred_log_probs: torch.Tensor, drafted_log_probs: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    `Delta = sum_t [log p(y_t | x, y_<t) - log p(yhat_t | x, yhat_<t)]`: how much less probable the drafted window
    `yhat` is to the target than the window `y` the target prefers (paper). `y` is the target's greedy continuation,
    each window is conditioned on its own tokens, and `Delta` can be negative: greedy is not the most probable.

    Args:
        preferred_log_probs (`torch.Tensor` of shape `(num_windows, window_size)`):
            The target's log-probabilities of its own greedy window.
        drafted_log_probs (`torch.Tensor` of shape `(num_windows, window_size)`):
            The target's log-probabilities of the drafted window.
        mask (`torch.BoolTensor` of shape `(num_windows, window_size)`, *optional*):
            Positions before the end of either window. Both sums stop where the first of the two ends (ours), so that
            the lengths are the same and nothing behind an end of the text counts.

    Returns:
        `torch.Tensor` of shape `(num_windows,)`, at least float32, in nats.

    Raises:
        ValueError: If the shapes differ.
    """
    if preferred_log_probs.dim() != 2 or preferred_log_probs.shape != drafted_log_probs.shape:
        raise ValueError(
            "`preferred_log_probs` and `drafted_log_probs` must both have the shape (num_windows, window_size), got "
            f"{tuple(preferred_log_probs.shape)} and {tuple(drafted_log_probs.shape)}."
        )
    inside = window_mask(mask, drafted_log_probs.shape, drafted_log_probs.device)
    return torch.where(inside, widen(preferred_log_probs) - widen(drafted_log_probs), 0.0).sum(-1)


def speedup_reward(*, accepted: Sequence[float] | None = None, cost_ratio: float | None = None, **kwargs) -> list:
    """
    The paper's cost-aware reward, `k / (k * gamma + 1)`: it charges the drafting of the accepted tokens only.

    Args:
        accepted (`list[float]`): `k` of every window.
        cost_ratio (`float`): `gamma`. Above 0; 0.12 in the paper.

    Returns:
        `list[float]`: Between 0 and `1 / gamma`.

    Raises:
        ValueError: If an argument is missing or out of range.
    """
    accepted = _numbers("speedup_reward", "accepted", accepted)
    if not is_number(cost_ratio) or cost_ratio <= 0:
        raise ValueError(
            f"`cost_ratio` of speedup_reward must be a number above 0, got {cost_ratio!r}. It is the cost of one "
            "draft step in plain target steps (0.12 in the paper); `CostModel.measure` finds it."
        )
    return [k / (k * cost_ratio + 1.0) for k in accepted]


def measured_speedup_reward(
    *,
    accepted: Sequence[float] | None = None,
    committed: Sequence[float] | None = None,
    window_size: int | Sequence[int] | None = None,
    cost_model: CostModel | None = None,
    **kwargs,
) -> list:
    """
    Committed tokens over the measured cost of the cycle, `(k + 1) / (gamma * K + v(K) + o)`: ours. The target's own
    token counts, and the whole drafted window is charged with its drafting, its verification and our overhead. Where
    the text ends on an accepted draft token the target adds none, and `k` tokens are committed.

    Args:
        accepted (`list[float]`): `k` of every window.
        committed (`list[float]`, *optional*): Tokens that the cycle adds to the text; `k + 1` by default, as if no
            window came to the end of the text.
        window_size (`int` or `list[int]`): `K`, drafted tokens of all windows or of each.
        cost_model ([`CostModel`]): Costs in plain target steps.

    Returns:
        `list[float]`: Speed relative to plain decoding, were every cycle like this one.

    Raises:
        ValueError: If an argument is missing or out of range.
    """
    accepted = _numbers("measured_speedup_reward", "accepted", accepted)
    if cost_model is None:
        raise ValueError(
            "measured_speedup_reward needs a `cost_model`. Measure one with `CostModel.measure(target, drafter)`, or "
            "use `speedup_reward` with a `cost_ratio`."
        )
    sizes = [window_size] * len(accepted) if not isinstance(window_size, Sequence | torch.Tensor) else window_size
    sizes = _numbers("measured_speedup_reward", "window_size", sizes, len(accepted))
    for k, size in zip(accepted, sizes, strict=True):
        if size < 1 or k > size + 1e-4:
            raise ValueError(
                f"`window_size` of measured_speedup_reward must be at least 1 and at least `accepted`, got {size} "
                f"with {k} accepted tokens."
            )
    added = [k + 1.0 for k in accepted] if committed is None else committed
    added = _numbers("measured_speedup_reward", "committed", added, len(accepted))
    return [cost_model.speedup(tokens, size) for tokens, size in zip(added, sizes, strict=True)]


class ProximityReward:
    """
    The paper's distribution-based proximity reward, `eta * 1[Delta < epsilon]`, for windows with `k = 0` only. Without
    it a group whose windows are all refused at once has no signal.

    Args:
        eta (`float`, *optional*, defaults to 0.5): The reward (value ours). 0 switches it off. Below what one accepted
            token earns, `1 / (1 + gamma)` with the speedup reward: where a near miss pays more than a hit, the best
            policy is to be refused.
        epsilon (`float` or `"median"`, *optional*, defaults to `"median"`):
            Largest gap in nats, exclusive (the paper gives no value). A gap is a sum over the window and grows with
            its size; `"median"` (ours) pays the nearer half of those that are refused together, in one call, whatever
            the size; those at the least gap where half of them or more are. Of equal gaps none is nearer: then nobody
            is paid, nor is one refused window alone.

    Raises:
        ValueError: If `eta` is negative or `epsilon` is neither above 0 nor `"median"`.
    """

    __name__ = "proximity_reward"

    def __init__(self, eta: float = 0.5, epsilon: float | str = MEDIAN):
        if not is_number(eta) or eta < 0:
            raise ValueError(f"`eta` must be a number of at least 0, got {eta!r}.")
        if epsilon != MEDIAN and (not is_number(epsilon) or epsilon <= 0):
            raise ValueError(f"`epsilon` must be a number of nats above 0, or {MEDIAN!r}; got {epsilon!r}.")
        self.eta = float(eta)
        self.epsilon = epsilon if epsilon == MEDIAN else float(epsilon)

    def __repr__(self) -> str:
        return f"ProximityReward(eta={self.eta}, epsilon={self.epsilon!r})"

    def __call__(
        self,
        *,
        target_gap: Sequence[float] | None = None,
        accepted: Sequence[float] | None = None,
        first_rejected: Sequence[bool] | None = None,
        **kwargs,
    ) -> list[float | None]:
        """
        Args:
            target_gap (`list[float]`): `Delta` of every window, in nats. Looked at only where `k = 0`; may be `inf`.
                Not needed with an `eta` of 0.
            accepted (`list[float]`, *optional*): `k` of every window; says where `k = 0` without `first_rejected`.
            first_rejected (`list[bool]`, *optional*): Whether `k = 0`. Needed when `accepted` is fractional.

        Returns:
            `list[float | None]`: `eta` or 0 where `k = 0`, `None` (does not apply) elsewhere.

        Raises:
            ValueError: If an argument is missing, `Delta` is NaN, or `k = 0` cannot be told.
        """
        name = self.__name__
        if first_rejected is None:
            accepted = _numbers(name, "accepted", accepted)
            if any(k != int(k) for k in accepted):
                raise ValueError(
                    f"`accepted` of {name} holds expected lengths, which are never quite 0. Pass `first_rejected`, a "
                    "list of bool that says which windows a greedy or sampled verification refused at once."
                )
            first_rejected = [k == 0 for k in accepted]
        first_rejected = [bool(r) for r in as_list(name, "first_rejected", first_rejected)]
        if not self.eta:
            return [0.0 if rejected else None for rejected in first_rejected]
        gaps = as_list(name, "target_gap", target_gap)
        if len(gaps) != len(first_rejected):
            raise ValueError(
                f"`target_gap` of {name} has {len(gaps)} entries for {len(first_rejected)} windows; give one each."
            )
        refused = [gap for gap, rejected in zip(gaps, first_rejected, strict=True) if rejected]
        for gap in refused:
            if not isinstance(gap, int | float) or math.isnan(gap):
                raise ValueError(f"`target_gap` of {name} must be a number where k = 0, got {gap!r}.")
        epsilon = self.epsilon
        if epsilon == MEDIAN:
            epsilon = _median_threshold(refused)
        return [
            (self.eta if gap < epsilon else 0.0) if rejected else None
            for gap, rejected in zip(gaps, first_rejected, strict=True)
        ]


def _median_threshold(gaps: list[float]) -> float:
    """What the nearer half of the gaps is below; `-inf` where none is nearer than another."""
    if not gaps or min(gaps) == max(gaps):
        return -math.inf
    # Where the median is the least gap, nothing would be below it: the next larger one parts those at it from others.
    return max(statistics.median(gaps), min(gap for gap in gaps if gap > min(gaps)))


proximity_reward = ProximityReward()


def token_agreement_reward(
    *,
    completion_ids: Sequence[Sequence[int]] | None = None,
    target_argmax: Sequence[Sequence[int]] | None = None,
    **kwargs,
) -> list[list[float]]:
    """
    1 for every draft token that is the target's argmax at its position, 0 for the others, whatever came before: the
    token-level baseline the paper argues against (this form is ours).

    Args:
        completion_ids (`list[list[int]]`): Draft tokens of every window, as target ids.
        target_argmax (`list[list[int]]`): The target's argmax at the same positions; padding after them is ignored.

    Returns:
        `list[list[float]]`: One number per draft token (`token_level` is set).

    Raises:
        ValueError: If an argument is missing or too short.
    """
    drafted = as_list("token_agreement_reward", "completion_ids", completion_ids)
    preferred = as_list("token_agreement_reward", "target_argmax", target_argmax)
    if len(drafted) != len(preferred) or any(len(d) > len(p) for d, p in zip(drafted, preferred, strict=True)):
        raise ValueError(
            "`target_argmax` of token_agreement_reward must have an entry for every draft token in `completion_ids`."
        )
    return [
        [1.0 if token == best else 0.0 for token, best in zip(d, p, strict=False)]
        for d, p in zip(drafted, preferred, strict=True)
    ]


token_agreement_reward.token_level = True
