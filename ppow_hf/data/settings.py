# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How responses are generated: the settings, checked, and what follows from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..end_tokens import eos_token_ids_of
from .prompts import Prompt


@dataclass(frozen=True)
class ResponseSettings:
    """How responses are generated, see [`generate_responses`]."""

    max_new_tokens: int = 256
    batch_size: int = 32
    max_batch_tokens: int | None = None
    temperatures: dict[float, float] = field(default_factory=lambda: {0.0: 1.0})
    top_k: int = 0
    top_p: float = 1.0
    max_prompt_tokens: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("max_new_tokens", "batch_size", "max_batch_tokens", "max_prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}: give at least 1.")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"`top_k` is {self.top_k} and `top_p` is {self.top_p}: give `top_k` >= 0 (0 for no limit) and `top_p` "
                "in (0, 1]."
            )
        shares = self.temperatures
        if not shares or not all(t >= 0 and share > 0 and math.isfinite(t + share) for t, share in shares.items()):
            raise ValueError(
                f"`temperatures` is {shares!r}: give a share above 0 for each temperature >= 0, for example "
                "{0.0: 0.7, 1.0: 0.3}."
            )

    def temperature_of(self, prompt: Prompt) -> float:
        """The temperature of a conversation: by a hash of the prompt, so that it depends on no other prompt."""
        text = json.dumps([self.seed, prompt.system, *prompt.turns])
        point = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48
        point *= sum(self.temperatures.values())
        for temperature, share in sorted(self.temperatures.items()):
            point -= share
            if point < 0:
                return float(temperature)
        return float(max(self.temperatures))

    def batch_seed(self, turn: int, batch: int) -> int:
        """Each batch has its own seed, so that it comes out the same whether or not others were generated before."""
        digest = hashlib.blake2b(f"{self.seed}/{turn}/{batch}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big")

    def generation_config(self, temperature: float, eos_token_ids: list[int], pad_token_id: int) -> GenerationConfig:
        """Greedy, or sampling from the target's own distribution. For use within [`own_distribution`]."""
        sampling = {"temperature": temperature, "top_k": self.top_k, "top_p": self.top_p}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=temperature > 0,
            repetition_penalty=1.0,
            num_beams=1,
            eos_token_id=eos_token_ids or None,
            pad_token_id=pad_token_id,
            **(sampling if temperature > 0 else {}),
        )


def end_token_ids(target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: those of the target's generation config, else the tokenizer's."""
    own = sorted(eos_token_ids_of(target.generation_config))
    return own or ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])


@contextmanager
def own_distribution(target: PreTrainedModel, eos_token_ids: list[int], pad_token_id: int) -> Iterator[None]:
    """
    Sets the target's generation config aside, but for its special tokens.

    `generate` takes from it whatever a call leaves open: penalties, suppressed tokens and cut-offs, which would teach
    the drafter another distribution than the one it has to predict.
    """
    before = target.generation_config
    target.generation_config = GenerationConfig(
        bos_token_id=before.bos_token_id, eos_token_id=eos_token_ids or None, pad_token_id=pad_token_id
    )
    try:
        yield
    finally:
        target.generation_config = before
