# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Calls reward functions, checks what they return, and sums it up by weight; see `rewards` for the convention.

Parameters are positional: a keyword is a column of the dataset, whatever its name.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from .rewards import as_list, is_number

__all__ = [
    "check_reward_funcs",
    "combine_all_rewards",
    "combine_rewards",
    "combine_token_rewards",
    "reward_name",
    "reward_names",
    "unwrap_partial",
]


def unwrap_partial(reward_func: Callable) -> tuple[Callable, dict[str, Any]]:
    """
    Args:
        reward_func (`Callable`): A reward function, in any number of `functools.partial`s or in none.

    Returns:
        `tuple[Callable, dict]`: The function inside, and the keywords that the partials hold; of two that hold the
        same one, the outer one's, as in a call.
    """
    held: dict[str, Any] = {}
    while isinstance(reward_func, functools.partial):
        held = {**reward_func.keywords, **held}
        reward_func = reward_func.func
    return reward_func, held


def reward_name(reward_func: Callable) -> str:
    """Returns the name a reward function is logged under; that of the wrapped function for a `functools.partial`."""
    reward_func, _ = unwrap_partial(reward_func)
    return getattr(reward_func, "__name__", type(reward_func).__name__)


def reward_names(reward_funcs: Sequence[Callable]) -> list[str]:
    """
    Returns the names reward functions are logged under, each its own: the second of one name becomes `name_2`.

    Args:
        reward_funcs (`Sequence[Callable]`): Reward functions, for example one function held twice by
            `functools.partial`, with other arguments each.
    """
    names: list[str] = []
    for name in map(reward_name, reward_funcs):
        number, unique = 1, name
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return names


