# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How well predicted acceptance agrees with verification: Brier score and reliability table."""

from collections.abc import Iterable, Sequence
from typing import Any

NUM_BINS = 10


class Reliability:
    """
    Sums from which a Brier score and a reliability table follow. Adding up two of them is exact, so that every prompt
    needs to keep only this and not its draft tokens.

    A prediction p falls into bin floor(10 p); 1.0 belongs to the last one.
    """

    def __init__(self, counts=None, predictions=None, outcomes=None, squared_error: float = 0.0):
        self.counts: list[int] = list(counts or [0] * NUM_BINS)
        self.predictions: list[float] = list(predictions or [0.0] * NUM_BINS)
        self.outcomes: list[float] = list(outcomes or [0.0] * NUM_BINS)
        self.squared_error = squared_error

    def update(self, predicted: Sequence[float], outcomes: Sequence[float]) -> None:
        """
        Args:
            predicted (`Sequence[float]`): Predicted probability of acceptance, in [0, 1], of every draft token that
                verification reached.
            outcomes (`Sequence[float]`): What happened: 1 accepted, 0 rejected, or, when sampling, the probability
                with which verification accepted it.
        """
        for probability, outcome in zip(predicted, outcomes, strict=True):
            if not -1e-6 <= probability <= 1 + 1e-6:
                raise ValueError(f"Predicted acceptance must be a probability, got {probability!r}.")
            index = min(int(max(probability, 0.0) * NUM_BINS), NUM_BINS - 1)
            self.counts[index] += 1
            self.predictions[index] += probability
            self.outcomes[index] += outcome
            self.squared_error += (probability - outcome) ** 2

    def merge(self, other: "Reliability") -> None:
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.predictions = [a + b for a, b in zip(self.predictions, other.predictions, strict=True)]
        self.outcomes = [a + b for a, b in zip(self.outcomes, other.outcomes, strict=True)]
        self.squared_error += other.squared_error

    @property
    def total(self) -> int:
        return sum(self.counts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "counts": self.counts,
            "predictions": self.predictions,
            "outcomes": self.outcomes,
            "squared_error": self.squared_error,
        }

    def table(self) -> dict[str, Any]:
        """
        Returns:
            `dict` with `brier` (mean squared error, 0 is best), `calibration_error` (mean distance between prediction
            and outcome over the bins, weighted by count), and `bins`: `low`, `high`, `count`, `predicted`, `accepted`
            (means in the bin; None where it is empty).
        """
        total = self.total
        bins = []
        distance = 0.0
        for index, count in enumerate(self.counts):
            predicted = self.predictions[index] / count if count else None
            accepted = self.outcomes[index] / count if count else None
            if count:
                distance += count * abs(predicted - accepted)
            bins.append(
                {
                    "low": index / NUM_BINS,
                    "high": (index + 1) / NUM_BINS,
                    "count": count,
                    "predicted": predicted,
                    "accepted": accepted,
                }
            )
        return {
            "brier": self.squared_error / total if total else None,
            "calibration_error": distance / total if total else None,
            "bins": bins,
        }


def merge_all(parts: Iterable[dict[str, Any]]) -> Reliability:
    """One [`Reliability`] from the `to_dict` of several."""
    merged = Reliability()
    for part in parts:
        merged.merge(Reliability(**part))
    return merged
