# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What decoding with trees learns of a text while it writes it, and may keep for the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .acceptance import AcceptanceEstimator
from .adaptation import kept_for
from .cost_model import CostModel
from .divergence import RunningDivergence
from .proposals import ProposalSwitch
from .sibling_estimate import SiblingEstimate
from .tree_policy import TreePolicy, make_tree_policy
from .window_config import WindowConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..drafters import DrafterModel


@dataclass
class TreeAdaptation:
    """
    Everything that adapts.

    Args:
        policy ([`TreePolicy`]): Rate of the cost-aware tree.
        estimator ([`AcceptanceEstimator`]): Acceptance of first children.
        siblings ([`SiblingEstimate`]): Acceptance of later children.
        divergence ([`RunningDivergence`]): How far drafter and target are apart.
        switch ([`ProposalSwitch`], *optional*): Acceptance of looked-up tokens, and the choice between them and
            a tree, where the drafter is not the only one to propose.
    """

    policy: TreePolicy
    estimator: AcceptanceEstimator
    siblings: SiblingEstimate
    divergence: RunningDivergence
    switch: ProposalSwitch | None = None


def tree_adaptation_for(
    drafter: DrafterModel,
    target: PreTrainedModel,
    config: WindowConfig,
    cost_model: CostModel | None,
    sampling: bool,
) -> TreeAdaptation:
    """
    A fresh [`TreeAdaptation`], or with `config.carry_over` what earlier calls with the same target and window left
    behind.

    Args:
        drafter ([`DrafterModel`]): The drafter, which keeps it.
        target ([`~transformers.PreTrainedModel`]): The target.
        config ([`WindowConfig`]): The window of the call, with a `tree`.
        cost_model ([`CostModel`], *optional*): Needed by the `cost_aware` policy and by mixed proposals.
        sampling (`bool`): Whether the target samples.
    """
    return kept_for(
        drafter,
        target,
        config,
        cost_model,
        sampling,
        lambda: TreeAdaptation(
            policy=make_tree_policy(config, cost_model),
            estimator=AcceptanceEstimator(config.calibration, sampling=sampling, online=config.online_calibration),
            siblings=SiblingEstimate(sampling),
            divergence=RunningDivergence(config.divergence_metric, config.divergence_decay),
            switch=ProposalSwitch(config, cost_model, sampling) if config.proposals != "drafter" else None,
        ),
    )
