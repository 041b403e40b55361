# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What `generate` returns of every token beside the token itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import Cache, GenerationConfig
from transformers.generation import GenerateDecoderOnlyOutput

OUTPUTS = ("scores", "logits", "hidden_states", "attentions")


class TokenOutputs:
    """
    The outputs that a call asks for with `return_dict_in_generate=True`, one entry per token as plain decoding has it.

    Args:
        generation_config ([`~transformers.GenerationConfig`]): The prepared configuration of the call.
    """

    def __init__(self, generation_config: GenerationConfig):
        self._returned = bool(generation_config.return_dict_in_generate)
        self._parts: dict[str, list] = {
            name: [] for name in OUTPUTS if self._returned and getattr(generation_config, f"output_{name}")
        }

    def wants(self, name: str) -> bool:
        """Whether the output of this name (one of `OUTPUTS`) is asked for."""
        return name in self._parts

    def add(self, name: str, values: Iterable) -> None:
        """Adds the entries of some tokens to the output of this name, if it is asked for."""
        if name in self._parts:
            self._parts[name].extend(values)

    def scores_with(self, scores: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """All scores so far and those given: what stopping criteria are shown. `None` where they are not returned."""
        return [*self._parts["scores"], *scores] if "scores" in self._parts else None

    def result(self, sequences: torch.LongTensor, cache: Cache) -> torch.LongTensor | GenerateDecoderOnlyOutput:
        """What `generate` returns."""
        if not self._returned:
            return sequences
        parts = {name: tuple(entries) for name, entries in self._parts.items()}
        return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=cache, **parts)
