# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
The EAGLE-3 drafter's pass for one sequence, cut to what one column needs.

A draft step is small: ten million weights, read once. Run module by module, most of its time goes into the way there:
about a hundred operations of a few microseconds each, and matrix products made for many columns. Here the weights are
prepacked or read by matrix-vector products, rotary angles come from a table, keys and values are written in place, a
lone query needs no mask, and committing several tokens computes keys and values for all of them but the rest for the
last alone. Values are those of the modules up to rounding. The weights are the modules' own at every step, or blocks
that are known to be made of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional
from transformers import Cache
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from .prepacking import PrepackedLinear, multiply

if TYPE_CHECKING:
    from .modeling_eagle3 import Eagle3Drafter

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# The angles of these depend on how long the text is.
_CHANGING_ROPE = ("dynamic", "longrope")
_TABLE_SPARE = 512


def single_sequence_step(drafter: Eagle3Drafter) -> Eagle3Step | None:
    """
    The short way through a drafter, where there is one.

    Args:
        drafter ([`Eagle3Drafter`]): The drafter.

    Returns:
        [`Eagle3Step`], for one sequence; `None` if the drafter has several layers, another attention than `"sdpa"`, or
        modules that are not what they were built as (quantised, sharded, adapted, hooked), or computes under autocast:
        its modules are then called as they are.
    """
    config, weight = drafter.config, drafter.lm_head.weight
    if len(drafter.layers) or config._attn_implementation != "sdpa":
        return None
    if drafter.training and config.attention_dropout:
        return None
    if weight.dtype not in _DTYPES or torch.is_autocast_enabled(weight.device.type):
        return None
    if drafter.rotary_emb.rope_type in _CHANGING_ROPE:
        return None
    layer = drafter.midlayer
    linears = [drafter.lm_head, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
    linears += [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.self_attn.o_proj]
    norms = [drafter.norm, layer.input_layernorm, layer.hidden_norm, layer.post_attention_layernorm]
    plain = all(type(module) in (nn.Linear, PrepackedLinear) for module in linears)
    plain = plain and all(type(module) is LlamaRMSNorm for module in norms) and type(layer.mlp) is LlamaMLP
    for module in (*layer.modules(), drafter.norm, drafter.lm_head):
        plain = plain and not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)
    for module in (*linears, *norms) if plain else ():
        own = module.weight
        plain = plain and type(own) is nn.Parameter and own.dtype == weight.dtype and own.device == weight.device
    return Eagle3Step(drafter) if plain else None


