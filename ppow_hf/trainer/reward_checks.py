# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The rewards of a run: which they are, what is asked about them, and said, before it begins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..generation import CostModel
from ..rl import ProximityReward, measured_speedup_reward, speedup_reward, unwrap_partial
from ..rl.reward_combination import check_reward_funcs, reward_name

if TYPE_CHECKING:
    from .ppow_config import PPOWConfig

logger = logging.get_logger(__name__)

_OURS = "ppow_hf.rl.rewards"


def rewards_of_run(given: Callable | Sequence[Callable] | None, args: PPOWConfig) -> list[Callable]:
    """
    Args:
        given (`Callable` or `list[Callable]`, *optional*): Reward functions.
        args ([`PPOWConfig`]): Configuration.

    Returns:
        `list[Callable]`: What was given; by default the paper's speedup reward, and proximity reward unless its eta
        is 0.

    Raises:
        ValueError: As [`~ppow_hf.rl.reward_combination.check_reward_funcs`].
    """
    if given is None:
        given = [speedup_reward]
        if args.proximity_eta:
            given.append(ProximityReward(args.proximity_eta, args.proximity_epsilon))
    return check_reward_funcs(given if isinstance(given, list | tuple) else [given], args.reward_weights)[0]


def is_ours(reward_func: Callable) -> bool:
    """Whether a reward function is of this library, whose needs are known."""
    return getattr(unwrap_partial(reward_func)[0], "__module__", None) == _OURS


def reads_gap(reward_func: Callable) -> bool:
    """Whether a reward function may read Delta: a proximity reward that is not switched off, or an unknown one."""
    function, _ = unwrap_partial(reward_func)
    return bool(function.eta) if isinstance(function, ProximityReward) else not is_ours(reward_func)


def needs_cost_model(reward_funcs: Sequence[Callable]) -> bool:
    """Whether one of the reward functions reads measured costs and does not bring its own."""
    pairs = map(unwrap_partial, reward_funcs)
    return any(function is measured_speedup_reward and "cost_model" not in held for function, held in pairs)


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
    miss = hit = 0.0
    judges_accepted = False
    for reward_func, weight in zip(reward_funcs, weights, strict=True):
        function, held = unwrap_partial(reward_func)
        if isinstance(function, ProximityReward):
            miss += weight * function.eta
        elif function in (speedup_reward, measured_speedup_reward):
            facts = {"window_size": window_size, "cost_ratio": cost_ratio, "cost_model": cost_model, **held}
            none, one = function(**{**facts, "accepted": [0, 1]})
            hit += weight * (one - none)
            judges_accepted = True
    # Where nothing judges accepted windows, they are left out of their group, and refused ones compared alone.
    if judges_accepted and miss > 0 and miss >= hit:
        remedy = f"Set `proximity_eta` below {hit:.3g}, {_example(hit)} for example."
        if hit <= 0:
            remedy = "Give the speedup reward a weight above 0 in `reward_weights`, or take the proximity reward out."
        logger.warning(
            f"A window that is refused at once but close to the target's earns {miss:.3g} (`proximity_eta`), one "
            f"accepted token {hit:.3g}: training will prefer refused windows to short accepted ones. {remedy}"
        )


def _example(hit: float) -> str:
    return "0.5" if hit > 0.5 else f"{hit / 2:.2g}"


def warn_of_missing_texts(reward_funcs: Sequence[Callable], processing_class: Any) -> None:
    """
    Warns of reward functions that take texts, where there is no tokenizer to make them (ours).

    Args:
        reward_funcs (`Sequence[Callable]`): Reward functions.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): The tokenizer.
    """
    if processing_class is not None:
        return
    for reward_func in reward_funcs:
        try:
            taken = {"prompts", "completions"} & set(inspect.signature(reward_func).parameters)
        except (TypeError, ValueError):  # something built in, which says nothing of its parameters
            continue
        if taken and not is_ours(reward_func):
            logger.warning(
                f"The reward function {reward_name(reward_func)} takes {' and '.join(map(repr, sorted(taken)))}, "
                "which are None: there is no tokenizer to make them with. Give `processing_class`; `completion_ids` "
                "are there without."
            )


def warn_of_unread_settings(reward_funcs: Sequence[Callable], args: PPOWConfig) -> None:
    """
    Warns of settings of rewards that none of the reward functions goes by (ours).

    Args:
        reward_funcs (`Sequence[Callable]`): Reward functions. One that is not of this library may read `cost_ratio`.
        args ([`PPOWConfig`]): Configuration; only what differs from its defaults was asked for.
    """
    pairs = [unwrap_partial(reward_func) for reward_func in reward_funcs]
    near = [(function.eta, function.epsilon) for function, _ in pairs if isinstance(function, ProximityReward)]
    asked = _changed(args, ("proximity_eta", "proximity_epsilon"))
    # An eta of 0 asks for no such reward.
    if asked and (args.proximity_eta or near) and (args.proximity_eta, args.proximity_epsilon) not in near:
        found = "none" if not near else " and ".join(f"one with eta={eta}, epsilon={eps!r}" for eta, eps in near)
        logger.warning(
            f"{_said(asked)} not used: `reward_funcs` was given, and of proximity rewards it holds {found}. Put "
            "`ProximityReward(eta, epsilon)` with the wanted values into `reward_funcs`, or leave the setting out."
        )
    reads = any(
        "cost_ratio" not in held and (function is speedup_reward or not is_ours(function)) for function, held in pairs
    )
    asked = _changed(args, ("cost_ratio",))
    if asked and args.cost_ratio != "measured" and not reads:
        logger.warning(
            f"{_said(asked)} not used: no function of `reward_funcs` reads it. Measured costs come from `cost_model`; "
            "add `speedup_reward` to be rewarded by this number, or leave the setting out."
        )


def _changed(args: PPOWConfig, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value != args.__dataclass_fields__[name].default}


def _said(values: dict[str, Any]) -> str:
    named = " and ".join(f"`{name}={value!r}`" for name, value in values.items())
    return f"{named} {'is' if len(values) == 1 else 'are'}"
