# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Where a cycle's time goes: by phase from the trace, by part from stopwatches, by operator from torch.profiler."""

from __future__ import annotations

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import DynamicCache, PreTrainedModel, StoppingCriteriaList

from ..drafters import DrafterModel, Eagle3Drafter, eagle3_step
from ..drafters.growing_cache import GrowingLayer
from ..generation import CostModel, DraftSampler, LookupProposer, PPOWCandidateGenerator, WindowConfig
from ..generation import candidate_generator as generator_module
from ..generation import chain_verification as verification_module
from ..generation.drafter_window import stored_window

DRAFT, VERIFY, OURS, THEIRS, LOOP = "draft", "verify", "other: ours", "other: transformers", "other"
REST = "Python, dispatch and the rest"
_RANGE = "ppow_draft"
# Module names of a drafter, by the end of their path, and what part of a draft step they are.
_ROLES = {
    "fc": "fc",
    "lm_head": "lm_head",
    "embed_tokens": "embedding",
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "o_proj": "attention",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}


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


class Stopwatch:
    """
    Time spent in functions, without that of timed functions they call: each part's own.

    Args:
        device (`torch.device`): On a GPU every part is waited for, which slows the whole but says where time goes.
    """

    def __init__(self, device: torch.device):
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._synchronise = torch.cuda.synchronize if device.type == "cuda" else None
        self._open: list[tuple[str, str]] = []
        self._since = 0.0

    def _switch(self) -> None:
        if self._synchronise is not None:
            self._synchronise()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def start(self, phase: str, part: str) -> None:
        """Begins a part; the one that was running waits."""
        self._switch()
        self._open.append((phase, part))

    def stop(self) -> None:
        """Ends the part begun last."""
        self._switch()
        self._open.pop()

    @contextmanager
    def timing(self, phase: str, part: str) -> Iterator[None]:
        """A part as a `with` block."""
        self.start(phase, part)
        try:
            yield
        finally:
            self.stop()

    def watch(self, stack: ExitStack, owner: Any, name: str, phase: str, part: str | Callable[..., str]) -> None:
        """
        Times calls of `owner.name` until `stack` is closed.

        Args:
            stack (`ExitStack`): Puts the function back.
            owner: A class, module or object.
            name (`str`): Of its function.
            phase (`str`), part (`str` or `Callable`): What the time counts as, or a function of its arguments.
        """
        original = getattr(owner, name)
        own = inspect.getattr_static(owner, name) if name in vars(owner) else None

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timing(phase, part if isinstance(part, str) else part(*args)):
                return original(*args, **kwargs)

        setattr(owner, name, timed)
        stack.callback(setattr, owner, name, own) if own is not None else stack.callback(delattr, owner, name)


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
        ValueError: If there is no prompt, the window is a tree, or nothing was drafted.
    """
    if not prompts:
        raise ValueError("`prompts` is empty: give at least one.")
    if WindowConfig.coerce(generate_kwargs.get("window"), stored_window(drafter)).tree is not None:
        raise ValueError("`window` drafts trees, whose parts are not told apart: profile `cost_aware` or `mixed`.")
    result = CycleProfile(cost=CostModel.measure(target, drafter))
    options = {"do_sample": False, **generate_kwargs}

    def decode(inputs: Mapping[str, torch.Tensor], tokens: int = max_new_tokens) -> None:
        target.generate(**inputs, **options, assistant_model=drafter, max_new_tokens=tokens)

    decode(prompts[0], min(max_new_tokens, 16))  # warms up
    seconds: dict[str, float] = defaultdict(float)
    for inputs in prompts:
        decode(inputs)
        result.cycles += len(drafter.last_trace.cycles)
        result.new_tokens += drafter.last_trace.new_tokens
        for phase, value in drafter.last_trace.seconds.items():
            seconds[phase] += value
    result.seconds = dict(seconds)
    if not result.cycles:
        raise ValueError(f"Nothing was drafted within `max_new_tokens`={max_new_tokens}: give other prompts or more.")
    watch = Stopwatch(target.device)
    with ExitStack() as stack:
        _watch_generation(stack, watch, target)
        _watch_drafter(stack, watch, drafter)
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


def _watch_generation(stack: ExitStack, watch: Stopwatch, target: PreTrainedModel) -> None:
    """Stopwatches on everything but the drafter's insides."""

    def before(module: Any, args: Any, kwargs: Any) -> None:
        past = kwargs.get("past_key_values")
        first = past is None or past.get_seq_length() == 0
        watch.start("prefill" if first else VERIFY, "target")

    def after(module: Any, args: Any, output: Any) -> None:
        watch.stop()

    stack.callback(target.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove)
    stack.callback(target.register_forward_hook(after).remove)
    generator = PPOWCandidateGenerator
    for owner, name, part in (
        (generator, "get_candidates", "candidate generator"),
        (generator, "_take_in", "taking in tokens and features"),
        (generator, "update_candidate_strategy", "learning from verification"),
        (generator_module, "draft_window", "window policy and estimates"),
        (generator_module, "window_divergence", "divergence of drafter and target"),
        (DraftSampler, "favourite", "drawing draft tokens"),
        (DraftSampler, "scores", "drawing draft tokens"),
        (DraftSampler, "draw", "drawing draft tokens"),
        (LookupProposer, "propose", "lookup"),
        (LookupProposer, "learn", "lookup"),
        (verification_module, "favourites", "choosing the target's tokens"),
    ):
        watch.watch(stack, owner, name, OURS, part)
    for owner, name, part in (
        (type(target), "prepare_inputs_for_generation", "preparing inputs"),
        (type(target), "_update_model_kwargs_for_generation", "preparing inputs"),
        (DynamicCache, "crop", "cropping the cache"),
        (StoppingCriteriaList, "__call__", "stopping criteria"),
    ):
        watch.watch(stack, owner, name, THEIRS, part)


