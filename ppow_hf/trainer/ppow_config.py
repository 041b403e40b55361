# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Configuration of the reinforcement-learning stage."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..generation import WindowConfig
from ..rl.advantages import ADVANTAGE_SCALES, CREDITS
from ..rl.losses import KL_DIRECTIONS
from ..rl.selection import WindowSchedule

ACCEPTANCES = ("greedy", "sampled", "expected")
KL_WEIGHTS = ("all", "reach")


@dataclass
class PPOWConfig(TrainingArguments):
    r"""
    Configuration of the [`PPOWTrainer`].

    These defaults differ from [`~transformers.TrainingArguments`]: `learning_rate` 5e-6, `adam_beta2` 0.95,
    `max_grad_norm` 0.5, `lr_scheduler_type` `"constant_with_warmup"`, `logging_steps` 10, `eval_on_start` `True` (the
    held-out acceptance length of the initial drafter is what the run is judged by), `remove_unused_columns` `False`.

    The paper (arXiv 2605.14978) gives the group size, the window, the cost ratio and the form of the rewards. Where it
    gives no value, the value is ours and marked so.

    > Parameters that control the windows

        window_size (`int`, *optional*, defaults to 10):
            K, draft tokens per window (paper).
        num_generations (`int`, *optional*, defaults to 8):
            G, windows rolled out from the same start (paper).
        num_windows (`int`, *optional*, defaults to 8):
            Window starts per row of the batch (ours).
        window_selection (`str`, *optional*, defaults to `"adaw"`):
            `"adaw"` (paper: windows with a high mean criticality first) or `"uniform"`.
        adaw_warmup (`float`, *optional*, defaults to 0.3):
            Uniform steps before ADAW: a share of all steps below 1, a number of steps from 1 on (ours; the paper
            trains on ordinary windows first but does not say how long).
        uniform_share (`float`, *optional*, defaults to 0.0):
            Share of ADAW's weight spread evenly, so that easy windows are not starved (ours).
        min_distance (`int`, *optional*, defaults to 1):
            Least distance between two starts of a row, in tokens (ours).
        max_length (`int`, *optional*, defaults to 2048):
            Longer rows are cut on the right.

    > Parameters that control the rollouts

        rollout_temperature (`float`, *optional*, defaults to 1.0):
            Temperature of the draft distribution (ours).
        greedy_window (`bool`, *optional*, defaults to `False`):
            Put the drafter's greedy window into every group (ours). It is no sample of the policy: the gradient then
            leans towards what greedy decoding runs.
        num_iterations (`int`, *optional*, defaults to 1):
            Optimiser steps on the same rollouts.

    > Parameters that control the rewards

        acceptance (`str`, *optional*, defaults to `"greedy"`):
            What the accepted length k of a window is: `"greedy"` (tokens that are the target's argmax, as decoding at
            temperature 0), `"sampled"` (one draw of rejection sampling) or `"expected"` (its expectation; ours).
        cost_ratio (`float` or `str`, *optional*, defaults to 0.12):
            gamma, one draft step in target steps (0.12 in the paper), or `"measured"`: the cost model of these models
            on this machine (ours).
        proximity_eta (`float`, *optional*, defaults to 1.0):
            eta of the proximity reward; 0 turns it off (value ours).
        proximity_epsilon (`float`, *optional*, defaults to 2.0):
            epsilon of the proximity reward, in nats (value ours).
        reward_weights (`list[float]`, *optional*):
            One weight per reward function; all 1 by default.
        scale_rewards (`str`, *optional*, defaults to `"group"`):
            `"group"` divides advantages by the standard deviation of their group (paper), `"none"` does not.

    > Parameters that control the loss

        credit (`str`, *optional*, defaults to `"window"`):
            Tokens that get a window's advantage: all (paper), or those up to the first mismatch, `"prefix"` (ours).
        epsilon (`float`, *optional*, defaults to 0.2):
            PPO's clip range (value ours).
        beta (`float`, *optional*, defaults to 0.1):
            Weight of the KL divergence to the target at the states the windows visit (value ours).
        kl_direction (`str`, *optional*, defaults to `"forward"`):
            `"forward"` KL(target || drafter) or `"reverse"` (ours: the paper does not say).
        kl_weighting (`str`, *optional*, defaults to `"all"`):
            `"all"` drafted positions alike, or `"reach"`: by the probability that verification gets there (ours).
        policy_weight (`float`, *optional*, defaults to 1.0):
            Weight of the policy loss; 0 leaves its anchors alone (for ablations).
        expected_length_weight (`float`, *optional*, defaults to 0.0):
            Weight of minus the expected accepted length along the windows, a differentiable objective (ours).
        anchor_weight (`float`, *optional*, defaults to 0.0):
            Weight of the KL divergence to the target along the text itself, from the same starts: a supervised anchor
            (ours).

    > Parameters that control evaluation by decoding

        eval_decode_prompts (`int`, *optional*, defaults to 16):
            Held-out prompts decoded at each evaluation; 0 turns it off.
        eval_decode_new_tokens (`int`, *optional*, defaults to 64):
            New tokens for each of them.
        eval_window (`str`, *optional*, defaults to `"fixed:5"`):
            Window policy of that decoding.
        early_stopping_patience (`int`, *optional*):
            Stop after this many evaluations without a better acceptance length.
        max_seconds (`float`, *optional*):
            Stop after this much time in training steps, evaluations left out: equal budgets for comparisons. The
            learning-rate schedule then runs over this time instead of over steps.
    """

    _VALID_DICT_FIELDS = TrainingArguments._VALID_DICT_FIELDS

    learning_rate: float = field(default=5e-6, metadata={"help": "The initial learning rate for AdamW."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    max_grad_norm: float = field(default=0.5, metadata={"help": "Gradient norm to clip at."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "The learning-rate schedule."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Drop columns the model does not read."})
    eval_on_start: bool = field(default=True, metadata={"help": "Measure the initial drafter before training."})
    metric_for_best_model: str | None = field(
        default="eval_acceptance_length", metadata={"help": "What the best checkpoint is chosen by."}
    )
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether more of it is better."})

    window_size: int = field(default=10, metadata={"help": "K, draft tokens per window."})
    num_generations: int = field(default=8, metadata={"help": "G, windows rolled out from the same start."})
    num_windows: int = field(default=8, metadata={"help": "Window starts per row of the batch."})
    window_selection: str = field(
        default="adaw", metadata={"help": "How starts are chosen.", "choices": ["adaw", "uniform"]}
    )
    adaw_warmup: float = field(
        default=0.3, metadata={"help": "Uniform steps before ADAW: a share below 1, a number of steps from 1 on."}
    )
    uniform_share: float = field(default=0.0, metadata={"help": "Share of ADAW's weight that is spread evenly."})
    min_distance: int = field(default=1, metadata={"help": "Least distance between two starts of a row, in tokens."})
    max_length: int = field(default=2048, metadata={"help": "Longer rows are cut on the right."})

    rollout_temperature: float = field(default=1.0, metadata={"help": "Temperature of the rollouts."})
    greedy_window: bool = field(default=False, metadata={"help": "Put the greedy window into every group."})
    num_iterations: int = field(default=1, metadata={"help": "Optimiser steps on the same rollouts."})

    acceptance: str = field(
        default="greedy", metadata={"help": "What the accepted length is.", "choices": list(ACCEPTANCES)}
    )
    cost_ratio: float | str = field(
        default=0.12, metadata={"help": "gamma, one draft step in target steps, or 'measured'."}
    )
    proximity_eta: float = field(default=1.0, metadata={"help": "eta of the proximity reward, 0 for none."})
    proximity_epsilon: float = field(default=2.0, metadata={"help": "epsilon of the proximity reward, in nats."})
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight per reward function; all 1 by default."}
    )
    scale_rewards: str = field(
        default="group", metadata={"help": "How advantages are scaled.", "choices": list(ADVANTAGE_SCALES)}
    )

    credit: str = field(
        default="window", metadata={"help": "Tokens that get the advantage.", "choices": list(CREDITS)}
    )
    epsilon: float = field(default=0.2, metadata={"help": "PPO's clip range."})
    beta: float = field(default=0.1, metadata={"help": "Weight of the KL divergence to the target."})
    kl_direction: str = field(
        default="forward", metadata={"help": "Direction of that divergence.", "choices": list(KL_DIRECTIONS)}
    )
    kl_weighting: str = field(
        default="all", metadata={"help": "Weights of its positions.", "choices": list(KL_WEIGHTS)}
    )
    policy_weight: float = field(default=1.0, metadata={"help": "Weight of the policy loss."})
    expected_length_weight: float = field(
        default=0.0, metadata={"help": "Weight of minus the expected accepted length (differentiable)."}
    )
    anchor_weight: float = field(default=0.0, metadata={"help": "Weight of the supervised anchor along the text."})

    eval_decode_prompts: int = field(
        default=16, metadata={"help": "Held-out prompts decoded at each evaluation, 0 for none."}
    )
    eval_decode_new_tokens: int = field(default=64, metadata={"help": "New tokens for each decoded prompt."})
    eval_window: str = field(default="fixed:5", metadata={"help": "Window policy of the decoding evaluation."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better acceptance length."}
    )

    max_seconds: float | None = field(default=None, metadata={"help": "Stop after so much time in training steps."})

    def __post_init__(self):
        self._check_numbers()
        self._check_choices()
        self._check_evaluation()
        super().__post_init__()

    def _check_numbers(self) -> None:
        for name, low in (
            ("window_size", 1),
            ("num_generations", 2),
            ("num_windows", 1),
            ("min_distance", 1),
            ("num_iterations", 1),
            ("max_length", 3),
            ("eval_decode_prompts", 0),
            ("eval_decode_new_tokens", 2),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                reason = ": one window alone has no group to be compared with" if name == "num_generations" else ""
                raise ValueError(f"`{name}` must be a whole number of at least {low}{reason}, got {value!r}.")
        for name in ("rollout_temperature", "proximity_epsilon", "epsilon"):
            self._check_number(name, getattr(self, name), positive=True)
        for name in ("beta", "proximity_eta", "policy_weight", "expected_length_weight", "anchor_weight"):
            self._check_number(name, getattr(self, name))
        self._check_number("uniform_share", self.uniform_share)
        if self.uniform_share > 1:
            raise ValueError(f"`uniform_share` must be in [0, 1], got {self.uniform_share}.")
        if self.reward_weights is not None:
            for weight in self.reward_weights:
                self._check_number("reward_weights", weight, negative=True)
        if self.max_seconds is not None:
            self._check_number("max_seconds", self.max_seconds, positive=True)
        if isinstance(self.cost_ratio, str) and self.cost_ratio != "measured":
            try:
                self.cost_ratio = float(self.cost_ratio)  # from a command line
            except ValueError:
                raise ValueError(
                    f"`cost_ratio` must be a number above 0 or 'measured', got {self.cost_ratio!r}."
                ) from None
        if self.cost_ratio != "measured":
            self._check_number("cost_ratio", self.cost_ratio, positive=True)

    @staticmethod
    def _check_number(name: str, value: float, positive: bool = False, negative: bool = False) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (value < 0 and not negative) or (positive and value == 0):
            wanted = "finite" if negative else "above 0" if positive else "at least 0"
            raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")

    def _check_evaluation(self) -> None:
        try:
            WindowConfig.parse(self.eval_window)
        except ValueError as error:
            raise ValueError(f"`eval_window` is {self.eval_window!r}: {error}") from error
        patience = self.early_stopping_patience
        if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 1):
            raise ValueError(f"`early_stopping_patience` must be a whole number of at least 1, got {patience!r}.")
        if patience is not None and self.eval_strategy == "no":
            raise ValueError('`early_stopping_patience` needs evaluations: set `eval_strategy` to "steps" or "epoch".')
        if self.eval_decode_prompts == 0 and self.metric_for_best_model == "eval_acceptance_length":
            if patience is not None or self.load_best_model_at_end:
                name = "early_stopping_patience" if patience is not None else "load_best_model_at_end"
                raise ValueError(
                    f"`{name}` goes by the acceptance length on held-out prompts, but `eval_decode_prompts` is 0. Set "
                    "it to the number of prompts to decode."
                )
            self.metric_for_best_model = self.greater_is_better = None

    def _check_choices(self) -> None:
        for name, choices in (
            ("acceptance", ACCEPTANCES),
            ("scale_rewards", ADVANTAGE_SCALES),
            ("credit", CREDITS),
            ("kl_direction", KL_DIRECTIONS),
            ("kl_weighting", KL_WEIGHTS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(self, name)!r}.")
        # Checks `window_selection` and `adaw_warmup`; how many steps there are is not known yet.
        WindowSchedule(self.window_selection, self.adaw_warmup, total_steps=1)
