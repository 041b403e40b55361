# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""One measured `generate` call: tokens, time, and how the target's passes went."""

import time
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed
from transformers.generation import BaseStreamer

from .calibration import Reliability
from .methods import Method

PHASES = ("prefill", "draft", "verify", "other")


@dataclass
class Generation:
    """
    Figures of one `generate` call.

    Args:
        tokens (`list[int]`): The new tokens.
        seconds (`float`): Wall-clock seconds of the whole call.
        verifications (`int`, *optional*): Target passes that checked a window; None for plain decoding.
        committed (`int`, *optional*): Tokens that those passes committed, bonus tokens included.
        drafted (`int`, *optional*): Draft tokens sent to them.
        accepted (`int`, *optional*): Draft tokens that became part of the text.
        phases (`dict`): Seconds in `prefill`, `draft`, `verify` and `other`, which add up to `seconds`; None where it
            cannot be told.
        cycle_overhead (`float`, *optional*): Seconds inside the cycles that were neither drafting nor verification
            (our generator only); `phases["other"]` also holds what `generate` does before and after them.
        cycles (`list`): `[drafted, accepted, committed, divergence]` of every cycle (our generator only).
        others (`float`, *optional*): Share of the processors' time that others took meanwhile; None where unknown.
        estimate, confidence ([`Reliability`], *optional*): Predicted acceptance against outcome (our generator only).
    """

    tokens: list[int]
    seconds: float
    verifications: int | None = None
    committed: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    phases: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(PHASES))
    cycle_overhead: float | None = None
    cycles: list[list[Any]] = field(default_factory=list)
    others: float | None = None
    estimate: Reliability | None = None
    confidence: Reliability | None = None


class PassCounter:
    """
    Counts and times the forward passes of a model from outside, through forward hooks.

    Transformers' own assistants keep no record of their verifications; the number of tokens that a target pass gets
    tells how many were drafted for it. The first pass holds the prompt and whatever was drafted before it.

    Args:
        model (`nn.Module`): Whose passes are counted.
        prompt_length (`int`): Tokens of the prompt.
    """

    def __init__(self, model: nn.Module, prompt_length: int):
        self.model = model
        self.prompt_length = prompt_length
        self.seconds: list[float] = []
        self.drafted = 0
        self._started = 0.0
        self._handles: list[Any] = []

    @property
    def passes(self) -> int:
        return len(self.seconds)

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs = kwargs.get("input_ids")
        if inputs is None:
            inputs = kwargs.get("inputs_embeds")
        if inputs is None:
            inputs = args[0]
        self.drafted += inputs.shape[1] - (1 if self.seconds else self.prompt_length)
        self._started = time.perf_counter()

    def _after(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)

    def __enter__(self) -> "PassCounter":
        self._handles = [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *exc_info: Any) -> None:
        for handle in self._handles:
            handle.remove()


def sampling_kwargs(temperature: float) -> dict[str, Any]:
    """`generate` arguments of a temperature: greedy at 0, otherwise sampling from the whole distribution."""
    if temperature == 0:
        return {"do_sample": False, "temperature": 1.0, "top_k": None, "top_p": None}
    return {"do_sample": True, "temperature": float(temperature), "top_k": 0, "top_p": 1.0}


def generation_seed(*parts: Any) -> int:
    """A seed that depends only on `parts`: a prompt is sampled alike whatever ran before it."""
    return zlib.crc32("\0".join(str(part) for part in parts).encode())


def measure_generation(
    method: Method,
    target: PreTrainedModel,
    drafter: nn.Module | None,
    assistant: PreTrainedModel | None,
    input_ids: torch.LongTensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    pad_token_id: int | None = None,
    streamer: BaseStreamer | None = None,
) -> Generation:
    """
    Run `target.generate` once with `method` and measure it.

    Args:
        input_ids (`torch.LongTensor` of shape `(1, prompt_length)`): The prompt.
        max_new_tokens (`int`): Most tokens to generate.
        temperature (`float`): 0 for greedy decoding, otherwise the sampling temperature.
        seed (`int`): Seed of this call's sampling.
        pad_token_id (`int`, *optional*): Handed to `generate`, which warns without one.
        streamer (`BaseStreamer`, *optional*): Handed to `generate`, which gives it the tokens as they come.

    Returns:
        [`Generation`].
    """
    prompt_length = input_ids.shape[1]
    is_cuda = input_ids.device.type == "cuda"
    if temperature > 0:
        set_seed(seed)
    # Our generator keeps its own record.
    target_passes = PassCounter(target, prompt_length) if method.kind != "window" else None
    drafting = PassCounter(assistant, prompt_length) if method.kind == "assistant" else None
    with (
        method.generate_kwargs(drafter, assistant) as method_kwargs,
        target_passes or nullcontext(),
        drafting or nullcontext(),
    ):
        if is_cuda:
            torch.cuda.synchronize(input_ids.device)
        start = time.perf_counter()
        output = target.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_token_id,
            return_dict_in_generate=False,
            streamer=streamer,
            **sampling_kwargs(temperature),
            **method_kwargs,
        )
        tokens = output[0, prompt_length:].tolist()  # waits for the device
        seconds = time.perf_counter() - start
    generation = Generation(tokens=tokens, seconds=seconds)
    if method.kind == "window":
        _add_trace(generation, drafter.last_trace)
        return generation
    if method.kind != "plain":
        generation.verifications = target_passes.passes
        generation.committed = len(tokens)
        generation.drafted = target_passes.drafted
        # Every pass commits one token of the target's own, unless the text ends on an accepted draft token.
        generation.accepted = len(tokens) - target_passes.passes
    if not is_cuda:  # on a GPU a pass returns before its work is done
        phases: dict[str, float | None] = dict.fromkeys(PHASES)
        phases["prefill"] = target_passes.seconds[0]
        phases["verify"] = sum(target_passes.seconds[1:])
        if drafting is not None:
            phases["draft"] = sum(drafting.seconds)
        phases["other"] = seconds - sum(value for value in phases.values() if value is not None)
        generation.phases = phases
    return generation


def _add_trace(generation: Generation, trace: Any) -> None:
    generation.verifications = trace.verifications
    generation.committed = trace.new_tokens - trace.prefill_tokens
    generation.drafted = trace.drafted
    generation.accepted = trace.accepted
    spent = trace.seconds
    generation.phases = {phase: spent[phase] for phase in ("prefill", "draft", "verify")}
    generation.phases["other"] = generation.seconds - sum(generation.phases.values())
    generation.cycle_overhead = spent["other"]
    generation.cycles = [[cycle.drafted, cycle.accepted, cycle.committed, cycle.divergence] for cycle in trace.cycles]
    predicted, confidence, outcomes = trace.calibration_pairs()
    if len(predicted) == len(outcomes):
        generation.estimate = Reliability()
        generation.estimate.update(predicted, outcomes)
    if len(confidence) == len(outcomes):
        generation.confidence = Reliability()
        generation.confidence.update(confidence, outcomes)
