# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a visitor may ask for, and polite refusals of everything else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ppow_hf import WindowConfig
from ppow_hf.generation import WINDOW_POLICIES

MAX_NEW_TOKENS = 256
MAX_TEMPERATURE = 1.5
MAX_WINDOW = 16
MAX_PROMPT_CHARACTERS = 20_000
MAX_SEED = 2**31 - 1

POLICY_LABELS = {
    "cost_aware": "Cost-aware: draft while it pays",
    "divergence": "Divergence: follow the running KL",
    "confidence": "Confidence: stop when unsure",
    "heuristic": "Heuristic: +2 after success, -1 after failure",
    "fixed": "Fixed: always the same number",
}


class DemoError(ValueError):
    """Something a visitor can put right; its text is shown in the page."""


def _number(name: str, value: Any, low: float, high: float, *, whole: bool) -> float:
    valid = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not valid or not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise DemoError(f"{name} must be {kind} between {low:g} and {high:g}; you gave {value!r}.")
    return int(value) if whole else float(value)


@dataclass(frozen=True)
class Settings:
    """
    The controls of the page, checked.

    Args:
        temperature (`float`, *optional*, defaults to 0.0): 0 for greedy decoding.
        max_new_tokens (`int`, *optional*, defaults to 96): Longest answer.
        policy (`str`, *optional*, defaults to `"cost_aware"`): Window policy.
        size (`int`, *optional*, defaults to 5): Window of `"fixed"`, first window of others.
        min_size (`int`, *optional*, defaults to 1), max_size (`int`, *optional*, defaults to 12):
            Limits of the adaptive policies.
        seed (`int`, *optional*, defaults to 0): Seed of sampling.

    Raises:
        DemoError: Naming the control, what was given and what it takes.
    """

    temperature: float = 0.0
    max_new_tokens: int = 96
    policy: str = "cost_aware"
    size: int = 5
    min_size: int = 1
    max_size: int = 12
    seed: int = 0

    def __post_init__(self):
        checks = (
            ("temperature", "Temperature", 0, MAX_TEMPERATURE, False),
            ("max_new_tokens", "New tokens", 2, MAX_NEW_TOKENS, True),
            ("size", "Fixed or first window", 1, MAX_WINDOW, True),
            ("min_size", "Smallest window", 0, MAX_WINDOW, True),
            ("max_size", "Largest window", 1, MAX_WINDOW, True),
            ("seed", "Seed", 0, MAX_SEED, True),
        )
        for field, label, low, high, whole in checks:
            object.__setattr__(self, field, _number(label, getattr(self, field), low, high, whole=whole))
        if self.policy not in WINDOW_POLICIES:
            raise DemoError(f"Window policy must be one of {', '.join(WINDOW_POLICIES)}; you gave {self.policy!r}.")
        if self.policy != "fixed" and self.min_size > self.max_size:
            raise DemoError(
                f"The smallest window ({self.min_size}) is larger than the largest ({self.max_size}). Swap them."
            )

    @property
    def generate_kwargs(self) -> dict[str, Any]:
        """`dict`: Arguments of `target.generate`; sampling is from the whole distribution, nothing cut off."""
        kwargs: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.temperature > 0}
        if self.temperature > 0:
            kwargs.update(temperature=self.temperature, top_p=1.0, top_k=0)
        return kwargs

    def window(self, own: WindowConfig) -> WindowConfig:
        """
        Args:
            own ([`WindowConfig`]): The drafter's own window, whose calibration is kept.

        Returns:
            [`WindowConfig`]: The drafter's window with the visitor's policy and limits. The running divergence is kept
            as a KL divergence, which is what the gauge shows.
        """
        # The page draws chains of the drafter's own; a drafter may come with other defaults.
        chain = {"tree": None, "proposals": "drafter"}
        chain = {name: value for name, value in chain.items() if hasattr(own, name)}
        return replace(
            own,
            policy=self.policy,
            size=self.size,
            min_size=self.min_size,
            max_size=self.max_size,
            divergence_metric="kl",
            **chain,
        )


def check_prompt(prompt: Any) -> str:
    """The prompt, without surrounding blanks. Raises [`DemoError`] if it is empty or far too long."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise DemoError("The prompt is empty. Type a question, or pick one of the examples.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise DemoError(
            f"That is a long prompt: {len(prompt):,} characters. This page takes at most {MAX_PROMPT_CHARACTERS:,}. "
            "Please shorten it, or run `ppow generate` on your own machine."
        )
    return prompt.strip()
