# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Linear weights laid out once as the processor's matrix kernels read them (ours).

A bfloat16 product on a CPU wants its weights in blocks of pairs. torch keeps them in rows and lets the kernel lay them
out anew for every product, which for the few rows of a decoding step costs more than the product itself. Prepacked
layers keep the blocks beside the rows: two to three times faster on the CPU measured, with the same numbers, for the
memory of a second copy. Anything but plain inference in that dtype goes the usual way.

The only place that touches torch's private oneDNN operators.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

# Rows of the products the blocks are chosen for: a verified window.
_ROWS = 8


class _Blocks(NamedTuple):
    """Blocks, and the weight they were made of. It is held: its memory must not become another's."""

    blocks: torch.Tensor
    weight: torch.Tensor
    version: int

    def stand_for(self, weight: torch.Tensor) -> bool:
        """Whether this is still that weight, and unchanged."""
        return (
            weight.data_ptr() == self.weight.data_ptr()
            and weight.dtype == self.weight.dtype
            and weight._version == self.version
        )


# Beside the layers and not in them: copies, pickles and state dicts of a model know nothing of blocks.
_BLOCKS: weakref.WeakKeyDictionary[nn.Linear, _Blocks] = weakref.WeakKeyDictionary()


class PrepackedLinear(nn.Linear):
    """
    A linear layer that multiplies by its blocks where it has any and they are those of its weight. A changed, replaced
    or moved weight, gradients, autocast and other dtypes take the usual product.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if (blocks := current_blocks(self, input)) is None:
            return functional.linear(input, self.weight, self.bias)
        return _multiply(input, blocks, self.bias)


def current_blocks(layer: nn.Linear, input: torch.Tensor) -> torch.Tensor | None:
    """
    The blocks of a layer, if they can stand for its weight in a product.

    Args:
        layer (`nn.Linear`): The layer.
        input (`torch.Tensor` of shape `(..., in_features)`): What is to be multiplied.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return None
    known, weight = _BLOCKS.get(layer), layer.weight
    if known is None or input.dtype != weight.dtype or not input.is_cpu or not known.stand_for(weight):
        return None
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        return None
    return known.blocks


def multiply(layer: nn.Linear, vector: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """
    A linear layer of one vector.

    Args:
        layer (`nn.Linear`): The layer.
        vector (`torch.Tensor` of shape `(in_features,)`): Its input.
        out (`torch.Tensor` of shape `(out_features,)`, *optional*): Where to write.

    Returns:
        `torch.Tensor` of shape `(out_features,)`.
    """
    if (blocks := current_blocks(layer, vector)) is not None:
        product = _multiply(vector[None], blocks, layer.bias)[0]
        return product if out is None else out.copy_(product)
    product = torch.mv(layer.weight, vector, out=out)
    return product if layer.bias is None else product.add_(layer.bias)


def _multiply(input: torch.Tensor, blocks: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, blocks, bias, "none", [], "")


def _blocks_of(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)


def can_prepack(layer: nn.Module) -> bool:
    """
    Whether blocks would be used: a plain `nn.Linear` with bfloat16 weights on a CPU that multiplies them.

    Args:
        layer (`nn.Module`): Any module.
    """
    if type(layer) not in (nn.Linear, PrepackedLinear) or "forward" in layer.__dict__:
        return False
    weight = layer.weight
    if (
        type(weight) is not nn.Parameter
        or weight.dtype != torch.bfloat16
        or not weight.is_cpu
        or weight.is_inference()
    ):
        return False
    return bool(weight.numel()) and torch.backends.mkldnn.enabled and _supported()


def _supported() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@torch.no_grad()
def prepack_weights(model: nn.Module) -> int:
    """
    Prepacks the linear layers of a model for decoding on a CPU: the same text, faster, with a drafter and without one.

    Call it after weights have been changed, too. Layers that cannot profit are left as they are, so that it does
    nothing on a GPU or in float32. A weight that is later written to through `.data` is not noticed: call it again.

    Args:
        model (`nn.Module`): A target. Drafters prepack themselves.

    Returns:
        `int`: How many layers are prepacked, all together.
    """
    count = 0
    agreed: dict[torch.Size, bool] = {}
    for layer in model.modules():
        if not can_prepack(layer):
            continue
        weight = layer.weight
        known = _BLOCKS.get(layer)
        if known is None or not known.stand_for(weight):
            blocks = _blocks_of(weight)
            # Once per shape: the operators are torch's own affair, and a text must not hang on them.
            if weight.shape not in agreed:
                agreed[weight.shape] = _agree(layer, blocks)
            if not agreed[weight.shape]:
                continue
            _BLOCKS[layer] = _Blocks(blocks, weight.detach(), weight._version)
        layer.__class__ = PrepackedLinear
        count += 1
    return count


def _agree(layer: nn.Linear, blocks: torch.Tensor) -> bool:
    """Whether both ways give the same product, up to the rounding of its last digit."""
    # No random numbers: the generators of a call that prepacks must not move.
    rows = torch.arange(3 * layer.in_features).mul_(7919).remainder_(2003).sub_(1001).view(3, -1)
    rows = (rows / 1001.0).to(layer.weight.dtype)
    usual = functional.linear(rows, layer.weight, layer.bias).float()
    found = _multiply(rows, blocks, layer.bias).float()
    return bool((found - usual).norm() <= 0.01 * usual.norm())


def unpack_weights(model: nn.Module) -> None:
    """
    Takes [`prepack_weights`] back and frees its memory.

    Args:
        model (`nn.Module`): The model.
    """
    for layer in model.modules():
        if type(layer) is PrepackedLinear:
            layer.__class__ = nn.Linear
            _BLOCKS.pop(layer, None)


def is_prepacked(model: nn.Module) -> bool:
    """
    Whether any layer of a model multiplies by blocks.

    Args:
        model (`nn.Module`): The model.
    """
    for layer in model.modules():
        if type(layer) is PrepackedLinear and (known := _BLOCKS.get(layer)) is not None:
            return known.stand_for(layer.weight)
    return False