def combine_rewards(
    reward_funcs: Sequence[Callable], reward_weights: Sequence[float] | None = None, /, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Calls the reward functions and sums them up by weight, as `GRPOTrainer` does.

    Args:
        reward_funcs (`list[Callable]`): Reward functions; asynchronous ones run at the same time.
        reward_weights (`list[float]`, *optional*): One weight for each; all 1 by default.
        **kwargs: Passed to every function, except what a `functools.partial` holds itself. At least one of
            `completion_ids`, `accepted` or `prompts` tells the number of windows.

    Returns:
        `tuple`: `total` (`torch.Tensor` of shape `(num_windows,)`), float32, the weighted sum of the window-level
        functions, and `table` (`torch.Tensor` of shape `(num_windows, num_reward_funcs)`), float32, every function by
        itself and unweighted, NaN where it does not apply. NaN counts as 0 in the total; a window to which nothing
        applied can be left out of its group with `valid=~table.isnan().all(-1)`. A token-level function has the mean
        of its window in the table and no part in the total: see [`combine_token_rewards`].

    Raises:
        ValueError: If the weights do not fit, or a function returns the wrong number of rewards, NaN, infinity or
            something that is not a number; the function is named.
    """
    reward_funcs, weights = check_reward_funcs(reward_funcs, reward_weights)
    return _total(reward_funcs, weights, _call_all(reward_funcs, kwargs), kwargs)


def combine_token_rewards(
    reward_funcs: Sequence[Callable], reward_weights: Sequence[float] | None, width: int, /, **kwargs: Any
) -> torch.Tensor | None:
    """
    Weighted sum of the token-level reward functions alone (ours, for the token-level baseline).

    Args:
        reward_funcs (`list[Callable]`): Reward functions; those without `token_level` are not called.
        reward_weights (`list[float]`, *optional*): One weight for each of the functions; `None` for all 1.
        width (`int`): Number of columns of the result, the longest window.
        **kwargs: As in [`combine_rewards`].

    Returns:
        `torch.Tensor` of shape `(num_windows, width)`, float32, 0 after the end of a window; `None` if no function is
        token-level.

    Raises:
        ValueError: As [`combine_rewards`], and if a window is longer than `width`.
    """
    reward_funcs, weights = check_reward_funcs(reward_funcs, reward_weights)
    chosen = [_is_token_level(reward_func) for reward_func in reward_funcs]
    reward_funcs = [reward_func for reward_func, take in zip(reward_funcs, chosen, strict=True) if take]
    return _token_total(reward_funcs, weights[chosen], width, _call_all(reward_funcs, kwargs), kwargs)


def combine_all_rewards(
    reward_funcs: Sequence[Callable], reward_weights: Sequence[float] | None, width: int, /, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """
    [`combine_rewards`] and [`combine_token_rewards`] of one call of every function: what it logs it logs once, and
    one that draws random numbers gives both the same.

    Args:
        reward_funcs, reward_weights, width: As in [`combine_token_rewards`].
        **kwargs: As in [`combine_rewards`].

    Returns:
        `tuple`: `total`, `table` and the token-level rewards.

    Raises:
        ValueError: As [`combine_token_rewards`].
    """
    reward_funcs, weights = check_reward_funcs(reward_funcs, reward_weights)
    values = _call_all(reward_funcs, kwargs)
    return (
        *_total(reward_funcs, weights, values, kwargs),
        _token_total(reward_funcs, weights, width, values, kwargs),
    )


def _total(
    reward_funcs: list[Callable], weights: torch.Tensor, values: list[list], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    columns, counted = [], []
    number = _num_windows(kwargs)
    for reward_func, column in zip(reward_funcs, values, strict=True):
        name = reward_name(reward_func)
        token_level = _is_token_level(reward_func)
        if token_level:
            rows = [[v for v in _row(name, i, column, kwargs) if v is not None] for i in range(number)]
            column = [sum(row) / len(row) if row else None for row in rows]
        columns.append([math.nan if v is None else _finite(name, v) for v in column])
        counted.append(0.0 if token_level else 1.0)
    table = torch.tensor(columns, dtype=torch.float32).reshape(len(reward_funcs), number).T
    total = (table * (weights * torch.tensor(counted))).nansum(-1)
    return total, table


def _token_total(
    reward_funcs: list[Callable], weights: torch.Tensor, width: int, values: list[list], kwargs: dict[str, Any]
) -> torch.Tensor | None:
    total = None
    number = _num_windows(kwargs)
    for reward_func, weight, column in zip(reward_funcs, weights.tolist(), values, strict=True):
        if not _is_token_level(reward_func):
            continue
        name = reward_name(reward_func)
        rows = [_row(name, i, column, kwargs) for i in range(number)]
        if any(len(row) > width for row in rows):
            raise ValueError(f"`width` is {width}, but {name} returned {max(map(len, rows))} rewards for one window.")
        padded = [[0.0 if v is None else _finite(name, v) for v in row] + [0.0] * (width - len(row)) for row in rows]
        part = weight * torch.tensor(padded, dtype=torch.float32).reshape(number, width)
        total = part if total is None else total + part
    return total


def _is_token_level(reward_func: Callable) -> bool:
    # A partial does not hand on the attributes of its function.
    return bool(getattr(unwrap_partial(reward_func)[0], "token_level", False))


def check_reward_funcs(
    reward_funcs: Sequence[Callable], reward_weights: Sequence[float] | None = None
) -> tuple[list[Callable], torch.Tensor]:
    """
    Args:
        reward_funcs (`list[Callable]`): Reward functions.
        reward_weights (`list[float]`, *optional*): One weight for each; all 1 by default.

    Returns:
        `tuple`: The functions as a list, and their weights, float32, of shape `(num_reward_funcs,)`.

    Raises:
        ValueError: If there is no function, something is none, or the weights do not fit.
    """
    reward_funcs = list(reward_funcs)
    if not reward_funcs:
        raise ValueError("`reward_funcs` is empty: give at least one reward function.")
    for reward_func in reward_funcs:
        if not callable(reward_func):
            raise ValueError(
                f"`reward_funcs` must hold functions, got {reward_func!r}. A reward model is not loaded by its name: "
                "call it in a function of your own that returns one number per window."
            )
    weights = [1.0] * len(reward_funcs) if reward_weights is None else list(reward_weights)
    if len(weights) != len(reward_funcs):
        raise ValueError(
            f"`reward_weights` has {len(weights)} entries for {len(reward_funcs)} reward functions "
            f"({', '.join(map(reward_name, reward_funcs))}); give one weight each."
        )
    if not all(is_number(weight) for weight in weights):
        raise ValueError(f"`reward_weights` must be finite numbers, got {weights!r}.")
    return reward_funcs, torch.tensor(weights, dtype=torch.float32)


def _num_windows(kwargs: dict[str, Any]) -> int:
    for key in ("completion_ids", "accepted", "prompts"):
        if kwargs.get(key) is not None:
            return len(kwargs[key])
    raise ValueError("Pass `completion_ids`, `accepted` or `prompts`, one entry per window, to the reward functions.")


def _call_all(reward_funcs: list[Callable], kwargs: dict[str, Any]) -> list[list]:
    """What every function returned, one entry per window."""
    number = _num_windows(kwargs)
    returned = [_call(reward_func, kwargs) for reward_func in reward_funcs]
    if any(map(inspect.isawaitable, returned)):
        # A thread of their own: a notebook has an event loop already, in which none can be run to its end.
        with ThreadPoolExecutor(1) as pool:
            returned = pool.submit(asyncio.run, _all_of(returned)).result()
    return [_checked(func, number, values) for func, values in zip(reward_funcs, returned, strict=True)]


def _call(reward_func: Callable, kwargs: dict[str, Any]) -> Any:
    # The keywords of a call go before those of a partial, which would silently lose what its maker set.
    _, held = unwrap_partial(reward_func)
    given = {"prompts": None, "completions": None, "completion_ids": None, **kwargs}
    return reward_func(**{key: value for key, value in given.items() if key not in held})


async def _all_of(returned: list) -> list:
    """What was returned, waited for where it is that of an asynchronous function, all at once."""

    async def value(given: Any) -> Any:
        return await given if inspect.isawaitable(given) else given

    return await asyncio.gather(*map(value, returned))


def _checked(reward_func: Callable, number: int, values: Any) -> list:
    name = reward_name(reward_func)
    values = as_list(name, None, values)
    if len(values) != number:
        raise ValueError(
            f"The reward function {name} returned {len(values)} rewards for {number} windows; it must return one for "
            "each, `None` where it does not apply."
        )
    return values


def _row(name: str, index: int, values: list, kwargs: dict[str, Any]) -> list:
    row = values[index]
    row = row.tolist() if hasattr(row, "tolist") else row
    if not isinstance(row, list | tuple):
        raise ValueError(f"The token-level reward function {name} must return a list per window, got {row!r}.")
    drafted = kwargs.get("completion_ids")
    if drafted is not None and len(row) != len(drafted[index]):
        raise ValueError(
            f"The token-level reward function {name} returned {len(row)} rewards for the {len(drafted[index])} draft "
            f"tokens of window {index}."
        )
    return list(row)


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"The reward function {name} returned {value!r}, which is not a number.") from None
    if not math.isfinite(number):
        raise ValueError(
            f"The reward function {name} returned {number}. Return `None` where it does not apply; rewards must be "
            "finite."
        )
    return number
