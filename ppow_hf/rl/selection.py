# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Which windows of a sequence are trained on: uniformly at first, later by criticality (ADAW)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

WINDOW_SELECTIONS = ("adaw", "uniform")


@dataclass
class SelectedWindows:
    """
    Chosen window starts of a batch. A start is the position of a window's first draft token.

    Args:
        starts (`torch.LongTensor` of shape `(batch, num_windows)`): Ascending in every row; -1 (at the end) where a
            row has no further window to offer.
        eligible (`torch.BoolTensor` of shape `(batch, length)`): The starts that could have been chosen.
        skipped_rows (`int`): Rows without any eligible start.
    """

    starts: torch.LongTensor
    eligible: torch.Tensor
    skipped_rows: int

    @property
    def mask(self) -> torch.Tensor:
        """`(batch, num_windows)`, bool: where `starts` holds a window."""
        return self.starts >= 0

    @property
    def num_selected(self) -> int:
        """Number of chosen windows in the batch."""
        return int(self.mask.sum())

    def sums_of(self, values: torch.Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
        """
        Sum and number of a per-start quantity over the chosen and over all eligible windows, for the log.

        Args:
            values (`torch.Tensor` of shape `(batch, length)`): One value per start.

        Returns:
            `(chosen, eligible)`: Sum and count of each; both 0 where there is nothing to add up.
        """
        chosen = values.gather(1, self.starts.clamp_min(0))[self.mask]
        every = values[self.eligible]
        return tuple((part.double().sum().item(), float(part.numel())) for part in (chosen, every))


def eligible_starts(loss_mask: torch.Tensor, window_size: int) -> torch.Tensor:
    """
    Starts whose window lies in the target's own text and follows a token of it, as it does in decoding.

    Args:
        loss_mask (`torch.Tensor` of shape `(batch, length)`): True on the target's own tokens.
        window_size (`int`): Tokens in a window, K.

    Returns:
        `torch.BoolTensor` of shape `(batch, length)`: True at n where tokens `n - 1 .. n + K - 1` are all the
        target's own.

    Raises:
        ValueError: If `window_size` is below 1 or `loss_mask` is not a batch.
    """
    if window_size < 1:
        raise ValueError(f"`window_size` must be at least 1, got {window_size}.")
    if loss_mask.dim() != 2:
        raise ValueError(f"`loss_mask` must have shape (batch, length), got {tuple(loss_mask.shape)}.")
    mask = loss_mask.bool()
    eligible = torch.zeros_like(mask)
    run = window_size + 1
    if run <= mask.shape[1]:
        total = torch.nn.functional.pad(mask.long().cumsum(1), (1, 0))
        eligible[:, 1 : mask.shape[1] - window_size + 1] = total[:, run:] - total[:, :-run] == run
    return eligible


@torch.no_grad()
def select_windows(
    loss_mask: torch.Tensor,
    window_size: int,
    num_windows: int,
    *,
    values: torch.Tensor | None = None,
    uniform_share: float = 0.0,
    min_distance: int = 1,
    generator: torch.Generator,
) -> SelectedWindows:
    """
    Draws window starts in every row, without replacement.

    The paper says that a window's priority is its mean v_t and no more; the law is ours. Starts are drawn one after
    another, each in proportion to its weight among those still allowed, that is, not drawn yet and at least
    `min_distance` away from all drawn ones. With `values`, the weight of start n in a row of E eligible starts is
    `(1 - uniform_share) * values[n] / sum(values) + uniform_share / E`; without, all weights are equal. Where all
    allowed starts weigh 0 the draw is uniform over them, so that no row goes unused because drafter and target agree.

    One key per start, the logarithm of its weight plus Gumbel noise, gives exactly this law: taking the largest
    allowed key again and again is successive sampling in proportion to the weights (Gumbel top-k).

    Args:
        loss_mask (`torch.Tensor` of shape `(batch, length)`): True on the target's own tokens.
        window_size (`int`): Tokens in a window, K.
        num_windows (`int`): Windows to draw in every row.
        values (`torch.Tensor` of shape `(batch, length)`, *optional*): Mean v_t of the window at every start, as
            [`window_values`] gives it. Read at eligible starts only. `None` draws uniformly.
        uniform_share (`float`, *optional*, defaults to 0.0): Share of the weight that is spread evenly, in [0, 1].
            Keeps easy windows in training (ours).
        min_distance (`int`, *optional*, defaults to 1): Least distance between two chosen starts, in tokens. 1 allows
            all that differ; `window_size` allows no overlap.
        generator (`torch.Generator`): On the CPU, whatever the device of the tensors, so that a seed gives the same
            windows everywhere. It advances by the same amount whichever law is used.

    Returns:
        [`SelectedWindows`]: On the device of `loss_mask`.

    Raises:
        ValueError: If an argument is outside its range, shapes differ, or `values` are negative, NaN or infinite at
            an eligible start.
    """
    if num_windows < 1:
        raise ValueError(f"`num_windows` must be at least 1, got {num_windows}.")
    if min_distance < 1:
        raise ValueError(f"`min_distance` must be at least 1 token, got {min_distance}.")
    if not 0.0 <= uniform_share <= 1.0:
        raise ValueError(f"`uniform_share` must be in [0, 1], got {uniform_share}.")
    if generator.device.type != "cpu":
        raise ValueError(
            f"`generator` is on {generator.device}: pass a CPU generator, so that a seed means the same everywhere."
        )
    eligible = eligible_starts(loss_mask, window_size)
    allowed = eligible.cpu()
    weights = _weights(allowed, values, uniform_share)
    noise = torch.empty(allowed.shape, dtype=torch.float64).exponential_(generator=generator)
    keys = weights.log() - noise.log()
    # Finite logarithms of float64 stay far above -1e4, so weightless starts come after all others, in uniform order.
    keys = torch.where(weights > 0, keys, -1e4 - noise.log()).masked_fill(~allowed, -math.inf)

    positions = torch.arange(allowed.shape[1])
    starts = torch.full((allowed.shape[0], num_windows), -1)
    for column in range(num_windows if allowed.any() else 0):
        best, index = keys.max(dim=1, keepdim=True)
        found = best > -math.inf
        starts[:, column] = torch.where(found, index, -1).squeeze(1)
        keys = keys.masked_fill(found & ((positions - index).abs() < min_distance), -math.inf)
    # Ascending with the empty places last: they sort as if beyond the row.
    starts = starts.masked_fill(starts < 0, allowed.shape[1]).sort(dim=1).values
    starts = starts.masked_fill(starts == allowed.shape[1], -1)
    skipped = int((~allowed.any(dim=1)).sum())
    return SelectedWindows(starts.to(loss_mask.device), eligible, skipped)


def _weights(allowed: torch.Tensor, values: torch.Tensor | None, uniform_share: float) -> torch.Tensor:
    """Weight of every start, float64 on the CPU; 0 outside the eligible ones."""
    if values is None:
        return allowed.double()
    if values.shape != allowed.shape:
        raise ValueError(
            f"`values` must have the shape of `loss_mask`, {tuple(allowed.shape)}, got {tuple(values.shape)}."
        )
    values = torch.where(allowed, values.detach().cpu().double(), 0.0)
    if not (values.isfinite() & (values >= 0)).all():
        raise ValueError("`values` must be finite and not negative at every eligible start.")
    share = values / values.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    even = allowed / allowed.sum(dim=1, keepdim=True).clamp_min(1)
    return (1.0 - uniform_share) * share + uniform_share * even


@dataclass
class WindowSchedule:
    """
    Which law draws the windows at a training step: ordinary windows first, critical ones later (PPOW).

    The paper does not say when it switches; the warm-up's length is ours.

    Args:
        window_selection (`str`, *optional*, defaults to `"adaw"`): `"adaw"`, or `"uniform"` for the whole training.
        adaw_warmup (`float`, *optional*, defaults to 0.1): Uniform steps before ADAW. Below 1 a share of all steps,
            rounded up; from 1 on a number of steps, which must be whole.
        total_steps (`int`, *optional*): Steps of the whole training; needed by a share.

    Raises:
        ValueError: If an argument is unknown or outside its range, or a share has no total.
    """

    window_selection: str = "adaw"
    adaw_warmup: float = 0.1
    total_steps: int | None = None

    def __post_init__(self):
        if self.window_selection not in WINDOW_SELECTIONS:
            raise ValueError(f"`window_selection` must be one of {WINDOW_SELECTIONS}, got {self.window_selection!r}.")
        if not (math.isfinite(self.adaw_warmup) and self.adaw_warmup >= 0):
            raise ValueError(f"`adaw_warmup` must be a finite number >= 0, got {self.adaw_warmup}.")
        if self.adaw_warmup >= 1 and self.adaw_warmup != int(self.adaw_warmup):
            raise ValueError(f"`adaw_warmup` from 1 on counts steps and must be whole, got {self.adaw_warmup}.")
        is_share = self.window_selection == "adaw" and 0 < self.adaw_warmup < 1
        if is_share and (self.total_steps is None or self.total_steps < 1):
            raise ValueError(
                f"`adaw_warmup={self.adaw_warmup}` is a share of all steps, so `total_steps` must be at least 1, got "
                f"{self.total_steps}. Give the warm-up in steps (1 or more) if the total is unknown."
            )

    @property
    def warmup_steps(self) -> int:
        """Uniform steps before ADAW starts."""
        if not 0 < self.adaw_warmup < 1:
            return int(self.adaw_warmup)
        # The guard keeps 0.07 * 100 = 7.000000000000001 at seven steps.
        return math.ceil(self.adaw_warmup * (self.total_steps or 0) - 1e-9)

    def law(self, step: int, fraction: float | None = None) -> str:
        """
        Args:
            step (`int`): Optimiser steps done so far; 0 for the first one.
            fraction (`float`, *optional*): Share of the training done so far, where time limits it and not
                `total_steps`. A warm-up that is a share goes by it.

        Returns:
            `str`: `"uniform"` or `"adaw"`.
        """
        by_share = fraction is not None and 0 < self.adaw_warmup < 1
        warm = fraction >= self.adaw_warmup if by_share else step >= self.warmup_steps
        return "adaw" if self.window_selection == "adaw" and warm else "uniform"
