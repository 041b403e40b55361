# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The what-if panel: what a window costs per accepted token, by the library's own cost model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ppow_hf import CostModel

from .settings import DemoError

# The worked example told about PPOW: 130 ms per accepted token with a fixed window, about 53 ms with an adaptive one.
TARGET_MS, DRAFT_MS = 150.0, 30.0
FIXED_WINDOW, FIXED_ACCEPTED = 8.0, 3.0
ADAPTIVE_WINDOW, ADAPTIVE_ACCEPTED = 6.5, 6.5


@dataclass(frozen=True)
class Outcome:
    """Milliseconds per accepted token, per cycle, and the speedup over a plain target step per token."""

    per_token_ms: float
    cycle_ms: float
    speedup: float


def what_if(target_ms: Any, draft_ms: Any, window: Any, accepted: Any) -> Outcome:
    """
    Args:
        target_ms (`float`): One target step; as in the worked example, verification costs the same whatever the
            window.
        draft_ms (`float`): One draft step.
        window (`float`): Draft tokens per cycle.
        accepted (`float`): Tokens accepted per cycle, at most the window.

    Returns:
        [`Outcome`].

    Raises:
        DemoError: If a number is missing or out of range.
    """
    values = {"Target step": target_ms, "Draft step": draft_ms, "Window": window, "Accepted": accepted}
    for name, value in values.items():
        valid = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
        if not valid or value < 0 or (name in ("Target step", "Accepted") and value == 0):
            raise DemoError(f"{name} must be a number above 0; you gave {value!r}.")
    if accepted > window:
        raise DemoError(
            f"Accepted ({accepted:g}) cannot exceed the window ({window:g}): only drafted tokens count here."
        )
    model = CostModel(gamma=draft_ms / target_ms, target_step_seconds=target_ms / 1000)
    per_token = 1000 * model.cost_per_accepted_token(accepted, window)
    return Outcome(per_token, per_token * accepted, target_ms / per_token)
