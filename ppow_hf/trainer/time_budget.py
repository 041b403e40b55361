# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Training for a given time, so that methods whose steps cost differently can be compared."""

import time

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class TimeBudget(TrainerCallback, ExportableState):
    """
    Stops training after so many seconds spent in training steps. Evaluation and saving are not counted.

    The time spent is stored with checkpoints and counts on after
    `restore_callback_states_from_checkpoint=True`.

    Args:
        seconds (`float`): The budget.
        spent (`float`, *optional*, defaults to 0.0): Seconds spent before.
    """

    def __init__(self, seconds: float, spent: float = 0.0):
        self.seconds = seconds
        self.spent = spent
        self._started: float | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> TrainerControl:
        self._started = time.perf_counter()
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> TrainerControl:
        if self._started is not None:
            self.spent += time.perf_counter() - self._started
            self._started = None
        spent = self.spent
        if args.world_size > 1:
            # Processes must stop at the same step: by the one that spent most.
            most = torch.tensor(spent, device=args.device)
            torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
            spent = float(most)
        if spent >= self.seconds:
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = args.save_strategy != "no"
        return control

    def state(self) -> dict:
        return {"args": {"seconds": self.seconds}, "attributes": {"spent": self.spent}}