class Eagle3Step:
    """
    A drafter's pass for one sequence. Holds scratch memory and the table of rotary angles of one [`DrafterState`].

    Args:
        drafter ([`Eagle3Drafter`]): See [`single_sequence_step`], which checks it.
    """

    def __init__(self, drafter: Eagle3Drafter):
        config, weight = drafter.config, drafter.lm_head.weight
        self._drafter, self._layer = drafter, drafter.midlayer
        self._width, self._head_dim = config.hidden_size, config.head_dim
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        # Without autograd's bookkeeping these are written over and over.
        fused = weight.new_empty(2 * self._width, requires_grad=False)
        self._fused, self._fused_embeds, self._fused_hidden = fused, fused[: self._width], fused[self._width :]
        query, key = self._heads * self._head_dim, self._kv_heads * self._head_dim
        rotated = weight.new_empty(query + key, requires_grad=False)
        self._query, self._key = rotated[:query], rotated[query:]
        self._query_key = rotated.view(-1, self._head_dim)
        self._cos = self._sin = weight.new_empty((0, self._head_dim), requires_grad=False)

    def extend(
        self, cache: Cache, token_ids: torch.LongTensor, hidden_states: torch.Tensor, position: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Feeds committed columns.

        Args:
            cache ([`~transformers.Cache`]): Keys and values of the columns before; changed in place.
            token_ids (`torch.LongTensor` of shape `(1, n)`): Their tokens, as target ids.
            hidden_states (`torch.Tensor` of shape `(1, n, hidden_size)`): Their fused features.
            position (`int`): Position of the first of them.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Logits `(1, draft_vocab_size)` behind the last column, and the state
            `(1, 1, hidden_size)` that the next draft step is fed.
        """
        columns = token_ids.shape[1]
        if columns == 1:
            return self.step(cache, token_ids[0], hidden_states, position)
        layer, attention = self._layer, self._layer.self_attn
        embeds = self._drafter._embed(token_ids[0])
        normed = layer.hidden_norm(hidden_states[0])
        fused = torch.cat([layer.input_layernorm(embeds), normed], dim=-1)
        heads = (columns, self._kv_heads, self._head_dim)
        cos, sin = self._angles(position, position + columns)
        key = self._rotate(_product(attention.k_proj, fused).view(heads), cos[:, None], sin[:, None])
        value = _product(attention.v_proj, fused).view(heads)
        keys, values = cache.update(key.transpose(0, 1)[None], value.transpose(0, 1)[None], 0)
        residual = normed[-1] if layer.norm_before_residual else hidden_states[0, -1]
        query = _product(attention.q_proj, fused[-1]).view(-1, self._head_dim)
        query = self._rotate(query, cos[-1:], sin[-1:])
        return self._finish(query, keys, values, residual)

    def step(
        self, cache: Cache, token_ids: torch.LongTensor, hidden_states: torch.Tensor, position: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Feeds one column.

        Args:
            cache ([`~transformers.Cache`]): As in [`extend`].
            token_ids (`torch.LongTensor` of shape `(1,)`): Its token, as target id.
            hidden_states (`torch.Tensor` of shape `(1, 1, hidden_size)`): The drafter's own state, or fused features.
            position (`int`): Its position.

        Returns:
            As [`extend`].
        """
        layer, attention = self._layer, self._layer.self_attn
        hidden = hidden_states.view(-1)
        self._norm(layer.input_layernorm, self._embed(token_ids), out=self._fused_embeds)
        normed = self._norm(layer.hidden_norm, hidden, out=self._fused_hidden)
        residual = normed if layer.norm_before_residual else hidden
        _product(attention.q_proj, self._fused, out=self._query)
        _product(attention.k_proj, self._fused, out=self._key)
        value = _product(attention.v_proj, self._fused)
        rotated = self._rotate(self._query_key, *self._angles(position, position + 1))
        column = (1, self._kv_heads, 1, self._head_dim)
        keys, values = cache.update(rotated[self._heads :].view(column), value.view(column), 0)
        return self._finish(rotated[: self._heads], keys, values, residual)

    def _finish(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From the last column's query `(heads, head_dim)` to its logits and state."""
        drafter, layer = self._drafter, self._layer
        mlp, attention = layer.mlp, layer.self_attn
        seen = self._attend(query, keys, values)
        hidden = _product(attention.o_proj, seen.view(-1)).add_(residual)
        normed = self._norm(layer.post_attention_layernorm, hidden)
        gate = mlp.act_fn(_product(mlp.gate_proj, normed)).mul_(_product(mlp.up_proj, normed))
        hidden = _product(mlp.down_proj, gate).add_(hidden)
        normed = self._norm(drafter.norm, hidden)
        state = normed if drafter.config.norm_output else hidden
        return _product(drafter.lm_head, normed)[None], state.view(1, 1, -1)

    def _attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention of one query over all columns, which it sees without a mask."""
        query, scale = query.view(1, self._heads, 1, self._head_dim), self._layer.self_attn.scaling
        return functional.scaled_dot_product_attention(query, keys, values, scale=scale, enable_gqa=True)

    def _embed(self, token_ids: torch.LongTensor) -> torch.Tensor:
        """Embedding of one token, `(hidden_size,)`: a row of the table, where it is nothing but a table."""
        table = self._drafter.token_table
        if (
            type(table) is not nn.Embedding
            or table._forward_hooks
            or table._forward_pre_hooks
            or not table.weight.is_cpu
        ):
            return self._drafter._embed(token_ids).view(-1)
        return table.weight[token_ids.item()].to(self._fused.dtype)

    def _norm(self, module: LlamaRMSNorm, vector: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """A norm of one column. On a CPU its scale is a number of Python's, which costs an operation less twice."""
        if not vector.is_cpu:
            normed = functional.rms_norm(vector, module.weight.shape, module.weight, module.variance_epsilon)
            return normed if out is None else out.copy_(normed)
        square = torch.linalg.vector_norm(vector, dtype=self._exact).item() ** 2
        scale = (square / vector.shape[0] + module.variance_epsilon) ** -0.5
        return torch.mul(vector * scale, module.weight, out=out)

    def _rotate(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of `(..., head_dim)`; the sign of the rotated half is in `sin`."""
        return torch.addcmul(heads * cos, heads.roll(self._head_dim // 2, -1), sin)

    def _angles(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines of positions, `(end - start, head_dim)` each."""
        if end > len(self._cos):
            positions = torch.arange(end + max(_TABLE_SPARE, end // 2), device=self._fused.device)
            cos, sin = self._drafter.rotary_emb(self._fused, positions[None])
            half = self._head_dim // 2
            self._cos, self._sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        return self._cos[start:end], self._sin[start:end]


def _product(linear: nn.Linear, vector: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """A linear layer, of one vector `(width,)` or of rows of them, to which `out` does not apply."""
    if vector.dim() > 1:
        return linear(vector)
    return multiply(linear, vector, out)
