# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Acceptance of a node's later children, where the first was rejected."""

from __future__ import annotations

from collections.abc import Sequence


class SiblingEstimate:
    """
    How likely the later children of a node are to be accepted, where the first was not: learnt while decoding (ours).

    Greedy: in proportion to their share of the draft probability that the first child leaves. Sampling: the same for
    all of them, as each is drawn from what the ones before it leave.

    Args:
        sampling (`bool`): Which of the two.
    """

    def __init__(self, sampling: bool):
        self.sampling = sampling
        # Pseudo-observations, from a half-trained one-layer EAGLE-3 drafter: where its first choice is wrong, the next
        # ones are right more often than their share says.
        self._expected, self._seen = (8.0, 2.4) if sampling else (6.0, 7.2)

    @property
    def factor(self) -> float:
        """Observed relative to expected."""
        return min(max(self._seen / self._expected, 0.01), 0.95 if self.sampling else 2.0)

    def shares(self, probabilities: Sequence[float], count: int) -> list[float]:
        """
        Args:
            probabilities (`Sequence[float]`): Draft probabilities of the most probable tokens, highest first.
            count (`int`): Children to estimate, the first one not counted.

        Returns:
            `list[float]`: Of each later child, its chance where the first was rejected.
        """
        if self.sampling:
            factor = self.factor
            return [factor * (1.0 - factor) ** i for i in range(count)]
        scale = self.factor / max(1.0 - probabilities[0], 1e-6)
        return [min(scale * probability, 1.0) for probability in probabilities[1 : count + 1]]

    def update(self, shares: Sequence[float], rank: int | None, tried: int) -> None:
        """
        Learns where the first child of a node was rejected.

        Args:
            shares (`Sequence[float]`): What [`SiblingEstimate.shares`] said of it.
            rank (`int`, *optional*): Rank of the child that was accepted; `None` if none was.
            tried (`int`): Children it had in the tree.
        """
        if tried < 2 or rank == 0:
            return
        if self.sampling:
            expected = float((tried if rank is None else rank + 1) - 1)
        else:
            expected = sum(shares[: tried - 1]) / self.factor
        keep = 0.98
        self._expected = keep * self._expected + expected
        self._seen = keep * self._seen + (rank is not None)
