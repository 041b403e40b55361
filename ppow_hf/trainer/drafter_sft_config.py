# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Configuration of the supervised stage."""

from dataclasses import dataclass, field

from .acceptance_losses import LOSSES
from .drafter_training_config import DrafterTrainingConfig


@dataclass
class DrafterSFTConfig(DrafterTrainingConfig):
    r"""
    Configuration of the [`DrafterSFTTrainer`], with the fields of [`DrafterTrainingConfig`].

    These defaults differ from it: `learning_rate` 1e-4, `lr_scheduler_type` `"cosine"`, `train_sampling_strategy`
    `"group_by_length"`.

    > Parameters that control the training objective

        ttt_steps (`int`, *optional*, defaults to 7):
            Draft steps of the training-time test, 1 to 8 (EAGLE-3). A causal-LM drafter is trained with 1.
        step_loss_decay (`float`, *optional*, defaults to 0.8):
            Weight of step `k` is `step_loss_decay ** k`.
        loss_type (`str`, *optional*, defaults to `"forward_kl"`):
            `"forward_kl"` (EAGLE-3), `"total_variation"`, `"lk"` (negative log acceptance) or `"mixed"`.
        acceptance_loss_weight (`float`, *optional*, defaults to 0.5):
            Share of the `"lk"` loss in `"mixed"`.
        distillation_weight (`float`, *optional*, defaults to 1.0):
            Weight of that loss.
        window_reward_weight (`float`, *optional*, defaults to 0.0):
            Weight of the expected speedup reward of the window behind every token, in closed form
            ([`~ppow_hf.rl.expected_speedup_reward`]; PPOW's reward under greedy verification, without rollouts. Ours).
            The window has `ttt_steps` tokens.
        cost_ratio (`float`, *optional*, defaults to 0.06):
            gamma of that reward: one draft step in plain target steps.
        window_temperature (`float`, *optional*, defaults to 1.0):
            Temperature of the drafter in that expectation.

    > Parameters that control the data

        feature_cache_dir (`str`, *optional*):
            Folder to keep the target's hidden states in, so that only the first epoch runs the target. Takes about
            `2 * (layers + 1) * target_hidden_size` bytes a token in bfloat16.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "The initial learning rate for AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning-rate schedule."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "Sampler for training: rows of like length go together."}
    )

    ttt_steps: int = field(
        default=7, metadata={"help": "Draft steps of the training-time test, 1 to 8. Causal-LM drafters use 1."}
    )
    step_loss_decay: float = field(default=0.8, metadata={"help": "Weight of step k is step_loss_decay ** k."})
    loss_type: str = field(
        default="forward_kl",
        metadata={"help": "Loss.", "choices": ["forward_kl", "total_variation", "lk", "mixed"]},
    )
    acceptance_loss_weight: float = field(
        default=0.5, metadata={"help": "Share of the negative log acceptance in loss_type='mixed'."}
    )
    distillation_weight: float = field(default=1.0, metadata={"help": "Weight of that loss."})
    window_reward_weight: float = field(
        default=0.0, metadata={"help": "Weight of the expected speedup reward of whole windows, in closed form."}
    )
    cost_ratio: float = field(default=0.06, metadata={"help": "gamma of that reward: draft step / target step."})
    window_temperature: float = field(default=1.0, metadata={"help": "Temperature of the drafter in that reward."})
    feature_cache_dir: str | None = field(
        default=None, metadata={"help": "Keep the target's hidden states here, so that later epochs skip the target."}
    )

    def __post_init__(self):
        if not 1 <= self.ttt_steps <= 8:
            raise ValueError(f"`ttt_steps` must be between 1 and 8, got {self.ttt_steps}.")
        if not 0 < self.step_loss_decay <= 1:
            raise ValueError(f"`step_loss_decay` must be in (0, 1], got {self.step_loss_decay}.")
        if self.loss_type not in (*LOSSES, "mixed"):
            raise ValueError(f"`loss_type` must be one of {[*LOSSES, 'mixed']}, got {self.loss_type!r}.")
        if not 0 <= self.acceptance_loss_weight <= 1:
            raise ValueError(f"`acceptance_loss_weight` must be in [0, 1], got {self.acceptance_loss_weight}.")
        for name in ("distillation_weight", "window_reward_weight"):
            self._check_number(name, getattr(self, name))
        if not self.distillation_weight and not self.window_reward_weight:
            raise ValueError("`distillation_weight` and `window_reward_weight` are both 0: nothing would be learned.")
        for name in ("cost_ratio", "window_temperature"):
            self._check_number(name, getattr(self, name), positive=True)
        super().__post_init__()
