# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Layers of the EAGLE-3 drafter, and the masks of its training-time test."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from .configuration_eagle3 import Eagle3DrafterConfig


class Eagle3Attention(nn.Module):
    """Grouped-query attention whose input may be wider than the model (`2 * hidden_size` in the first layer)."""

    def __init__(self, config: Eagle3DrafterConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        width = config.hidden_size * (2 if layer_idx == 0 else 1)
        bias = config.attention_bias
        self.q_proj = nn.Linear(width, config.num_attention_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        input_shape = hidden_states.shape[:-1]
        heads = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
        )
        return self.o_proj(output.reshape(*input_shape, -1))


class Eagle3DecoderLayer(nn.Module):
    """The first layer: attention over `[embedding, hidden]`, residual over the hidden state alone."""

    def __init__(self, config: Eagle3DrafterConfig):
        super().__init__()
        self.norm_before_residual = config.norm_before_residual
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hidden_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Eagle3Attention(config, layer_idx=0)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, embeds: torch.Tensor, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        normed = self.hidden_norm(hidden_states)
        residual = normed if self.norm_before_residual else hidden_states
        fused = torch.cat([self.input_layernorm(embeds), normed], dim=-1)
        hidden_states = residual + self.self_attn(fused, **kwargs)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class Eagle3ExtraDecoderLayer(nn.Module):
    """Layers behind the first: ordinary pre-norm decoder layers."""

    def __init__(self, config: Eagle3DrafterConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Eagle3Attention(config, layer_idx=layer_idx)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def ttt_causal_mask(length: int, attention_mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Additive causal mask `(batch, 1, length, length)`: a column sees tokens up to itself, and always itself."""
    columns = torch.arange(length, device=like.device)
    seen = (columns[None, :] <= columns[:, None])[None, None].expand(like.shape[0], 1, -1, -1)
    if attention_mask is not None:
        seen = seen & (
            attention_mask[:, None, None, :].bool() | torch.eye(length, dtype=torch.bool, device=like.device)
        )
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, torch.finfo(like.dtype).min
    )


def ttt_diagonal_mask(length: int, batch: int, like: torch.Tensor) -> torch.Tensor:
    """Additive mask `(batch, 1, length, length)` by which a column sees only itself."""
    mask = torch.full((length, length), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return mask.fill_diagonal_(0).expand(batch, 1, -1, -1)
