# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Acceptance length and acceptance rate of speculative generation, as a module for `evaluate.load`.

This file works alone: it is copied to wherever `evaluate` loads it from. `acceptance_statistics` below is the same
text as in `ppow_hf/evaluation/acceptance.py`, which is its source; a test keeps the two identical.
"""

from collections.abc import Sequence

import datasets
import evaluate

_DESCRIPTION = """
Speculative generation drafts a window of tokens and has the target verify them at once. The acceptance length tau is
the mean number of tokens that one verification commits, the target's own bonus token included; the acceptance rate is
the share of draft tokens that were accepted.
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[int]`): accepted draft tokens of each verification.
    references (`list[int]`): draft tokens sent to each verification.

Returns:
    acceptance_length, acceptance_rate (None when nothing was drafted), mean_window, verifications, committed_tokens.

Examples:
    >>> metric = evaluate.load("acceptance_length")
    >>> metric.compute(predictions=[3, 0, 2], references=[4, 4, 2])["acceptance_rate"]
    0.5
"""


def acceptance_statistics(accepted: Sequence[int], drafted: Sequence[int]) -> dict[str, float | int | None]:
    """
    Acceptance length (tau) and acceptance rate of a list of verifications.

    Every verification commits the accepted draft tokens plus one token of the target itself (the bonus token), so
    tau = sum(accepted + 1) / verifications, and the acceptance rate = sum(accepted) / sum(drafted).

    Args:
        accepted (`Sequence[int]`): Accepted draft tokens of each verification.
        drafted (`Sequence[int]`): Draft tokens sent to each verification, in the same order.

    Returns:
        `dict` with `acceptance_length` (bonus token included), `acceptance_rate` (None when nothing was drafted),
        `mean_window`, `verifications` and `committed_tokens`.

    Raises:
        ValueError: no verification, lengths that differ, or a count that is negative or exceeds the window.
    """
    if len(accepted) != len(drafted):
        raise ValueError(
            f"`accepted` has {len(accepted)} verifications and `drafted` has {len(drafted)}: give one count of each "
            "per verification."
        )
    if len(accepted) == 0:
        raise ValueError("`accepted` is empty: acceptance length needs at least one verification.")
    for index, (kept, window) in enumerate(zip(accepted, drafted, strict=True)):
        if not 0 <= kept <= window:
            raise ValueError(
                f"Verification {index}: `accepted` is {kept} and `drafted` is {window}; expected 0 <= accepted <= "
                "drafted."
            )
    verifications = len(accepted)
    total_accepted = int(sum(accepted))
    total_drafted = int(sum(drafted))
    return {
        "acceptance_length": (total_accepted + verifications) / verifications,
        "acceptance_rate": total_accepted / total_drafted if total_drafted else None,
        "mean_window": total_drafted / verifications,
        "verifications": verifications,
        "committed_tokens": total_accepted + verifications,
    }


class AcceptanceLength(evaluate.Metric):
    """`evaluate` wrapper around [`acceptance_statistics`]; add counts batch by batch, then `compute`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float | int | None]:
        return acceptance_statistics(predictions, references)
