# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Stopping when the drafter no longer gets better."""

from transformers import EarlyStoppingCallback


class EarlyStopping(EarlyStoppingCallback):
    """Does not count the evaluation before the first step, at the start of a run or where one is resumed."""

    _begin = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._begin = state.global_step
        super().on_train_begin(args, state, control, **kwargs)

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step != self._begin:
            super().on_evaluate(args, state, control, **kwargs)
