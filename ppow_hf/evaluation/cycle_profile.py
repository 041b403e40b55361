# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Where a cycle's time goes: by phase from the trace, by part from stopwatches, by operator from torch.profiler."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import PreTrainedModel

from ..drafters import DrafterModel
from ..generation import CostModel
from .stopwatches import DRAFT, LOOP, OURS, THEIRS, VERIFY, Stopwatch, watch_chains, watch_drafter, watch_trees

_RANGE = "ppow_draft"


@dataclass
class CycleProfile:
    """
    Args:
        cycles (`int`), new_tokens (`int`): What was decoded, in each of the passes.
        seconds (`dict[str, float]`): Per phase, from the trace, undisturbed by stopwatches.
        parts (`dict[str, dict[str, float]]`): Seconds per phase and part, under stopwatches.
        operators (`list[dict]`): `name`, `calls` and `milliseconds` (its own, without those it calls) per cycle, of
            the operators of drafting that take longest, under torch.profiler.
        cost ([`CostModel`]): Measured costs of the same models.
    """

    cycles: int = 0
    new_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    operators: list[dict[str, Any]] = field(default_factory=list)
    cost: CostModel | None = None

    @property
    def shares(self) -> dict[str, float]:
        """`dict[str, float]`: Share of each phase in the cycles; the prefill is no part of them."""
        phases = {name: value for name, value in self.seconds.items() if name != "prefill"}
        total = sum(phases.values())
        return {name: value / total if total else 0.0 for name, value in phases.items()}

    def rows(self) -> list[tuple[str, str, float, float]]:
        """`(phase, part, milliseconds per cycle, share of the cycle)` of every part, longest first in its phase."""
        total = sum(sum(parts.values()) for parts in self.parts.values())
        rows = []
        for phase in (DRAFT, VERIFY, OURS, THEIRS, LOOP):
            for part, seconds in sorted(self.parts.get(phase, {}).items(), key=lambda item: -item[1]):
                rows.append((phase, part, 1000 * seconds / max(self.cycles, 1), seconds / total if total else 0.0))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-serialisable values."""
        return {
            "cycles": self.cycles,
            "new_tokens": self.new_tokens,
            "seconds": self.seconds,
            "shares": self.shares,
            "gamma": self.cost.gamma if self.cost is not None else None,
            "cost": self.cost.to_dict() if self.cost is not None else None,
            "parts": [
                {"phase": phase, "part": part, "milliseconds": milliseconds, "share": share}
                for phase, part, milliseconds, share in self.rows()
            ],
            "operators": self.operators,
        }


def profile_cycles(
    target: PreTrainedModel,
    drafter: DrafterModel,
    prompts: Sequence[Mapping[str, torch.Tensor]],
    *,
    max_new_tokens: int = 64,
    operators: int = 15,
    **generate_kwargs: Any,
) -> CycleProfile:
    """
    Decodes prompts three times: as it is, under stopwatches, and (the first prompt) under torch.profiler.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
        prompts (`Sequence[Mapping[str, torch.Tensor]]`): Inputs of `generate`, one prompt each.
        max_new_tokens (`int`, *optional*, defaults to 64): New tokens per prompt.
        operators (`int`, *optional*, defaults to 15): Operators to list; 0 leaves torch.profiler out.
        generate_kwargs: Further arguments of `generate`, such as `window` or `do_sample`.

    Returns:
        [`CycleProfile`].

    Raises:
        ValueError: If there is no prompt, or nothing was drafted.
    """
    if not prompts:
        raise ValueError("`prompts` is empty: give at least one.")
    result = CycleProfile(cost=CostModel.measure(target, drafter))
    options = {"do_sample": False, **generate_kwargs}

    def decode(inputs: Mapping[str, torch.Tensor], tokens: int = max_new_tokens) -> None:
        target.generate(**inputs, **options, assistant_model=drafter, max_new_tokens=tokens)

    decode(prompts[0], min(max_new_tokens, 16))  # warms up
    seconds: dict[str, float] = defaultdict(float)
    trees = False  # by what was done: a drafter's own tree gives way to chains where it cannot be
    for inputs in prompts:
        decode(inputs)
        trees = trees or any(cycle.parents for cycle in drafter.last_trace.cycles)
        result.cycles += len(drafter.last_trace.cycles)
        result.new_tokens += drafter.last_trace.new_tokens
        for phase, value in drafter.last_trace.seconds.items():
            seconds[phase] += value
    result.seconds = dict(seconds)
    if not result.cycles:
        raise ValueError(f"Nothing was drafted within `max_new_tokens`={max_new_tokens}: give other prompts or more.")
    watch = Stopwatch(target.device)
    with ExitStack() as stack:
        watch_drafter(stack, watch, drafter)  # first: its cache is one of the kind that is watched for the target
        (watch_trees if trees else watch_chains)(stack, watch, target)
        for inputs in prompts:
            with watch.timing(LOOP, "the loops of both and everything else"):
                decode(inputs)
    parts: dict[str, dict[str, float]] = defaultdict(dict)
    for (phase, part), value in watch.seconds.items():
        if phase != "prefill":
            parts[phase][part] = value
    result.parts = dict(parts)
    if operators:
        result.operators = _operators_of_drafting(drafter, lambda: decode(prompts[0]), operators)
    return result


def _operators_of_drafting(drafter: DrafterModel, decode: Callable[[], None], count: int) -> list[dict[str, Any]]:
    """The operators that drafting spends most of its own time in, by torch.profiler."""
    activities = [ProfilerActivity.CPU]
    if drafter.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with ExitStack() as stack:
        for name in ("extend", "step", "step_tree"):
            original = getattr(drafter, name)

            @functools.wraps(original)
            def marked(*args: Any, original: Callable = original, **kwargs: Any) -> Any:
                with record_function(_RANGE):
                    return original(*args, **kwargs)

            setattr(drafter, name, marked)
            stack.callback(delattr, drafter, name)
        with profile(activities=activities) as profiler:
            decode()
    cycles = max(len(drafter.last_trace.cycles), 1)
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in profiler.events():
        parent = event.cpu_parent
        while parent is not None and parent.name != _RANGE:
            parent = parent.cpu_parent
        if parent is not None:
            totals[event.name][0] += 1
            totals[event.name][1] += event.self_cpu_time_total
    longest = sorted(totals.items(), key=lambda item: -item[1][1])[:count]
    return [
        {"name": name, "calls": calls / cycles, "milliseconds": microseconds / 1000 / cycles}
        for name, (calls, microseconds) in longest
    ]


def profile_tables(result: CycleProfile) -> str:
    """A profile as Markdown."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result.shares.items())
    cycle = 1000 * sum(value for name, value in result.seconds.items() if name != "prefill") / max(result.cycles, 1)
    lines = [
        f"{result.cycles} cycles, {result.new_tokens} new tokens, {cycle:.1f} ms per cycle: {shares}.",
    ]
    if result.cost is not None:
        lines.append(
            f"A draft step costs {result.cost.gamma:.3f} of a target step of "
            f"{1000 * result.cost.target_step_seconds:.1f} ms, verifying 4 tokens {result.cost.verify(4):.3f}."
        )
    lines += ["", "| phase | part | ms per cycle | share |", "|---|---|---:|---:|"]
    lines += [f"| {phase} | {part} | {ms:.3f} | {share:.1%} |" for phase, part, ms, share in result.rows()]
    if result.operators:
        lines += ["", "| operator of drafting | calls per cycle | own ms per cycle |", "|---|---:|---:|"]
        lines += [f"| `{row['name']}` | {row['calls']:.1f} | {row['milliseconds']:.3f} |" for row in result.operators]
    lines += [
        "",
        "Shares in the first line are of undisturbed decoding. Parts are timed with stopwatches around them and "
        "operators with torch.profiler, either of which makes small things look larger.",
    ]
    return "\n".join(lines)
