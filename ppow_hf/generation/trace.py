# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`GenerationTrace`: what happened in one speculative `generate` call, cycle by cycle, and where the time went."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

PHASES = ("prefill", "draft", "verify", "other")


class Clock:
    """
    Marks points in time, cheaply: `perf_counter` on CPU, CUDA events (no synchronisation) on a GPU.

    Args:
        device (`torch.device`): The device whose work is timed.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._device = device

    def mark(self) -> float | torch.cuda.Event:
        """Returns a mark; two marks give a [`Span`]."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def seconds_between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Seconds between two marks of one [`Clock`]; waits for the GPU to reach `end`."""
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000.0


@dataclass(slots=True)
class Cycle:
    """
    One cycle: draft a window, verify it, commit.

    Args:
        source (`str`): What proposed: `"drafter"`, `"lookup"`, or `"mixed"` (lookup, and the drafter behind it).
        drafted (`int`): Draft tokens sent to verification.
        looked_up (`int`): How many of them are lookup's: the first of a window, anywhere in a tree.
        accepted (`int`): Draft tokens committed.
        committed (`int`): Tokens committed, the target's own token included.
        tokens (`list[int]`): Draft tokens, in target ids.
        bonus (`int`, *optional*): The target's own token; `None` when the text ended on an accepted draft token.
        predicted (`list[float]`): Estimated acceptance probability of every draft token, given that the ones before
            it were accepted.
        confidence (`list[float]`): The drafter's probability of its favourite token, at every position it drafted:
            behind the looked-up tokens, as are `features` and `outcomes`.
        features (`list[tuple[float, ...]]`): Features of the acceptance estimate (for [`fit_calibration`]).
        outcomes (`list[float]`): 1 accepted, 0 rejected (or the acceptance probability when sampling), for the
            positions verification reached; shorter after a rejection.
        divergence (`float`, *optional*): Running divergence when the window was drafted.
        rate (`float`, *optional*): Tokens per unit cost the policy assumed (`cost_aware` only).
        stop (`str`): Why drafting stopped: `"limit"`, `"policy"`, `"eos"`, `"no_support"`, `"length"`, or
            `"no_match"` where lookup found nothing.
        depth (`int`): In a tree, nodes of its longest path; `drafted` are all its nodes, and `predicted`,
            `confidence`, `features` and `outcomes` concern the first child of every node the drafter went on from,
            those of the accepted path in front.
        parents (`list[int]`): In a tree, index in `tokens` of the node each follows, -1 for the text. The accepted
            path comes first.
    """

    source: str = "drafter"
    drafted: int = 0
    looked_up: int = 0
    accepted: int = 0
    committed: int = 0
    tokens: list[int] = field(default_factory=list)
    bonus: int | None = None
    predicted: list[float] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    features: list[tuple[float, ...]] = field(default_factory=list)
    outcomes: list[float] = field(default_factory=list)
    divergence: float | None = None
    rate: float | None = None
    stop: str = ""
    depth: int = 0
    parents: list[int] = field(default_factory=list)
    marks: dict[str, list] = field(default_factory=dict, repr=False)

    @property
    def seconds(self) -> dict[str, float]:
        """`dict[str, float]`: Seconds spent in `draft`, `verify` and `other` (everything else in the cycle)."""
        spent = {}
        for phase in ("draft", "verify"):
            spans = self.marks.get(phase, ())
            spent[phase] = sum(seconds_between(start, end) for start, end in spans)
        total = sum(seconds_between(start, end) for start, end in self.marks.get("cycle", ()))
        spent["other"] = max(0.0, total - spent["draft"] - spent["verify"])
        return spent


