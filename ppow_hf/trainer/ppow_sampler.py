# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The order of training rows where several optimiser steps are taken on the same rollouts."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler


class IterationSampler(Sampler[int]):
    """
    Gives every optimiser step's rows `num_iterations` times in a row.

    The order is drawn from the epoch that the step belongs to, not from a stream: a resumed run goes on with the very
    rows an uninterrupted one would see, in a later epoch too.

    Args:
        num_rows (`int`): Rows of the dataset.
        rows_per_step (`int`): Rows of one optimiser step, over all micro-batches and processes. Rows left over at the
            end of an epoch are dropped.
        num_iterations (`int`): Optimiser steps on the same rows.
        current_step (`Callable`): Gives the number of optimiser steps done; asked when an epoch begins.
        shuffle (`bool`, *optional*, defaults to `True`): Draw a new order for every epoch.
        seed (`int`, *optional*, defaults to 0): Of that order.

    Raises:
        ValueError: If there are fewer rows than one step takes.
    """

    def __init__(
        self,
        num_rows: int,
        rows_per_step: int,
        num_iterations: int,
        current_step: Callable[[], int],
        shuffle: bool = True,
        seed: int = 0,
    ):
        if num_rows < rows_per_step:
            raise ValueError(
                f"`train_dataset` has {num_rows} rows, but one optimiser step takes {rows_per_step} of them (batch "
                "size x processes x `gradient_accumulation_steps`). Lower the batch size, or give more rows."
            )
        self.num_rows, self.rows_per_step, self.num_iterations = num_rows, rows_per_step, num_iterations
        self.current_step, self.shuffle, self.seed = current_step, shuffle, seed

    def __len__(self) -> int:
        return self.num_rows // self.rows_per_step * self.rows_per_step * self.num_iterations

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.num_rows))
        if self.shuffle:
            epoch = self.current_step() // (len(self) // self.rows_per_step)
            order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()
        for start in range(0, self.num_rows - self.rows_per_step + 1, self.rows_per_step):
            for _ in range(self.num_iterations):
                yield from order[start : start + self.rows_per_step]
