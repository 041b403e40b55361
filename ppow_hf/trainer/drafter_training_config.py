# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the configurations of all stages share: data, evaluation by decoding, and what the best checkpoint is."""

import math
from dataclasses import dataclass, field

from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..generation import WindowConfig

_BY_ACCEPTANCE = ("eval_acceptance_length", "acceptance_length")


@dataclass
class DrafterTrainingConfig(TrainingArguments):
    r"""
    Base of the configurations of the trainers.

    These defaults differ from [`~transformers.TrainingArguments`]: `adam_beta2` 0.95, `max_grad_norm` 0.5,
    `logging_steps` 10, `remove_unused_columns` `False`, `metric_for_best_model` `"eval_acceptance_length"`: the best
    checkpoint is the one whose drafts are accepted longest on held-out prompts. And
    `restore_callback_states_from_checkpoint` `True`: the time spent and the evaluations waited for count on where a
    run is resumed.

    Args:
        max_length (`int`, *optional*, defaults to 2048):
            Longer rows are cut on the right.
        eval_decode_prompts (`int`, *optional*, defaults to 16):
            Held-out prompts decoded at each evaluation; 0 turns it off.
        eval_decode_new_tokens (`int`, *optional*, defaults to 64):
            New tokens for each of them.
        eval_window (`str`, *optional*, defaults to `"fixed:5"`):
            Window policy of that decoding.
        early_stopping_patience (`int`, *optional*):
            Stop after this many evaluations without a better `metric_for_best_model`.
        max_seconds (`float`, *optional*):
            Stop after this much time in training steps, evaluations left out: equal budgets for comparisons. The
            learning-rate schedule then runs over this time instead of over steps.
    """

    _VALID_DICT_FIELDS = TrainingArguments._VALID_DICT_FIELDS

    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    max_grad_norm: float = field(default=0.5, metadata={"help": "Gradient norm to clip at."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Drop columns the model does not read."})
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Go on counting time and evaluations where a run is resumed."}
    )
    # Whether more of it is better follows from its name, in `TrainingArguments`.
    metric_for_best_model: str | None = field(
        default="eval_acceptance_length", metadata={"help": "What the best checkpoint is chosen by."}
    )

    max_length: int = field(default=2048, metadata={"help": "Longer rows are cut on the right."})
    eval_decode_prompts: int = field(
        default=16, metadata={"help": "Held-out prompts decoded at each evaluation, 0 for none."}
    )
    eval_decode_new_tokens: int = field(default=64, metadata={"help": "New tokens for each decoded prompt."})
    eval_window: str = field(default="fixed:5", metadata={"help": "Window policy of the decoding evaluation."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better drafter."}
    )
    max_seconds: float | None = field(default=None, metadata={"help": "Stop after so much time in training steps."})

    def __post_init__(self):
        for name, low in (("max_length", 3), ("eval_decode_prompts", 0), ("eval_decode_new_tokens", 2)):
            self._check_whole_number(name, low)
        if self.early_stopping_patience is not None:
            self._check_whole_number("early_stopping_patience", 1)
        if self.max_seconds is not None:
            self._check_number("max_seconds", self.max_seconds, positive=True)
        try:
            WindowConfig.parse(self.eval_window)
        except ValueError as error:
            raise ValueError(f"`eval_window` is {self.eval_window!r}: {error}") from error
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}=True` would leave the drafter in half precision after an evaluation, and training goes "
                    f"on in it. Leave `{name}` out: held-out prompts are decoded as fast without."
                )
        self._check_best_model()
        super().__post_init__()
        if self.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU:
            # torch's default waits for a fall: it would lower the rate whenever the acceptance length rises.
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode, **(self.lr_scheduler_kwargs or {})}

    def _check_whole_number(self, name: str, low: int, reason: str = "") -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"`{name}` must be a whole number of at least {low}{reason}, got {value!r}.")

    @staticmethod
    def _check_number(name: str, value: float, positive: bool = False, negative: bool = False) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (value < 0 and not negative) or (positive and value == 0):
            wanted = "finite" if negative else "above 0" if positive else "at least 0"
            raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")

    def _check_best_model(self) -> None:
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError('`early_stopping_patience` needs evaluations: set `eval_strategy` to "steps" or "epoch".')
        if self.eval_decode_prompts or self.metric_for_best_model not in _BY_ACCEPTANCE:
            return
        for name, asked in (
            ("early_stopping_patience", self.early_stopping_patience is not None),
            ("load_best_model_at_end", self.load_best_model_at_end),
            ('save_strategy="best"', self.save_strategy == SaveStrategy.BEST),
        ):
            if asked:
                raise ValueError(
                    f"`{name}` goes by the acceptance length on held-out prompts, but `eval_decode_prompts` is 0. Set "
                    "it to the number of prompts to decode, or name another figure in `metric_for_best_model`."
                )
        self.metric_for_best_model = self.greater_is_better = None
