# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Configuration of the reinforcement-learning stage."""

from dataclasses import dataclass, field

from ..rl.advantages import ADVANTAGE_SCALES, BASELINES, CREDITS
from ..rl.losses import KL_DIRECTIONS
from ..rl.rewards import MEDIAN
from ..rl.selection import WindowSchedule
from .drafter_training_config import DrafterTrainingConfig

ACCEPTANCES = ("greedy", "sampled", "expected")
KL_WEIGHTS = ("all", "reach")


@dataclass
class PPOWConfig(DrafterTrainingConfig):
    r"""
    Configuration of the [`PPOWTrainer`], with the fields of [`DrafterTrainingConfig`].

    These defaults differ from it: `learning_rate` 5e-6, `lr_scheduler_type` `"constant_with_warmup"`, `eval_on_start`
    `True` (the held-out acceptance length of the initial drafter is what the run is judged by).

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
            `"adaw"` (paper: windows with a high mean criticality first) or `"uniform"`. `criticality/chosen` and
            `criticality/all` are logged of every step while ADAW chooses. The uniform law does not need to know them:
            with it they are measured for the log alone, of the steps that are logged (`logging_strategy="steps"`).
        adaw_warmup (`float`, *optional*, defaults to 0.3):
            Uniform steps before ADAW: a share of all steps below 1 (of the time with `max_seconds`), a number of steps
            from 1 on (ours; the paper trains on ordinary windows first but does not say how long).
        uniform_share (`float`, *optional*, defaults to 0.0):
            Share of ADAW's weight spread evenly, so that easy windows are not starved (ours).
        min_distance (`int`, *optional*, defaults to 1):
            Least distance between two starts of a row, in tokens (ours).

    > Parameters that control the rollouts

        rollout_temperature (`float`, *optional*, defaults to 1.0):
            Temperature of the draft distribution (ours).
        greedy_window (`bool`, *optional*, defaults to `False`):
            Put the drafter's greedy window into every group (ours), so that what greedy decoding runs is always in the
            comparison. It is no sample of the policy: with `baseline="group"` the token it is refused at is
            reinforced wherever it gets further than the group does on average; `"survivors"` is free of that. With
            greedy acceptance only: rejection sampling judges tokens that were drawn, and this one's were not.
        num_iterations (`int`, *optional*, defaults to 1):
            Optimiser steps on the same rollouts. A run can be resumed exactly where new rollouts begin.

    > Parameters that control the rewards

        acceptance (`str`, *optional*, defaults to `"greedy"`):
            What the accepted length k of a window is: `"greedy"` (tokens that are the target's argmax, as decoding at
            temperature 0), `"sampled"` (one draw of rejection sampling) or `"expected"` (its expectation; ours). The
            last two depend on the drafter through min(1, p / q) as well; the policy gradient takes that for a
            constant, as it takes any reward. `expected_length_weight` adds an objective that does not. `"expected"`
            takes `credit="window"`.
        cost_ratio (`float` or `str`, *optional*, defaults to 0.12):
            gamma, one draft step in target steps (0.12 in the paper), or `"measured"`: the cost model of these models
            on this machine, with the drafter in the target's dtype, as decoding will run it; the main process's for
            all (ours).
        proximity_eta (`float`, *optional*, defaults to 0.5):
            eta of the proximity reward; 0 turns it off (value ours: the paper gives none). Below the reward of one
            accepted token, `1 / (1 + cost_ratio)`: from there on a window that is refused at once is worth more than
            one that is not, and short windows learn to be refused.
        proximity_epsilon (`float` or `str`, *optional*, defaults to `"median"`):
            epsilon of the proximity reward, in nats (paper, which gives no value), or `"median"` (ours): the nearer
            half of the windows that are refused in one micro-batch of one process. The gap is a sum over the window:
            a number fits one `window_size`, and of windows of 10 hardly any comes within 2 nats
            (`trainers/recipes/smollm2/proximity_gap.py`). With the median what a window earns depends on the
            micro-batch it is in: another `per_device_train_batch_size`, more accumulation or other processes make it
            another reward, and of two refused windows alone in theirs one is paid whatever its gap. One alone is not,
            nor is any where all gaps are equal; where half of them or more are at the least gap, those are.
        reward_weights (`list[float]`, *optional*):
            One weight per reward function; all 1 by default.
        scale_rewards (`str`, *optional*, defaults to `"group"`):
            `"group"` divides advantages by the standard deviation of their group (paper), `"none"` does not. `True`
            and `False` are taken for them, as in `GRPOConfig`.
        baseline (`str`, *optional*, defaults to `"group"`):
            What a window's reward is compared with: the mean of its group (paper), or token by token with the other
            windows that were accepted as far, `"survivors"` (ours, see [`~ppow_hf.rl.survivor_advantages`]; with
            greedy acceptance and `credit="prefix"` only).

    > Parameters that control the loss

        credit (`str`, *optional*, defaults to `"window"`):
            Tokens that get a window's advantage: all (paper), or those up to the first mismatch, `"prefix"` (ours):
            what follows cannot have changed k. Groups that are refused as a whole are told apart by the proximity
            reward alone, which looks at the whole window: there every token is credited. Not with
            `acceptance="expected"`, where every token has its part in the length.
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
    """

    learning_rate: float = field(default=5e-6, metadata={"help": "The initial learning rate for AdamW."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "The learning-rate schedule."})
    eval_on_start: bool = field(default=True, metadata={"help": "Measure the initial drafter before training."})

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

    rollout_temperature: float = field(default=1.0, metadata={"help": "Temperature of the rollouts."})
    greedy_window: bool = field(default=False, metadata={"help": "Put the greedy window into every group."})
    num_iterations: int = field(default=1, metadata={"help": "Optimiser steps on the same rollouts."})

    acceptance: str = field(
        default="greedy", metadata={"help": "What the accepted length is.", "choices": list(ACCEPTANCES)}
    )
    # A number or "measured". Argument parsers take `float | str` for a float, and would refuse the word.
    cost_ratio: str = field(default=0.12, metadata={"help": "gamma, one draft step in target steps, or 'measured'."})
    proximity_eta: float = field(default=0.5, metadata={"help": "eta of the proximity reward, 0 for none."})
    proximity_epsilon: str = field(
        default=MEDIAN, metadata={"help": "epsilon of the proximity reward, in nats, or 'median': the nearer half."}
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight per reward function; all 1 by default."}
    )
    scale_rewards: str = field(
        default="group", metadata={"help": "How advantages are scaled.", "choices": list(ADVANTAGE_SCALES)}
    )

    baseline: str = field(
        default="group", metadata={"help": "What rewards are compared with.", "choices": list(BASELINES)}
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

    def __post_init__(self):
        self._check_numbers()
        self._check_choices()
        if self.metric_for_best_model in ("loss", "eval_loss"):
            raise ValueError(
                f"`metric_for_best_model` is {self.metric_for_best_model!r}, which PPOW does not have: a loss on "
                'held-out rows would depend on what was rolled out. Leave it out for "eval_acceptance_length", or '
                'name "eval_speedup_predicted".'
            )
        super().__post_init__()
        if self.metric_for_best_model == "loss":  # which transformers fills in for a schedule that goes by a figure
            raise ValueError(
                f"`lr_scheduler_type` is {str(self.lr_scheduler_type.value)!r}, which goes by the acceptance length "
                "on held-out prompts, but `eval_decode_prompts` is 0. Set it to the number of prompts to decode."
            )
        if self.num_iterations > 1:
            self._check_iterations()

    def _check_numbers(self) -> None:
        for name, low in (("window_size", 1), ("num_windows", 1), ("min_distance", 1), ("num_iterations", 1)):
            self._check_whole_number(name, low)
        self._check_whole_number("num_generations", 2, ": one window alone has no group to be compared with")
        for name in ("rollout_temperature", "epsilon"):
            self._check_number(name, getattr(self, name), positive=True)
        for name in ("beta", "proximity_eta", "policy_weight", "expected_length_weight", "anchor_weight"):
            self._check_number(name, getattr(self, name))
        self._check_number("uniform_share", self.uniform_share)
        if self.uniform_share > 1:
            raise ValueError(f"`uniform_share` must be in [0, 1], got {self.uniform_share}.")
        if self.reward_weights is not None:
            if not isinstance(self.reward_weights, list | tuple):
                raise ValueError(f"`reward_weights` must be a list of numbers, got {self.reward_weights!r}.")
            for weight in self.reward_weights:
                self._check_number("reward_weights", weight, negative=True)
        self._check_number_or_word("cost_ratio", "measured")
        self._check_number_or_word("proximity_epsilon", MEDIAN)

    def _check_number_or_word(self, name: str, word: str) -> None:
        """A number above 0, which a command line gives as text, or one word."""
        value = getattr(self, name)
        if isinstance(value, str) and value != word:
            try:
                setattr(self, name, float(value))
            except ValueError:
                raise ValueError(f"`{name}` must be a number above 0 or {word!r}, got {value!r}.") from None
        if value != word:
            self._check_number(name, getattr(self, name), positive=True)

    def _check_iterations(self) -> None:
        by_evaluation = self.save_strategy == "best" and self.eval_strategy == "steps"
        steps = "save_steps" if self.save_strategy == "steps" else "eval_steps" if by_evaluation else None
        if steps and getattr(self, steps) % self.num_iterations:
            raise ValueError(
                f"`{steps}` ({getattr(self, steps)}) must be a multiple of `num_iterations` ({self.num_iterations}), "
                "in steps, where checkpoints are saved by it: a run can only be resumed exactly where new rollouts "
                "begin."
            )
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(
                f"`train_sampling_strategy={self.train_sampling_strategy!r}` cannot be combined with `num_iterations` "
                f'({self.num_iterations}), which repeats the rows of every step. Choose "random" or "sequential".'
            )

    def _check_choices(self) -> None:
        # What GRPOConfig takes as well.
        if isinstance(self.scale_rewards, bool):
            self.scale_rewards = "group" if self.scale_rewards else "none"
        for name, choices in (
            ("acceptance", ACCEPTANCES),
            ("scale_rewards", ADVANTAGE_SCALES),
            ("baseline", BASELINES),
            ("credit", CREDITS),
            ("kl_direction", KL_DIRECTIONS),
            ("kl_weighting", KL_WEIGHTS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(self, name)!r}.")
        if self.baseline == "survivors" and (self.acceptance, self.credit) != ("greedy", "prefix"):
            raise ValueError(
                '`baseline="survivors"` compares windows that greedy verification has led to the same state: it needs '
                f'`acceptance="greedy"` and `credit="prefix"`, got {self.acceptance!r} and {self.credit!r}.'
            )
        if self.acceptance == "expected" and self.credit == "prefix":
            # The expected length already weighs a token by the chance that verification reaches it. The mismatch that
            # is drawn would weigh it so once more, and the gradient would no longer be that of the expected length.
            raise ValueError(
                '`credit="prefix"` is biased with `acceptance="expected"`, whose length depends on every token of a '
                'window and not on one drawn mismatch. Set `credit="window"`, or `acceptance="sampled"`.'
            )
        if self.greedy_window and self.acceptance != "greedy":
            # min(1, p / q) is the chance of a token that was drawn from q. Decoding at a temperature never drafts the
            # greedy window as such, and decoding greedily never judges it so.
            raise ValueError(
                "`greedy_window=True` puts a window that was not drawn into every group, which "
                f"`acceptance={self.acceptance!r}` would judge as if it were. Set `greedy_window=False`, or "
                '`acceptance="greedy"`.'
            )
        # Checks `window_selection` and `adaw_warmup`; how many steps there are is not known yet.
        WindowSchedule(self.window_selection, self.adaw_warmup, total_steps=1)
