# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What proposes: drafters as `PreTrainedModel`s, one configuration/modeling pair per family."""

from .auto import DRAFTER_FAMILIES, AutoDrafter, register_drafters
from .configuration_causal_lm import CausalLMDrafterConfig
from .configuration_drafter import DrafterConfig
from .configuration_eagle3 import Eagle3DrafterConfig
from .configuration_lookup import LookupDrafterConfig
from .draft_vocabulary import check_vocabulary_maps, draft_id_table, vocabulary_maps
from .drafter_state import DrafterOutput, DrafterState
from .initialization import drafter_config_for, eagle3_from_target
from .loading import check_target
from .modeling_causal_lm import CausalLMDrafter
from .modeling_drafter import DrafterModel
from .modeling_eagle3 import Eagle3Drafter
from .modeling_lookup import LookupDrafter, LookupState
from .packed_windows import PackedState, window_logits
from .prepacking import is_prepacked, prepack_weights, unpack_weights
from .target_features import check_layer_ids, default_layer_ids, gather_features

__all__ = [
    "DRAFTER_FAMILIES",
    "AutoDrafter",
    "CausalLMDrafter",
    "CausalLMDrafterConfig",
    "DrafterConfig",
    "DrafterModel",
    "DrafterOutput",
    "DrafterState",
    "Eagle3Drafter",
    "Eagle3DrafterConfig",
    "LookupDrafter",
    "LookupDrafterConfig",
    "LookupState",
    "PackedState",
    "check_layer_ids",
    "check_target",
    "check_vocabulary_maps",
    "default_layer_ids",
    "draft_id_table",
    "drafter_config_for",
    "eagle3_from_target",
    "gather_features",
    "is_prepacked",
    "prepack_weights",
    "register_drafters",
    "unpack_weights",
    "vocabulary_maps",
    "window_logits",
]
