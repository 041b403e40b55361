# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Training for a given time, so that methods whose steps cost differently can be compared."""

import time
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler
from transformers.trainer_callback import ExportableState

# Steps of the schedule that runs over the budget: fine enough that no one sees them.
_RESOLUTION = 100_000


class TimeBudget(TrainerCallback, ExportableState):
    """
    Stops training after so many seconds spent in training steps. Evaluation and saving are not counted.

    The time spent is stored with checkpoints and counts on where a run is resumed
    (`restore_callback_states_from_checkpoint`).

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
        if args.world_size > 1:
            # Processes must stop at the same step, at the same learning rate: by the one that spent most.
            most = torch.tensor(self.spent, device=args.device)
            torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
            self.spent = float(most)
        if self.spent >= self.seconds:
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = args.save_strategy != "no"
        return control

    @property
    def fraction(self) -> float:
        """Share of the budget spent in finished steps, in [0, 1]."""
        return min(self.spent / self.seconds, 1.0)

    def state(self) -> dict:
        return {"args": {"seconds": self.seconds}, "attributes": {"spent": self.spent}}


def schedule_over_budget(
    spent: Callable[[], float], optimizer: torch.optim.Optimizer, args: TrainingArguments, num_training_steps: int
) -> LambdaLR:
    """
    The learning-rate schedule of `args`, run over the time budget instead of over steps: a rate that is to end at 0
    does so when the time is spent, however many steps that took. Warm-up still counts steps. Ours.

    Args:
        spent (`Callable[[], float]`): Share of the budget spent so far, [`TimeBudget.fraction`].
        optimizer (`torch.optim.Optimizer`): What is scheduled.
        args ([`~transformers.TrainingArguments`]): `lr_scheduler_type`, `lr_scheduler_kwargs` and `warmup_steps`.
        num_training_steps (`int`): Most steps there can be.

    Returns:
        `torch.optim.lr_scheduler.LambdaLR`.

    Raises:
        ValueError: If the schedule is not a function of progress.
    """
    over_steps = get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=0,
        num_training_steps=_RESOLUTION,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    if not isinstance(over_steps, LambdaLR):
        raise ValueError(
            f"`max_seconds` cannot be combined with `lr_scheduler_type={str(args.lr_scheduler_type)!r}`, which does "
            'not follow progress. Choose "linear", "cosine" or "constant_with_warmup".'
        )
    factor = over_steps.lr_lambdas[0]
    warmup = args.get_warmup_steps(num_training_steps)

    def over_time(step: int) -> float:
        warm = min(1.0, step / warmup) if warmup else 1.0
        return warm * factor(spent() * _RESOLUTION)

    return LambdaLR(optimizer, over_time)
