# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What training looks at: criticality and ADAW, grouped rollouts, packed verification, rewards, losses."""

from .acceptance import (
    acceptance_probabilities,
    committed_tokens,
    distribution_expected_accepted,
    expected_accepted,
    greedy_accepted,
    prefix_credit_mask,
    reach_probabilities,
    sampled_accepted,
)
from .advantages import group_advantages, survivor_advantages, token_advantages
from .criticality import Criticality, criticality, window_values
from .exact_reward import expected_speedup_reward
from .losses import entropy, expected_length_loss, policy_loss, target_kl
from .reward_combination import (
    combine_all_rewards,
    combine_rewards,
    combine_token_rewards,
    reward_name,
    reward_names,
    unwrap_partial,
)
from .rewards import (
    ProximityReward,
    measured_speedup_reward,
    proximity_reward,
    speedup_reward,
    token_agreement_reward,
    window_target_gap,
)
from .rollout import Rollouts, rollout_windows, text_mask
from .selection import SelectedWindows, WindowSchedule, eligible_starts, select_windows
from .target_prefix import TargetPrefix, target_prefix
from .target_windows import target_windows
from .verification import Verification, verify_windows

__all__ = [
    "Criticality",
    "ProximityReward",
    "Rollouts",
    "SelectedWindows",
    "TargetPrefix",
    "Verification",
    "WindowSchedule",
    "acceptance_probabilities",
    "combine_all_rewards",
    "combine_rewards",
    "combine_token_rewards",
    "committed_tokens",
    "criticality",
    "distribution_expected_accepted",
    "eligible_starts",
    "entropy",
    "expected_accepted",
    "expected_length_loss",
    "expected_speedup_reward",
    "greedy_accepted",
    "group_advantages",
    "measured_speedup_reward",
    "policy_loss",
    "prefix_credit_mask",
    "proximity_reward",
    "reach_probabilities",
    "reward_name",
    "reward_names",
    "rollout_windows",
    "sampled_accepted",
    "select_windows",
    "speedup_reward",
    "target_kl",
    "target_prefix",
    "target_windows",
    "text_mask",
    "survivor_advantages",
    "token_advantages",
    "token_agreement_reward",
    "unwrap_partial",
    "verify_windows",
    "window_target_gap",
    "window_values",
]
