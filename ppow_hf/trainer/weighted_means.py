# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Metrics over many batches: sums and counts, divided once."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator


class WeightedMeans:
    """
    Means over everything added since they were last taken.

    A mean of the batches' own means would weigh a token in a small batch more than one in a large batch, and so depend
    on the batch size.
    """

    def __init__(self):
        self._sums: dict[str, list[float]] = {}

    def add(self, metrics: Mapping[str, tuple[float, float]]) -> None:
        """
        Args:
            metrics (`Mapping[str, tuple[float, float]]`): Sum and count of every metric; a count of 0 is no entry.
        """
        for name, (total, count) in metrics.items():
            if count:
                entry = self._sums.setdefault(name, [0.0, 0.0, 0])
                entry[0] += total
                entry[1] += count
                entry[2] += 1

    def times_added(self, name: str) -> int:
        """How many batches had an entry under this name."""
        return self._sums[name][2] if name in self._sums else 0

    def count(self, name: str) -> float:
        """Sum of the counts under this name."""
        return self._sums[name][1] if name in self._sums else 0.0

    def take(self) -> dict[str, float]:
        """The means. Counting begins anew."""
        means = {name: total / count for name, (total, count, _) in self._sums.items()}
        self._sums.clear()
        return means


def summed_over_processes(
    accelerator: Accelerator, metrics: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """
    Sums and counts over all processes, of which each may have metrics that others have not.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Of the trainer. All its processes must call.
        metrics (`Mapping[str, tuple[float, float]]`): Sum and count of every metric of this process.

    Returns:
        `dict[str, tuple[float, float]]`: The same on every process.
    """
    names = sorted(_names_of_all(accelerator, metrics))
    if not names:
        return {}
    values = [metrics.get(name, (0.0, 0.0)) for name in names]
    table = torch.tensor(values, dtype=torch.float32, device=accelerator.device)
    sums = accelerator.reduce(table, reduction="sum").tolist()
    return {name: (total, count) for name, (total, count) in zip(names, sums, strict=True)}


def _names_of_all(accelerator: Accelerator, metrics: Mapping[str, tuple[float, float]]) -> set[str]:
    if accelerator.num_processes == 1:
        return set(metrics)
    gathered = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(gathered, sorted(metrics))
    return set().union(*gathered)
