# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
What one more draft token costs where verification does not cost the same for each (ours).

Measured curves have jumps: a pass over three draft tokens may cost a good deal more than one over two, and one over
eight hardly more than one over four. Whoever asks of the next token alone whether it pays stops at a jump for ever,
and whoever spreads the jump over all tokens that could follow (the curve's convex hull) walks into it and turns back.
So the token is charged together with as many of those expected behind it as make it cheapest.
"""

from __future__ import annotations

from collections.abc import Sequence


def price_of_next(verify: Sequence[float], count: int, onward: float, gamma: float, first: float = 0.0) -> float:
    r"""
    A token pays, alone or with those behind it, if its chance of being accepted exceeds the rate of committed tokens
    per unit cost times this price,

    `min_j (first + (j - 1) * gamma + v(n + j) - v(n)) / (1 + onward + ... + onward^(j - 1))`,

    with `n` the tokens there are. Of a convex curve it is what the token alone costs, `first + v(n + 1) - v(n)`. Where
    every token is as likely as `onward` says, going on as long as it pays finds the best number of tokens, whatever
    the curve.

    Args:
        verify (`Sequence[float]`): `v(0), v(1), ...` up to the most tokens that there can be.
        count (`int`): Tokens there are.
        onward (`float`): Expected acceptance of the tokens behind the next one, each given those before it.
        gamma (`float`): Cost of drafting each of them.
        first (`float`, *optional*, defaults to 0.0): Cost of drafting the next one; nothing if it is spent.

    Returns:
        `float`: The price; infinite where there can be no more tokens.
    """
    best, cost, expected, share = float("inf"), first - verify[count], 0.0, 1.0
    for after in verify[count + 1 :]:
        expected += share
        share *= onward
        best = min(best, (cost + after) / expected)
        cost += gamma
    return best
