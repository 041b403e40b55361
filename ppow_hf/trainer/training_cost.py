# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a training has taken so far, so that methods can be compared at equal time or at equal target tokens."""

import time

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class TrainingCost(TrainerCallback, ExportableState):
    """
    Counts the seconds spent in optimiser steps, and the tokens the target was asked about in them: those of the texts,
    padding left out, and the draft tokens it verified. Over all processes. What a feature cache spares the target
    counts all the same, and the windows that it writes itself for the proximity reward do not.

    Stored with checkpoints. Where a run is resumed from one that does not say, both are `None` from then on.
    """

    def __init__(self):
        self.seconds: float | None = 0.0
        self.target_tokens: int | None = 0
        # Up to which step was counted.
        self.steps = 0
        self._started: float | None = None
        self._pending: list[torch.Tensor] = []

    def add(self, tokens: torch.Tensor) -> None:
        """
        Counts tokens of the optimiser step at hand.

        Args:
            tokens (`torch.Tensor`): How many, on this process; read when the step ends, so that no device is waited
                for.
        """
        self._pending.append(tokens)

    def on_train_begin(self, args, state, control, **kwargs):
        self._pending.clear()
        if state.global_step == 0:
            self.seconds, self.target_tokens, self.steps = 0.0, 0, 0
        elif state.global_step != self.steps:
            self.seconds = self.target_tokens = None

    def on_step_begin(self, args, state, control, **kwargs):
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        counted = torch.stack(self._pending).sum() if self._pending else torch.zeros((), dtype=torch.long)
        self._pending.clear()
        if args.world_size > 1:
            counted = counted.to(args.device)
            torch.distributed.all_reduce(counted)
        if self.target_tokens is not None:
            self.target_tokens += int(counted)
        # Behind the count, which has waited for the device.
        if self.seconds is not None and self._started is not None:
            self.seconds += time.perf_counter() - self._started
        self._started, self.steps = None, state.global_step

    def facts(self) -> dict[str, float | int | None]:
        """What to record of it."""
        return {"seconds": self.seconds, "target_tokens": self.target_tokens}

    def state(self) -> dict:
        return {"args": {}, "attributes": {**self.facts(), "steps": self.steps}}
