# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What generation learns of a text while it writes it, and may keep for the next one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from .acceptance import AcceptanceEstimator
from .cost_model import CostModel
from .divergence import RunningDivergence
from .policies import WindowPolicy, make_policy
from .proposals import ProposalSwitch
from .window_config import WindowConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..drafters import DrafterModel

Kept = TypeVar("Kept")


@dataclass
class Adaptation:
    """
    Everything that adapts.

    Args:
        policy ([`WindowPolicy`]): Rate or size of the drafter's window.
        estimator ([`AcceptanceEstimator`]): Acceptance of the drafter's tokens.
        divergence ([`RunningDivergence`]): How far drafter and target are apart.
        switch ([`ProposalSwitch`], *optional*): Acceptance of looked-up tokens and the choice of proposals, where the
            drafter is not the only one to propose.
    """

    policy: WindowPolicy
    estimator: AcceptanceEstimator
    divergence: RunningDivergence
    switch: ProposalSwitch | None


def adaptation_for(
    drafter: DrafterModel,
    target: PreTrainedModel,
    config: WindowConfig,
    cost_model: CostModel | None,
    sampling: bool,
) -> Adaptation:
    """
    A fresh [`Adaptation`], or with `config.carry_over` the one that earlier calls with the same target and window left
    behind.

    Args:
        drafter ([`DrafterModel`]): The drafter, which keeps it.
        target ([`~transformers.PreTrainedModel`]): The target.
        config ([`WindowConfig`]): The window of the call.
        cost_model ([`CostModel`], *optional*): Needed by the `cost_aware` policy and by mixed proposals.
        sampling (`bool`): Whether the target samples.
    """
    return kept_for(
        drafter,
        target,
        config,
        cost_model,
        sampling,
        lambda: Adaptation(
            policy=make_policy(config, cost_model),
            estimator=AcceptanceEstimator(config.calibration, sampling=sampling, online=config.online_calibration),
            divergence=RunningDivergence(config.divergence_metric, config.divergence_decay),
            switch=ProposalSwitch(config, cost_model, sampling) if config.proposals != "drafter" else None,
        ),
    )


def kept_for(
    drafter: DrafterModel,
    target: PreTrainedModel,
    config: WindowConfig,
    cost_model: CostModel | None,
    sampling: bool,
    make: Callable[[], Kept],
) -> Kept:
    """
    What `make` makes; with `config.carry_over`, what it made for an earlier call of the same target, window and costs.
    """
    kept = drafter._adaptation.setdefault(target, {}) if config.carry_over else {}
    costs = cost_model.to_dict() if cost_model is not None else None
    key = json.dumps([config.to_dict(), costs, sampling], sort_keys=True)
    if key not in kept:
        kept[key] = make()
    return kept[key]
