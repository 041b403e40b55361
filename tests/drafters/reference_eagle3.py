# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""EAGLE-3 drafting written out column by column in plain torch, with no cache and no batch: what the model must equal.

`exact_arithmetic` makes the model itself compute in float64 throughout, so that the two can be compared to 1e-10.
"""

import math

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from ppow_hf import Eagle3Drafter

# Every option of the architecture, alone and all at once. The tiny target is 32 wide and has 4 layers.
VARIANTS: dict[str, dict] = {
    "plain": {},
    "norm_before_residual": {"norm_before_residual": True},
    "norm_before_fc": {"norm_before_fc": True},
    "fc_norm": {"fc_norm": True},
    "norm_output": {"norm_output": True},
    "two_layers": {"num_hidden_layers": 2},
    "free_head_dim": {"head_dim": 12},
    "multi_head": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "one_feature": {"aux_layer_ids": [2]},
    "own_embedding": {"hidden_size": 48},
    "draft_vocabulary": {"draft_vocab_size": 40},
    "everything": {
        "norm_before_residual": True,
        "fc_norm": True,
        "norm_output": True,
        "num_hidden_layers": 3,
        "head_dim": 12,
        "hidden_size": 48,
        "draft_vocab_size": 40,
        "attention_bias": True,
        "aux_layer_ids": [0, 3],
    },
}


@torch.no_grad()
def randomize_(drafter: Eagle3Drafter, seed: int = 0) -> Eagle3Drafter:
    """Random values in every parameter, norms and biases too: no term may vanish, no factor may be one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in drafter.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
    return drafter


def exact_arithmetic(monkeypatch) -> None:
    """Takes the float32 detours out of transformers' norm, rotary embedding and softmax, for float64 comparisons."""
    softmax = torch.nn.functional.softmax

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        angles = position_ids[..., None].to(x.dtype) * self.inv_freq.to(x.dtype)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling

    def same_dtype_softmax(x, dim=None, dtype=None):
        return softmax(x, dim=dim)

    monkeypatch.setattr(torch.nn.functional, "softmax", same_dtype_softmax)
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", rotary)


class ReferenceEagle3:
    """
    The computation of one drafter, in float64.

    Args:
        drafter ([`Eagle3Drafter`]): Its weights and configuration are read; none of its methods is called.
        embedding (`torch.Tensor` of shape `(vocab_size, hidden_size)`): The target's table, where it is shared.
    """

    def __init__(self, drafter: Eagle3Drafter, embedding: torch.Tensor):
        self.config = drafter.config
        self.weights = {name: tensor.detach().double() for name, tensor in drafter.state_dict().items()}
        self.embedding = self.weights.get("embed_tokens.weight", embedding.detach().double())

    def logits(self, tokens: list[int], features: torch.Tensor, drafted: list[int]) -> torch.Tensor:
        """
        Logits of the next draft token.

        Args:
            tokens (`list[int]`): The committed text, `n` tokens.
            features (`torch.Tensor` of shape `(n - 1, width)`): Target features of all of it but the last token.
            drafted (`list[int]`): Draft tokens behind it.
        """
        assert len(features) == len(tokens) - 1
        keys: list[list[torch.Tensor]] = [[] for _ in range(self.config.num_hidden_layers)]
        values: list[list[torch.Tensor]] = [[] for _ in range(self.config.num_hidden_layers)]
        hidden = None
        for column, token in enumerate(tokens[1:] + drafted):
            if column < len(features):
                hidden = self._fuse(features[column].double())
            hidden = self._layers(self.embedding[token], hidden, column, keys, values)
            normed = self._norm("norm", hidden)
            if self.config.norm_output:
                hidden = normed
        return self.weights["lm_head.weight"] @ normed

    def _fuse(self, features: torch.Tensor) -> torch.Tensor:
        if self.config.norm_before_fc:
            features = self._norm("input_norm", features)
        if self.config.fc_norm:
            width = self.config.target_hidden_size
            parts = [features[i * width : (i + 1) * width] for i in range(len(self.config.aux_layer_ids))]
            features = torch.cat([self._norm(f"fc_norm.{i}", part) for i, part in enumerate(parts)])
        return self.weights["fc.weight"] @ features

    def _layers(self, embed, hidden, position, keys, values):
        normed = self._norm("midlayer.hidden_norm", hidden)
        fused = torch.cat([self._norm("midlayer.input_layernorm", embed), normed])
        residual = normed if self.config.norm_before_residual else hidden
        hidden = residual + self._attention("midlayer", fused, position, keys[0], values[0])
        hidden = hidden + self._mlp("midlayer", hidden)
        for i in range(1, self.config.num_hidden_layers):
            name = f"layers.{i - 1}"
            fused = self._norm(f"{name}.input_layernorm", hidden)
            hidden = hidden + self._attention(name, fused, position, keys[i], values[i])
            hidden = hidden + self._mlp(name, hidden)
        return hidden

    def _attention(self, name, x, position, keys, values):
        dim, groups = self.config.head_dim, self.config.num_attention_heads // self.config.num_key_value_heads
        query, key, value = (
            self._linear(f"{name}.self_attn.{part}_proj", x).reshape(-1, dim) for part in ("q", "k", "v")
        )
        keys.append(self._rotate(key, position))
        values.append(value)
        heads = []
        for h, q in enumerate(self._rotate(query, position)):
            scores = torch.stack([k[h // groups] @ q for k in keys]) / math.sqrt(dim)
            heads.append(sum(p * v[h // groups] for p, v in zip(scores.softmax(-1), values, strict=True)))
        return self._linear(f"{name}.self_attn.o_proj", torch.cat(heads))

    def _rotate(self, heads, position):
        theta, dim = self.config.rope_parameters["rope_theta"], self.config.head_dim
        # Frequencies are float32 constants in transformers; from there on everything is float64.
        angles = position * (1.0 / (theta ** (torch.arange(0, dim, 2).float() / dim))).double()
        first, second = heads[:, : dim // 2], heads[:, dim // 2 :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def _mlp(self, name, x):
        x = self._norm(f"{name}.post_attention_layernorm", x)
        gate, up = self._linear(f"{name}.mlp.gate_proj", x), self._linear(f"{name}.mlp.up_proj", x)
        return self._linear(f"{name}.mlp.down_proj", gate * gate.sigmoid() * up)

    def _norm(self, name, x):
        return self.weights[f"{name}.weight"] * x / (x.square().mean() + self.config.rms_norm_eps).sqrt()

    def _linear(self, name, x):
        bias = self.weights.get(f"{name}.bias")
        out = self.weights[f"{name}.weight"] @ x
        return out if bias is None else out + bias
