# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How a proposal meets the target: window policies, cost model, candidate generator, the hook into transformers."""

from .acceptance import AcceptanceEstimator, DraftStats, brier_score, fit_calibration, reliability_table
from .candidate_generator import PPOWCandidateGenerator
from .cost_model import CostModel
from .custom_generate import speculative_generate
from .drafter_window import use_window
from .hook import attach, attached, detach, install_hook, is_hook_installed, uninstall_hook
from .lookup import LookupIndex, LookupMatch
from .lookup_acceptance import LookupAcceptance
from .policies import WindowPolicy, make_policy
from .proposals import LookupProposer, Proposal, ProposalSwitch
from .trace import Cycle, GenerationTrace
from .tree_config import TreeConfig
from .window_config import WINDOW_POLICIES, WINDOW_PROPOSALS, WindowConfig
from .window_loop import DraftSampler, DraftWindow, draft_window

__all__ = [
    "WINDOW_POLICIES",
    "WINDOW_PROPOSALS",
    "AcceptanceEstimator",
    "CostModel",
    "Cycle",
    "DraftSampler",
    "DraftStats",
    "DraftWindow",
    "GenerationTrace",
    "LookupAcceptance",
    "LookupIndex",
    "LookupMatch",
    "LookupProposer",
    "PPOWCandidateGenerator",
    "Proposal",
    "ProposalSwitch",
    "TreeConfig",
    "WindowConfig",
    "WindowPolicy",
    "attach",
    "attached",
    "brier_score",
    "detach",
    "draft_window",
    "fit_calibration",
    "install_hook",
    "is_hook_installed",
    "make_policy",
    "reliability_table",
    "speculative_generate",
    "uninstall_hook",
    "use_window",
]
