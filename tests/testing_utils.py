# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Tiny random targets of many families and drafters for them."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from ppow_hf.drafters import CausalLMDrafter, Eagle3Drafter

_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}

TARGET_FAMILIES: dict[str, dict] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mistral": {"sliding_window": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gpt_neox": {},
    "gpt2": {},
    "phi3": {},
    "olmo2": {},
}

# Layers of two kinds with heads of two sizes, which its configuration tells by layer only.
GEMMA_4 = {
    "head_dim": 8,
    "global_head_dim": 16,
    "num_hidden_layers": 6,
    "sliding_window": 8,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 4,
}


def tiny_target(family: str = "llama", vocab_size: int = 96, seed: int = 0, **overrides) -> PreTrainedModel:
    """A random target of the given family, in float32 and evaluation mode; the same seed gives the same weights."""
    values = {**_COMMON, **TARGET_FAMILIES.get(family, {}), "vocab_size": vocab_size, **overrides}
    if family == "gpt2":
        values = {
            "n_embd": values["hidden_size"],
            "n_layer": values["num_hidden_layers"],
            "n_head": values["num_attention_heads"],
            "n_positions": values["max_position_embeddings"],
            "initializer_range": values["initializer_range"],
            **{k: values[k] for k in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
            **overrides,
        }
    config = AutoConfig.for_model(family, **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    model.generation_config.pad_token_id = 0
    return model.eval()


class SilentLlama(LlamaForCausalLM):
    """A target that ignores `output_hidden_states`, as some custom models do."""

    def forward(self, *args, output_hidden_states=None, **kwargs):
        return super().forward(*args, output_hidden_states=False, **kwargs)


def tiny_eagle3(target: PreTrainedModel, draft_vocab_size: int | None = None, seed: int = 0, **overrides):
    """An untrained EAGLE-3 drafter for a tiny target; a smaller vocabulary takes every second token and more."""
    vocab_size = target.config.get_text_config().vocab_size
    if draft_vocab_size is not None and draft_vocab_size < vocab_size:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randperm(vocab_size, generator=generator)[:draft_vocab_size].sort().values
        overrides["draft_token_ids"] = ids
    return Eagle3Drafter.from_target(target, seed=seed, **overrides)


def tiny_causal_drafter(target: PreTrainedModel, num_layers: int = 2):
    """A drafter made of the target's first layers."""
    return CausalLMDrafter.from_target(target, num_layers=num_layers)
