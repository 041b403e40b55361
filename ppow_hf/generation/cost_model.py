# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
`CostModel`: what a draft step and a verification cost on this machine, in units of one plain target step.

Notation (ours): `gamma` one draft step, `v(n)` one target pass over `n` draft tokens and the token before them with a
warm cache, `v(0) = 1`, `o` our own work per cycle. A cycle with a window of `K` costs `gamma * K + v(K) + o`. A draft
step for the `m` nodes of a tree's level costs `gamma * (1 + s + p * (m - 1))` for `m > 1`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..whole_files import write_json_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..drafters import DrafterModel

logger = logging.get_logger(__name__)

COST_MODEL_FILE = "cost_model.json"
_FORMAT = 1
# `s` and `p` where they have not been measured: those of a one-layer EAGLE-3 drafter on a CPU, in bfloat16.
_LEVEL_COSTS = (0.15, 0.01)
_REMEDY = "Measure it again with `ppow calibrate`, or delete the file."


def isotonic(values: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` in squares (pool adjacent violators)."""
    blocks: list[list[float]] = []  # [mean, count]
    for value in values:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            previous = blocks[-1]
            previous[0] = (previous[0] * previous[1] + mean * count) / (previous[1] + count)
            previous[1] += count
    return [mean for mean, count in blocks for _ in range(int(count))]


def is_plausible(curve: Sequence[float]) -> bool:
    """Whether no verification of `n` tokens costs more than the `n + 1` plain target steps that do its work."""
    return all(value <= n + 1 for n, value in enumerate(curve))


@dataclass
class CostModel:
    r"""
    Costs of speculative decoding for one target, drafter, device and dtype.

    Args:
        gamma (`float`): One draft step, in plain target steps. At least 0.
        verify_curve (`list[float]`, *optional*, defaults to `[1.0]`):
            `v(0), v(1), ...`, non-decreasing, `v(0) = 1`. Beyond its end the last slope is continued, or that of the
            second half where it is steeper; a single entry means verification costs the same whatever the window.
        overhead (`float`, *optional*, defaults to 0.0): Our own work per cycle, in plain target steps.
        target_step_seconds (`float`, *optional*): Seconds of one plain target step.
        key (`str`, *optional*): The machine, dtype, versions and models it was measured with.
        level_costs (`list[float]`, *optional*):
            `[s, p]`: what a draft step for the nodes of a tree's level costs beyond one for a single node, in draft
            steps, for their being several and for each beyond the first. Where it is unknown, that of a small drafter
            on a CPU is taken, `[0.15, 0.01]`.

    Raises:
        ValueError: If a value is out of range.
    """

    gamma: float
    verify_curve: Sequence[float] = (1.0,)
    overhead: float = 0.0
    target_step_seconds: float | None = None
    key: str | None = None
    level_costs: Sequence[float] | None = None

    def __post_init__(self):
        for name in ("gamma", "overhead"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(f"`{name}` of the cost model must be a number of at least 0, got {value!r}.")
        curve = self.verify_curve
        if isinstance(curve, str) or not isinstance(curve, Sequence) or not all(_is_number(v) for v in curve):
            raise ValueError(f"`verify_curve` must be a list of finite numbers, got {curve!r}.")
        self.verify_curve = [float(v) for v in curve]
        if not self.verify_curve or abs(self.verify_curve[0] - 1.0) > 1e-6:
            raise ValueError(f"`verify_curve` must begin with v(0) = 1, got {self.verify_curve[:3]}.")
        if any(b < a - 1e-9 for a, b in zip(self.verify_curve, self.verify_curve[1:], strict=False)):
            raise ValueError(f"`verify_curve` must not decrease, got {self.verify_curve}. Smooth it with `isotonic`.")
        step = self.target_step_seconds
        if step is not None and (not _is_number(step) or step <= 0):
            raise ValueError(f"`target_step_seconds` must be a positive number of seconds, got {step!r}.")
        costs = self.level_costs
        if costs is not None:
            pair = isinstance(costs, Sequence) and not isinstance(costs, str) and len(costs) == 2
            if not pair or not all(_is_number(cost) and cost >= 0 for cost in costs):
                raise ValueError(f"`level_costs` must be two numbers of at least 0, got {costs!r}.")
            self.level_costs = [float(cost) for cost in costs]

    def verify(self, n: float) -> float:
        """
        Args:
            n (`float`): Number of draft tokens; fractions (mean windows) are interpolated.

        Returns:
            `float`: Cost of verifying them, in plain target steps.
        """
        if not _is_number(n) or n < 0:
            raise ValueError(f"`n` must be a number of draft tokens of at least 0, got {n!r}.")
        curve = self.verify_curve
        last = len(curve) - 1
        if n >= last:
            return curve[last] + self._slope_beyond() * (n - last)
        low = int(n)
        return curve[low] + (curve[low + 1] - curve[low]) * (n - low)

    def _slope_beyond(self) -> float:
        """Slope behind the curve's end, which smoothing can leave flat: what lies beyond is not free for that."""
        curve = self.verify_curve
        last = len(curve) - 1
        if last == 0:
            return 0.0
        middle = last // 2
        return max(curve[last] - curve[last - 1], (curve[last] - curve[middle]) / (last - middle))

    def level_cost(self, nodes: int) -> float:
        """
        Args:
            nodes (`int`): Nodes of a draft tree that the drafter goes on from at once; at least 1.

        Returns:
            `float`: Cost of a draft step for them all, in draft steps for one.
        """
        several, each = _LEVEL_COSTS if self.level_costs is None else self.level_costs
        return 1.0 + several * (nodes > 1) + each * (nodes - 1)

    def cycle_cost(self, window: float) -> float:
        """
        Args:
            window (`float`): Draft tokens in the cycle.

        Returns:
            `float`: `gamma * K + v(K) + o`, in plain target steps.
        """
        return self.gamma * window + self.verify(window) + self.overhead

    def speedup(self, acceptance_length: float, window: float) -> float:
        """
        Args:
            acceptance_length (`float`): tau, tokens committed per cycle, the target's own token included.
            window (`float`): Draft tokens per cycle.

        Returns:
            `float`: Predicted speed relative to plain decoding.
        """
        if not _is_number(acceptance_length) or acceptance_length < 0:
            raise ValueError(f"`acceptance_length` must be a number of at least 0, got {acceptance_length!r}.")
        return acceptance_length / self.cycle_cost(window)

    def cost_per_accepted_token(self, accepted: float, window: float) -> float:
        """
        Args:
            accepted (`float`): Tokens the cycle yields.
            window (`float`): Draft tokens in the cycle.

        Returns:
            `float`: Seconds per accepted token, or plain target steps if `target_step_seconds` is unknown.
        """
        if not _is_number(accepted) or accepted <= 0:
            raise ValueError(f"`accepted` must be a positive number of tokens, got {accepted!r}.")
        return self.cycle_cost(window) * (self.target_step_seconds or 1.0) / accepted

    def table(self) -> list[dict[str, float | int | None]]:
        """Returns one row per measured window: `window`, `draft`, `verify`, `cycle` (target steps) and `seconds`."""
        rows = []
        for n in range(len(self.verify_curve)):
            cycle = self.cycle_cost(n)
            rows.append(
                {
                    "window": n,
                    "draft": self.gamma * n,
                    "verify": self.verify(n),
                    "cycle": cycle,
                    "seconds": cycle * self.target_step_seconds if self.target_step_seconds else None,
                }
            )
        return rows

    # ---- measuring -------------------------------------------------------------------------------------------------

    @classmethod
    def measure(cls, target: PreTrainedModel, drafter: DrafterModel, **kwargs: Any) -> CostModel:
        """Times the real models; see [`measure_cost_model`] for the arguments."""
        from .cost_measurement import measure_cost_model

        return measure_cost_model(target, drafter, **kwargs)

    @classmethod
    def for_models(cls, target: PreTrainedModel, drafter: DrafterModel) -> CostModel:
        """Finds the cost model of these models on this machine, stored beside the drafter or in the user's cache, or
        measures it and stores it in both; see [`find_cost_model`]."""
        from .stored_costs import find_cost_model

        return find_cost_model(target, drafter)

    # ---- storing ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-serialisable dict; `level_costs` is in it where they were measured."""
        values = {
            "gamma": self.gamma,
            "verify_curve": list(self.verify_curve),
            "overhead": self.overhead,
            "target_step_seconds": self.target_step_seconds,
            "key": self.key,
        }
        return values if self.level_costs is None else {**values, "level_costs": list(self.level_costs)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CostModel:
        """Rebuilds a cost model from [`CostModel.to_dict`]. Raises `ValueError` on missing or unknown fields."""
        known = {"gamma", "verify_curve", "overhead", "target_step_seconds", "key", "level_costs"}
        if not isinstance(values, dict) or "gamma" not in values or set(values) - known:
            raise ValueError(f"A stored cost model needs the fields {sorted(known)}, got {values!r}. {_REMEDY}")
        return cls(**values)

    def save(self, path: str | os.PathLike) -> Path:
        """
        Adds this cost model to a file, beside those measured on other machines or with other dtypes.

        Args:
            path (`str`): A folder (the drafter's; the file is then `cost_model.json` in it) or a `.json` file.

        Returns:
            `Path`: The file.

        Raises:
            ValueError: If it has no `key`.
            OSError: If it cannot be written; the old file is then left as it was.
        """
        if not self.key:
            raise ValueError(
                "This cost model has no `key`; only measured ones (`CostModel.measure`) can be stored, and those only "
                "if nothing else kept the machine busy meanwhile."
            )
        path = _file_of(path)
        try:
            entries = _read_entries(path) if path.exists() else {}
        except ValueError as error:
            logger.warning(f"{error} Replacing it.")
            entries = {}
        entries[self.key] = self.to_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_whole(path, {"format": _FORMAT, "entries": entries}, sort_keys=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike, key: str | None = None) -> CostModel | None:
        """
        Reads a stored cost model.

        Args:
            path (`str`): As in [`CostModel.save`].
            key (`str`, *optional*): Which entry. Without it the file must hold exactly one.

        Returns:
            [`CostModel`], or `None` if there is no file or no such entry.

        Raises:
            ValueError: If the file is not a cost model file, is truncated, or holds several entries and no `key` is
                given.
        """
        path = _file_of(path)
        if not path.exists():
            return None
        entries = _read_entries(path)
        if key is None:
            if len(entries) != 1:
                raise ValueError(f"`{path}` holds {len(entries)} cost models; name one with `key`: {sorted(entries)}.")
            key = next(iter(entries))
        return cls.from_dict(entries[key]) if key in entries else None


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def _file_of(path: str | os.PathLike) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" else path / COST_MODEL_FILE


def _read_entries(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"The cost model file `{path}` is truncated or not JSON ({error}). {_REMEDY}") from None
    if (
        not isinstance(content, dict)
        or content.get("format") != _FORMAT
        or not isinstance(content.get("entries"), dict)
    ):
        raise ValueError(f"`{path}` is not a cost model file of format {_FORMAT}. {_REMEDY}")
    return content["entries"]
