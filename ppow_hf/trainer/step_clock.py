# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The time of whole optimiser steps."""

import time

import torch
from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """
    Adds up the time from the begin of optimiser steps to their end: all micro-batches, clipping and the optimizer.
    Logging, evaluation and saving come behind it.
    """

    def __init__(self):
        self.seconds, self.steps = 0.0, 0
        self._started: float | None = None

    def on_step_begin(self, args, state, control, **kwargs):
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if self._started is None:
            return
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.seconds += time.perf_counter() - self._started
        self.steps += 1
        self._started = None

    def take(self) -> tuple[float, int]:
        """Seconds and number of the steps since it was last asked."""
        taken = self.seconds, self.steps
        self.seconds, self.steps = 0.0, 0
        return taken
