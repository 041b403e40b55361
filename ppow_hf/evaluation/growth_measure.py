# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""One call of a growth measurement: time to the first token, time per token and per cycle, and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import BaseStreamer

from ..drafters import DrafterModel, DrafterState
from ..end_tokens import eos_token_ids_of
from ..generation.drafter_window import stored_window
from .measure import measure_generation
from .memory import PeakMemory, cache_bytes, state_bytes
from .methods import PLAIN, Method, parse_method

STORED = "stored"


class StoredWindow(Method):
    """The window the drafter comes with, as `generate(assistant_model=drafter)` uses it."""

    @contextmanager
    def generate_kwargs(self, drafter: nn.Module | None, assistant: nn.Module | None) -> Iterator[dict[str, Any]]:
        own = stored_window(drafter)
        # Nothing of a prompt before: the order of calls must not matter.
        yield {"assistant_model": drafter, "window": replace(own, carry_over=False)}


def growth_methods(names: Sequence[str]) -> list[Method]:
    """Methods by name, plain `generate` first: those of the benchmark, and `stored`, the drafter's own window."""
    methods = [parse_method(PLAIN)]
    for name in names:
        method = StoredWindow(STORED, "window") if name.strip() == STORED else parse_method(name.strip())
        if method not in methods:
            methods.append(method)
    return methods


class _FirstTokens(BaseStreamer):
    """Notes when the first tokens came, and how many."""

    def __init__(self):
        self.at: float | None = None
        self.tokens = 0
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
        elif self.at is None:
            self.at, self.tokens = time.perf_counter(), value.numel()

    def end(self) -> None:
        pass


@contextmanager
def without_end(model: PreTrainedModel) -> Iterator[None]:
    """Lets no token end the text, so that every call does the same work."""
    config = model.generation_config
    saved, config.eos_token_id = config.eos_token_id, None
    try:
        yield
    finally:
        config.eos_token_id = saved


def measure_call(
    method: Method,
    target: PreTrainedModel,
    drafter: DrafterModel | None,
    assistant: PreTrainedModel | None,
    input_ids: torch.LongTensor,
    new_tokens: int,
    pad_token_id: int | None,
) -> dict[str, Any]:
    """
    One greedy call of exactly `new_tokens` tokens.

    Returns:
        `dict`: `seconds` of the call; `first_seconds` until its `first_tokens` came; `verifications`, `committed`,
        `drafted` and `accepted` (None for plain decoding); and for our methods `prompt_draft`, the drafter's seconds
        in the first cycle, where it takes in the prompt, and `cycle`, the median seconds of the other cycles in
        `draft`, `verify` and `other`.
    """
    first = _FirstTokens()
    with without_end(target):
        start = time.perf_counter()
        generation = measure_generation(
            method,
            target,
            drafter,
            assistant,
            input_ids,
            max_new_tokens=new_tokens,
            pad_token_id=pad_token_id,
            streamer=first,
        )
    record: dict[str, Any] = {
        "tokens": len(generation.tokens),
        "seconds": generation.seconds,
        "first_seconds": first.at - start,
        "first_tokens": first.tokens,
        **{name: getattr(generation, name) for name in ("verifications", "committed", "drafted", "accepted")},
        "prompt_draft": None,
        "cycle": None,
    }
    if method.kind == "window":
        spent = [cycle.seconds for cycle in drafter.last_trace.cycles]
        if spent:
            record["prompt_draft"] = spent[0]["draft"]
        if spent[1:]:
            record["cycle"] = {
                phase: statistics.median(seconds[phase] for seconds in spent[1:])
                for phase in ("draft", "verify", "other")
            }
    if method.name == PLAIN:
        # Behind the end of its answer the target writes on; the report says how often.
        record["ended"] = not eos_token_ids_of(target.generation_config).isdisjoint(generation.tokens)
    return record


def measure_memory(
    method: Method,
    target: PreTrainedModel,
    drafter: DrafterModel | None,
    assistant: PreTrainedModel | None,
    input_ids: torch.LongTensor,
    new_tokens: int,
    pad_token_id: int | None,
) -> dict[str, int | None]:
    """
    Memory of the call that [`measure_call`] times.

    Returns:
        `dict`: `peak` bytes above those before the call (None where the system does not tell), `cache`, what the
        target's keys and values take at its end, and `state`, what the drafter remembers then (0 without ours).
    """
    states: list[DrafterState] = []
    with method.generate_kwargs(drafter, assistant) as kwargs, without_end(target), _kept_states(drafter, states):
        with PeakMemory(target.device) as peak:
            output = target.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=new_tokens,
                pad_token_id=pad_token_id,
                do_sample=False,
                return_dict_in_generate=True,
                **kwargs,
            )
    return {
        "peak": peak.bytes,
        "cache": cache_bytes(output.past_key_values),
        "state": sum(state_bytes(state) for state in states),
    }


@contextmanager
def _kept_states(drafter: DrafterModel | None, states: list[DrafterState]) -> Iterator[None]:
    """Lists the states that the drafter hands out, which otherwise go with the call."""
    if not hasattr(drafter, "new_state"):
        yield
        return
    make = drafter.new_state

    def new_state(*args: Any, **kwargs: Any) -> DrafterState:
        states.append(make(*args, **kwargs))
        return states[-1]

    drafter.__dict__["new_state"] = new_state
    try:
        yield
    finally:
        del drafter.__dict__["new_state"]
