# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The vocabulary projection of a causal LM, apart from its layers."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

# How a model's logits come from its last hidden state; a module is not kept, so that it may be replaced.
_HEADS: weakref.WeakKeyDictionary[PreTrainedModel, str | None] = weakref.WeakKeyDictionary()


@torch.no_grad()
def logits_head(model: PreTrainedModel, input_ids: torch.LongTensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """
    How to get a causal LM's logits from the last hidden state of its base model, where that is possible.

    With it, the vocabulary is projected only for the rows that are looked at. It is tried once per model, against the
    model's own logits on a few tokens.

    Args:
        model ([`~transformers.PreTrainedModel`]): The causal LM.
        input_ids (`torch.LongTensor` of shape `(batch, length)`): Any text, unpadded at its beginning.

    Returns:
        `Callable` from `(..., hidden_size)` to `(..., vocab_size)`: the output embedding, followed by
        `config.final_logit_softcapping` where the model has it. `None` if that does not give the model's logits.
    """
    embedding = model.get_output_embeddings()
    if embedding is None or model.base_model is model:
        return None
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def plain(states: torch.Tensor) -> torch.Tensor:
        return embedding(states)

    def soft_capped(states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(embedding(states) / cap) * cap

    # By the config, not by trial: small logits hardly change under a cap, and would pass for uncapped ones.
    name, head = ("plain", plain) if cap is None else ("soft_capped", soft_capped)
    if model not in _HEADS:
        probe = input_ids[:1, :8]
        logits = model(input_ids=probe, use_cache=False).logits
        # What wraps a causal LM, an adapter for one, has it as its base model: logits come out of that.
        states = getattr(model.base_model(input_ids=probe, use_cache=False), "last_hidden_state", None)
        same = states is not None
        if same:
            mine = head(states)
            # Same shapes and the same kernels give the very same numbers; a scaled head does not.
            same = mine.shape == logits.shape and torch.allclose(mine.float(), logits.float(), rtol=1e-6, atol=0)
        _HEADS[model] = name if same else None
    return head if _HEADS[model] == name else None
