# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Acceptance length and acceptance rate of speculative generation, from counts per verification."""

from collections.abc import Sequence


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
