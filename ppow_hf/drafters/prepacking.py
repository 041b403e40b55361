# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Linear weights laid out once as the processor's matrix kernels read them (ours).

A bfloat16 product on a CPU wants its weights in blocks of pairs. torch keeps them in rows and lets the kernel lay them
out anew for every product, which for the few rows of a decoding step costs more than the product itself. Prepacked
layers keep the blocks beside the rows: two to three times faster on the CPU measured, up to rounding with the same
numbers, for the memory of a second copy. Anything but plain inference in that dtype goes the usual way.

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
    sample: torch.Tensor

    def stand_for(self, weight: torch.Tensor) -> bool:
        """Whether this is still that weight, and has not been written to, as far as torch keeps count."""
        held = self.weight
        return (
            weight.data_ptr() == held.data_ptr()
            and weight.dtype == held.dtype
            and weight.shape == held.shape
            and weight.stride() == held.stride()
            and weight._version == self.version
        )


# Beside the layers and not in them: copies and state dicts of a model hold no blocks.
_BLOCKS: weakref.WeakKeyDictionary[nn.Linear, _Blocks] = weakref.WeakKeyDictionary()
# Layers whose blocks torch could not make, or whose products came out differently.
_REFUSED: weakref.WeakSet[nn.Linear] = weakref.WeakSet()


class PrepackedLinear(nn.Linear):
    """
    A linear layer that multiplies by its blocks where it has any and they are those of its weight. Another weight,
    gradients, autocast and other dtypes take the usual product. Not every change can be seen, see [`prepack_weights`].
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if (blocks := current_blocks(self, input)) is None:
            return functional.linear(input, self.weight, self.bias)
        return _multiply(input, blocks, self.bias)

    @property
    def prepacked(self) -> bool:
        """`bool`: Whether there are blocks that stand for the weight."""
        known = _BLOCKS.get(self)
        return known is not None and known.stand_for(self.weight)


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
    if type(weight) is not nn.Parameter or weight.is_inference() or not weight.numel():
        return False
    if not (weight.is_cpu and weight.dtype == torch.bfloat16):
        return False
    return torch.backends.mkldnn.enabled and cpu_computes_in_bfloat16()


def cpu_computes_in_bfloat16() -> bool:
    """Whether this CPU has instructions that multiply bfloat16 numbers, as oneDNN sees it; others emulate them."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def prepack_weights(model: nn.Module) -> int:
    """
    Prepacks the linear layers of a model for decoding on a CPU: faster with a drafter and without one.

    Layers that cannot profit are left as they are, so that it does nothing on a GPU or in float32. Optimizers that run
    fused and writes through `.data` change weights without torch noticing: call it again behind them. Before a model
    is moved or converted, [`unpack_weights`] frees the memory.

    Args:
        model (`nn.Module`): A target, or a [`CausalLMDrafter`]. [`Eagle3Drafter`]s prepack themselves.

    Returns:
        `int`: How many layers are prepacked.
    """
    return _prepack(model, anew=True)


def keep_prepacked(model: nn.Module) -> None:
    """
    [`prepack_weights`] for every call of a model: only what is not prepacked yet or has changed is laid out, of which
    a sample of the weights tells what torch does not.

    Args:
        model (`nn.Module`): A drafter.
    """
    _prepack(model, anew=False)


@torch.no_grad()
def _prepack(model: nn.Module, anew: bool) -> int:
    count = 0
    agreed: dict[torch.Size, bool] = {}
    for layer in model.modules():
        known = _BLOCKS.get(layer) if isinstance(layer, nn.Linear) else None
        if not can_prepack(layer):
            if known is not None:
                _unpack(layer)
            continue
        weight = layer.weight
        if anew or known is None or not known.stand_for(weight) or not torch.equal(known.sample, _sample(weight)):
            if layer in _REFUSED and not anew:
                continue
            blocks = _checked_blocks(layer, agreed)
            if blocks is None:
                _unpack(layer)
                _REFUSED.add(layer)
                continue
            _REFUSED.discard(layer)
            _BLOCKS[layer] = _Blocks(blocks, weight.detach(), weight._version, _sample(weight))
        layer.__class__ = PrepackedLinear
        count += 1
    return count


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """A few numbers from all over a weight."""
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, len(flat) // 61)].clone()


def _checked_blocks(layer: nn.Linear, agreed: dict[torch.Size, bool]) -> torch.Tensor | None:
    """Blocks, if torch makes them and they multiply as they should: no text must hang on private operators."""
    try:
        blocks = _blocks_of(layer.weight)
        if layer.weight.shape not in agreed:  # once per shape
            agreed[layer.weight.shape] = _agree(layer, blocks)
    except (RuntimeError, AttributeError):
        return None
    return blocks if agreed[layer.weight.shape] else None


def _agree(layer: nn.Linear, blocks: torch.Tensor) -> bool:
    """Whether both ways give the same product up to rounding."""
    # No random numbers: the generators of a call that prepacks must not move.
    rows = torch.arange(3 * layer.in_features).mul_(7919).remainder_(2003).sub_(1001).view(3, -1)
    rows = (rows / 1001.0).to(layer.weight.dtype)
    usual = functional.linear(rows, layer.weight, layer.bias).float()
    found = _multiply(rows, blocks, layer.bias).float()
    return bool((found - usual).norm() <= 0.01 * usual.norm())


def unpack_weights(model: nn.Module) -> None:
    """
    Takes [`prepack_weights`] back and frees its memory. To keep an [`Eagle3Drafter`] from prepacking itself with the
    next call, set its `prepacks` to `False`.

    Args:
        model (`nn.Module`): The model.
    """
    for layer in model.modules():
        if type(layer) is PrepackedLinear:
            _unpack(layer)


def _unpack(layer: nn.Linear) -> None:
    _BLOCKS.pop(layer, None)
    if type(layer) is PrepackedLinear:
        layer.__class__ = nn.Linear


def is_prepacked(model: nn.Module) -> bool:
    """
    Whether a model multiplies by blocks, those of its first prepacked layer at least.

    Args:
        model (`nn.Module`): The model.
    """
    for layer in model.modules():
        # By name: a drafter from the Hub brings a class of its own.
        if isinstance(layer, nn.Linear) and isinstance(getattr(type(layer), "prepacked", None), property):
            return layer.prepacked
    return False
