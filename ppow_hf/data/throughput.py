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


def measure_throughput(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    rounds: int = 3,
) -> dict[str, float]:
    """Time both, greedy and on the first turns, in alternation after one warm-up batch.

    Args:
        target, tokenizer, prompts, max_new_tokens, batch_size: see [`generate_responses`].
        rounds (`int`, *optional*, defaults to 3): how often each is timed; the median counts.

    Returns:
        `dict[str, float]`: `tokens_per_second`, `bare_tokens_per_second`, and `ratio`, the first over the second.
    """
    if rounds < 1:
        raise ValueError(f"`rounds` is {rounds}: give at least 1.")
    prompts = [Prompt(prompt.turns[:1], prompt.system, prompt.source) for prompt in prompts]
    _bare_loop(target, tokenizer, prompts[:batch_size], min(max_new_tokens, 8), batch_size)
    ours, bare = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            dataset = generate_responses(
                target,
                tokenizer,
                prompts,
                Path(folder) / "responses",
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                progress=False,
            )
            tokens = sum(sum(mask) for mask in dataset["loss_mask"])
            ours.append(tokens / (time.perf_counter() - started))
        started = time.perf_counter()
        tokens = _bare_loop(target, tokenizer, prompts, max_new_tokens, batch_size)
        bare.append(tokens / (time.perf_counter() - started))
    return {
        "tokens_per_second": statistics.median(ours),
        "bare_tokens_per_second": statistics.median(bare),
        "ratio": statistics.median(a / b for a, b in zip(ours, bare, strict=True)),
    }


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
    num_tokens = 0
    for start in range(0, len(texts), batch_size):
        token_ids = tokenizer(texts[start : start + batch_size], add_special_tokens=not conversational).input_ids
        inputs = left_pad(token_ids, pad_token_id, target.device)
        output = target.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad_token_id)
        response = output[:, inputs["input_ids"].shape[1] :]
        ended = (response == tokenizer.eos_token_id).long()
        num_tokens += int((torch.cumsum(ended, dim=1) - ended == 0).sum())
    return num_tokens
