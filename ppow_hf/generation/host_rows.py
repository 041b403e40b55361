# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Rows of logits on a CPU, read with numpy.

What a cycle asks of a row is little: its highest entries, how sure it is. Behind the dispatcher of torch a few such
questions cost as much as a draft step of a small drafter; numpy answers them from the same memory several times
as fast.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

# Lowest logit that is told from an impossible one, below the highest: its weight is 0 in float32.
_LEAST = -110.0
# The highest entries of a row are looked for in its stretches first, unless those are shorter than this.
_LONGEST, _SHORTEST = 128, 8


def on_host(logits: torch.Tensor) -> bool:
    """
    Whether [`rows_of`] can read these logits.

    Args:
        logits (`torch.Tensor`): Of any shape.
    """
    return logits.is_cpu and logits.dtype in (torch.float32, torch.bfloat16, torch.float16)


def rows_of(logits: torch.Tensor) -> np.ndarray:
    """
    Args:
        logits (`torch.Tensor`): Logits, see [`on_host`].

    Returns:
        `np.ndarray` of the same shape, float32: the same memory where they are that already.
    """
    return logits.detach().float().numpy()


def favourite(row: np.ndarray) -> int:
    """
    The most probable token, the first of several: what `argmax` says.

    Args:
        row (`np.ndarray` of shape `(width,)`): Logits.
    """
    return int(row.argmax())


class Summary(NamedTuple):
    """
    What drafting wants to know of a row.

    Args:
        columns (`list[int]`): Of its most probable tokens, highest first.
        probabilities (`list[float]`): Theirs.
        entropy (`float`): Of the whole distribution, in nats.
        weights (`np.ndarray` of shape `(width,)`): `exp(logit - highest logit)`; divided by `total` they are the
            distribution.
        total (`float`): Their sum.
    """

    columns: list[int]
    probabilities: list[float]
    entropy: float
    weights: np.ndarray
    total: float


def summarise(row: np.ndarray, count: int) -> Summary:
    """
    Args:
        row (`np.ndarray` of shape `(width,)`): Logits, float32; `-inf` for impossible tokens.
        count (`int`): How many of the most probable tokens, at most `width`.

    Returns:
        [`Summary`]. Its numbers are NaN for a row without any possible token.
    """
    columns = highest(row, count)
    shifted = row - row[columns[0]]
    np.maximum(shifted, _LEAST, out=shifted)
    weights = np.exp(shifted)
    total = float(weights.sum())
    # Not by a product of vectors: for rows this long some libraries of linear algebra wake threads of their own.
    np.multiply(weights, shifted, out=shifted)
    entropy = math.log(total) - float(shifted.sum()) / total
    return Summary(columns, [float(weights[column]) / total for column in columns], entropy, weights, total)


def highest(row: np.ndarray, count: int) -> list[int]:
    """
    Places of the highest entries of a row, highest first; of equal ones the first.

    Args:
        row (`np.ndarray` of shape `(width,)`): Logits.
        count (`int`): How many, at most `width`.

    Returns:
        `list[int]`.
    """
    if count == 1:
        return [int(row.argmax())]
    width = row.shape[0]
    stretch = min(width & -width, _LONGEST)  # the largest power of two that divides the width
    if stretch < _SHORTEST or width // stretch <= count:
        return _first_highest(row, np.arange(width), count)
    maxima = row.reshape(-1, stretch).max(axis=1)
    # The highest entries lie in the stretches with the highest maxima, of equal ones in the first.
    stretches = np.sort(np.argsort(-maxima, kind="stable")[:count])
    places = (stretches[:, None] * stretch + np.arange(stretch)).ravel()
    return _first_highest(row, places, count)


def _first_highest(row: np.ndarray, places: np.ndarray, count: int) -> list[int]:
    """The highest of some places, which are in ascending order."""
    values = row[places]
    found: list[int] = []
    for _ in range(count):
        at = int(values.argmax())
        if values[at] == -np.inf:  # what is left is impossible: the first that was not found yet
            at = next(i for i, place in enumerate(places) if place not in found)
        found.append(int(places[at]))
        values[at] = -np.inf
    return found