@dataclass
class GenerationTrace:
    """
    The record of one speculative `generate` call, at `drafter.last_trace` from the start of the call on.

    Args:
        window (`dict`): The `WindowConfig` in force.
        cycles (`list[Cycle]`): One entry per verification. The prefill, which commits the first token, is not one.
        prompt_length (`int`): Prompt tokens seen by the drafter (padding excluded).
        prefill_tokens (`int`): Tokens committed by the prefill (1, once it has run).
        cost (`dict`, *optional*): The cost model in force, if the policy used one.
    """

    window: dict[str, Any] = field(default_factory=dict)
    cycles: list[Cycle] = field(default_factory=list)
    prompt_length: int = 0
    prefill_tokens: int = 0
    cost: dict[str, Any] | None = None
    prefill_marks: list = field(default_factory=list, repr=False)

    @property
    def verifications(self) -> int:
        """`int`: Target forward passes after the prefill."""
        return len(self.cycles)

    @property
    def new_tokens(self) -> int:
        """`int`: Tokens generated, the one from the prefill included."""
        return self.prefill_tokens + sum(cycle.committed for cycle in self.cycles)

    @property
    def acceptance_length(self) -> float | None:
        """`float`: tau, tokens committed per verification, the target's own token included; `None` without cycles."""
        return sum(cycle.committed for cycle in self.cycles) / len(self.cycles) if self.cycles else None

    @property
    def drafted(self) -> int:
        """`int`: Draft tokens sent to verification."""
        return sum(cycle.drafted for cycle in self.cycles)

    @property
    def accepted(self) -> int:
        """`int`: Draft tokens committed."""
        return sum(cycle.accepted for cycle in self.cycles)

    @property
    def acceptance_rate(self) -> float | None:
        """`float`: Share of draft tokens that were accepted; `None` when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def mean_window(self) -> float | None:
        """`float`: Mean number of draft tokens per cycle; `None` without cycles."""
        return self.drafted / len(self.cycles) if self.cycles else None

    @property
    def prefill_seconds(self) -> float:
        """`float`: Seconds of the target's pass over the prompt."""
        return sum(seconds_between(start, end) for start, end in self.prefill_marks)

    @property
    def seconds(self) -> dict[str, float]:
        """`dict[str, float]`: Seconds in `prefill`, `draft`, `verify` and `other`, over the whole call."""
        total = dict.fromkeys(PHASES, 0.0)
        total["prefill"] = self.prefill_seconds
        for cycle in self.cycles:
            for phase, value in cycle.seconds.items():
                total[phase] += value
        return total

    def calibration_pairs(self) -> tuple[list[float], list[float], list[float]]:
        """
        Returns:
            `(predicted, confidence, outcomes)`: three lists of equal length, one entry per token of the drafter that
            verification reached.
        """
        predicted, confidence, outcomes = [], [], []
        for cycle in self.cycles:
            reached = len(cycle.outcomes)
            predicted += cycle.predicted[cycle.looked_up :][:reached]
            confidence += cycle.confidence[:reached]
            outcomes += cycle.outcomes
        return predicted, confidence, outcomes

    def calibration_records(self) -> list[tuple[tuple[float, ...], float]]:
        """Returns `(features, outcome)` of every token of the drafter that verification reached, for
        [`fit_calibration`]."""
        return [pair for cycle in self.cycles for pair in zip(cycle.features, cycle.outcomes, strict=False)]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON-serialisable values (waits for the GPU, if any)."""
        keys = ("source", "drafted", "looked_up", "accepted", "committed", "tokens", "bonus")
        keys += ("predicted", "confidence")
        keys += ("outcomes", "divergence", "rate", "stop", "depth", "parents")
        return {
            "window": self.window,
            "cost": self.cost,
            "prompt_length": self.prompt_length,
            "new_tokens": self.new_tokens,
            "verifications": self.verifications,
            "acceptance_length": self.acceptance_length,
            "acceptance_rate": self.acceptance_rate,
            "mean_window": self.mean_window,
            "seconds": self.seconds,
            "cycles": [
                {key: getattr(cycle, key) for key in keys} | {"seconds": cycle.seconds} for cycle in self.cycles
            ],
        }
