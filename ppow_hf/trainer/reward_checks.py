# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What is said about the rewards of a run before it begins."""

from collections.abc import Callable, Sequence

from transformers.utils import logging

from ..generation import CostModel
from ..rl import ProximityReward, measured_speedup_reward, speedup_reward

logger = logging.get_logger(__name__)


def warn_of_rewarded_refusals(
    reward_funcs: Sequence[Callable],
    reward_weights: Sequence[float] | None,
    window_size: int,
    cost_ratio: float,
    cost_model: CostModel | None,
) -> None:
    """
    Warns where a window that is refused at once can earn as much as one whose first token is accepted (ours).

    Args:
        reward_funcs (`Sequence[Callable]`): Reward functions; only those of this library are looked at.
        reward_weights (`Sequence[float]`, *optional*): One weight for each; all 1 by default.
        window_size (`int`): K.
        cost_ratio (`float`): gamma of the speedup reward.
        cost_model ([`CostModel`], *optional*): Of the measured speedup reward.
    """
    weights = [1.0] * len(reward_funcs) if reward_weights is None else reward_weights
    miss = sum(w * f.eta for f, w in zip(reward_funcs, weights, strict=True) if isinstance(f, ProximityReward))
    hit = 0.0
    for function, weight in zip(reward_funcs, weights, strict=True):
        if function in (speedup_reward, measured_speedup_reward):
            none, one = function(
                accepted=[0, 1], window_size=window_size, cost_ratio=cost_ratio, cost_model=cost_model
            )
            hit += weight * (one - none)
    if hit > 0 and miss >= hit:
        logger.warning(
            f"A window that is refused at once but close to the target's earns {miss:.3g} (`proximity_eta`), one "
            f"accepted token {hit:.3g}: training will prefer refused windows to short accepted ones. Set "
            f"`proximity_eta` below {hit:.3g}, {_example(hit)} for example."
        )


def _example(hit: float) -> str:
    return "0.5" if hit > 0.5 else f"{hit / 2:.2g}"