def _watch_drafter(stack: ExitStack, watch: Stopwatch, drafter: DrafterModel) -> None:
    """Stopwatches on the parts of a draft step."""
    for name in ("extend", "step"):
        watch.watch(stack, drafter, name, DRAFT, REST)
    watch.watch(stack, GrowingLayer, "update", DRAFT, "cache")
    roles = {}
    for path, module in drafter.named_modules():
        role = _ROLES.get(path.rpartition(".")[2])
        if role is None and "norm" in path.rpartition(".")[2].lower():
            role = "norm"
        if role is not None:
            roles[module] = role
    if isinstance(drafter, Eagle3Drafter) and eagle3_step.single_sequence_step(drafter) is not None:
        step = eagle3_step.Eagle3Step
        watch.watch(stack, eagle3_step, "_product", DRAFT, lambda linear, *_: roles[linear])
        watch.watch(stack, drafter, "project_features", DRAFT, "fc")
        for name, part in (("_embed", "embedding"), ("_norm", "norm"), ("_attend", "attention")):
            watch.watch(stack, step, name, DRAFT, part)
        for name in ("_rotate", "_angles"):
            watch.watch(stack, step, name, DRAFT, "rotary embedding")
        return
    # Modules are called as they are: hooks see them all.
    for module, role in roles.items():
        stack.callback(
            module.register_forward_pre_hook(lambda *_, role=role: watch.start(DRAFT, role), prepend=True).remove
        )
        stack.callback(module.register_forward_hook(lambda *_: watch.stop()).remove)


def _operators_of_drafting(drafter: DrafterModel, decode: Callable[[], None], count: int) -> list[dict[str, Any]]:
    """The operators that drafting spends most of its own time in, by torch.profiler."""
    activities = [ProfilerActivity.CPU]
    if drafter.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with ExitStack() as stack:
        for name in ("extend", "step"):
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
