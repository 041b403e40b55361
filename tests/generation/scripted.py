# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A target that writes a given text and a drafter that is right where it is told to: decoding of known outcome."""

import random

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ppow_hf import CostModel, DrafterModel
from ppow_hf.drafters import DrafterConfig

VOCABULARY = 96
COSTS = {
    "flat": CostModel(0.06, [1.0, 1.11, 1.11, 1.12, 1.13, *[1.13 + 0.01 * i for i in range(1, 13)]], 0.06, 0.03),
    "steep": CostModel(0.06, [1.0 + 0.025 * i for i in range(17)], 0.05, 0.03),
}


class ScriptedTarget(LlamaForCausalLM):
    """Writes `script`, whatever it reads; cache, masks and positions are a real model's."""

    def __init__(self, script: list[int]):
        super().__init__(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                max_position_embeddings=4096,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=0,
            )
        )
        self.script = torch.tensor([*script, *[0] * 64])
        self.eval()

    def forward(self, input_ids=None, past_key_values=None, **kwargs):
        start = past_key_values.get_seq_length() if past_key_values is not None else 0
        output = super().forward(input_ids=input_ids, past_key_values=past_key_values, **kwargs)
        end, rows = start + input_ids.shape[1], output.logits.shape[1]
        output.logits = 30.0 * nn.functional.one_hot(self.script[end - rows + 1 : end + 1], VOCABULARY)[None].float()
        return output


class ScriptedDrafter(DrafterModel):
    """At every place it is as sure as `confidence` says, and right or wrong as `right` says."""

    def __init__(self, script: list[int], confidence: list[float], right: list[bool]):
        super().__init__(DrafterConfig(vocab_size=VOCABULARY))
        self.weight = nn.Parameter(torch.zeros(1))
        self.script, self.confidence, self.right = script, confidence, right
        self.passes = 0

    def extend(self, state, input_ids, features=None, num_accepted=0):
        state.committed += input_ids.shape[1]
        state.drafted = 0
        assert input_ids[0].tolist() == self.script[state.committed - input_ids.shape[1] : state.committed]
        return self._logits(state)

    def step(self, state, token_ids):
        state.drafted += 1
        return self._logits(state)

    def _logits(self, state):
        self.passes += 1
        place = min(state.committed + state.drafted, len(self.script) - 1)
        token = self.script[place] if self.right[place] else (self.script[place] + 1) % VOCABULARY
        probability = self.confidence[place]
        probs = torch.full((1, VOCABULARY), (1.0 - probability) / (VOCABULARY - 1))
        probs[0, token] = probability
        return probs.log()


def drafter_of_quality(script: list[int], quality: float, seed: int = 0) -> ScriptedDrafter:
    """A calibrated drafter that is right with the chance it gives its token: `quality` on average."""
    generator = random.Random(seed)
    confidence = [min(max(generator.gauss(quality, 0.2), 0.02), 0.98) for _ in script]
    return ScriptedDrafter(script, confidence, [generator.random() < c for c in confidence])


def streams(length: int, seed: int = 0) -> dict[str, list[int]]:
    """Texts of `length` tokens in which lookup is never, always, sometimes, or misleadingly right."""
    generator = random.Random(seed)

    def fresh(count):
        return [generator.randrange(VOCABULARY) for _ in range(count)]

    loop, phases, mixture, misleading = fresh(37), fresh(60), fresh(60), []
    while len(phases) < length:
        start = generator.randrange(len(phases) - 50)
        phases += fresh(50) + phases[start : start + 50]
    while len(mixture) < length:
        start = generator.randrange(len(mixture) - 8)
        mixture += fresh(generator.randrange(1, 5)) + mixture[start : start + generator.randrange(3, 9)]
    # The same four tokens every time, and then something else.
    while len(misleading) < length:
        misleading += [*loop[:4], *fresh(2)]
    return {
        "fresh": fresh(length),
        "loop": (loop * (length // len(loop) + 1))[:length],
        "phases": phases[:length],
        "mixture": mixture[:length],
        "misleading": misleading[:length],
    }
