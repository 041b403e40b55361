# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How fast [`generate_responses`] is, against a bare batched `generate` loop over the same prompts."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .chat import render_prompt
from .conversations import left_pad
from .prompts import Prompt
from .responses import generate_responses
from .settings import end_token_ids


def measure_throughput(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    rounds: int = 4,
) -> dict[str, float | int | list[float]]:
    """Time both, greedy and on the first turns, after one warm-up batch. Which of them goes first changes every round:
    what runs second finds the machine warmer.

    Args:
        target, tokenizer, prompts, max_new_tokens, batch_size: see [`generate_responses`].
        rounds (`int`, *optional*, defaults to 4): how often each is timed; the median counts. An even number has both
            orders equally often.

    Returns:
        `dict`: `tokens_per_second` and `bare_tokens_per_second`, medians; `ratio`, the median of the rounds' `ratios`,
        the first over the second; `response_tokens` and `bare_response_tokens`, of one round.
    """
    if rounds < 1:
        raise ValueError(f"`rounds` is {rounds}: give at least 1.")
    prompts = [Prompt(prompt.turns[:1], prompt.system, prompt.source) for prompt in prompts]
    _bare_loop(target, tokenizer, prompts[:batch_size], min(max_new_tokens, 8), batch_size)
    arguments = (target, tokenizer, prompts, max_new_tokens, batch_size)
    ways = {"ours": _with_library, "bare": _bare_loop}
    tokens, rates = {}, {name: [] for name in ways}
    for number in range(rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            started = time.perf_counter()
            tokens[name] = ways[name](*arguments)
            rates[name].append(tokens[name] / (time.perf_counter() - started))
    ratios = [ours / bare for ours, bare in zip(rates["ours"], rates["bare"], strict=True)]
    return {
        "tokens_per_second": statistics.median(rates["ours"]),
        "bare_tokens_per_second": statistics.median(rates["bare"]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "response_tokens": tokens["ours"],
        "bare_response_tokens": tokens["bare"],
    }


def _with_library(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: int,
) -> int:
    """Returns the number of response tokens."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = generate_responses(
            target,
            tokenizer,
            prompts,
            Path(folder) / "responses",
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=False,
        )
        return sum(sum(mask) for mask in dataset["loss_mask"])


def _bare_loop(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: int,
) -> int:
    """What one would write without this library. Returns the number of response tokens."""
    conversational = tokenizer.chat_template is not None
    texts = [render_prompt(tokenizer, prompt.opening(conversational)) for prompt in prompts]
    texts.sort(key=len, reverse=True)
    pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    end_tokens = torch.tensor(end_token_ids(target, tokenizer), dtype=torch.long, device=target.device)
    num_tokens = 0
    for start in range(0, len(texts), batch_size):
        token_ids = tokenizer(texts[start : start + batch_size], add_special_tokens=not conversational).input_ids
        inputs = left_pad(token_ids, pad_token_id, target.device)
        output = target.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad_token_id)
        response = output[:, inputs["input_ids"].shape[1] :]
        ended = torch.isin(response, end_tokens).long()
        num_tokens += int((torch.cumsum(ended, dim=1) - ended == 0).sum())
    return num_tokens
