# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Trainers in TRL's shape: a configuration and a trainer for each stage."""

from .acceptance_losses import TeacherRows, distillation_loss, forward_kl, lk, total_variation
from .drafter_sft_config import DrafterSFTConfig
from .drafter_sft_trainer import DrafterSFTTrainer, scored_columns
from .drafter_trainer import DrafterTrainer
from .drafter_training_config import DrafterTrainingConfig
from .feature_cache import FeatureCache
from .ppow_config import PPOWConfig
from .ppow_trainer import PPOWTrainer
from .target_pass import TargetPass

__all__ = [
    "DrafterSFTConfig",
    "DrafterSFTTrainer",
    "DrafterTrainer",
    "DrafterTrainingConfig",
    "FeatureCache",
    "PPOWConfig",
    "PPOWTrainer",
    "TargetPass",
    "TeacherRows",
    "distillation_loss",
    "forward_kl",
    "lk",
    "scored_columns",
    "total_variation",
]
