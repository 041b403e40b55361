# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""One target pass over a whole draft tree: its mask and positions, and which targets can take them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from ..drafters.packed_pass import FULL, attention_kinds, cannot_pack
from ..drafters.tree_columns import keep_columns, score_of_hidden
from .key_sharing import shared_keys

# Result of the trial, by target and by what could change it. One that broke off gave none: memory may be free later.
_TRIALS: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple, str | None]] = weakref.WeakKeyDictionary()


def tree_inputs(
    parents: Sequence[int],
    position: int,
    columns: int,
    padding: torch.Tensor | None,
    target: PreTrainedModel,
) -> tuple[torch.Tensor | None, torch.LongTensor]:
    """
    Mask and positions of a pass over the text's last token and a draft tree behind it.

    Args:
        parents (`Sequence[int]`): Of every node, its parent's index; -1 for the text. Parents come first.
        position (`int`): Position of the text's last token.
        columns (`int`): Columns in the target's cache, those of padding included.
        padding (`torch.Tensor` of shape `(1, columns)`, *optional*): 0 for columns of padding; `None` without padding.
        target ([`~transformers.PreTrainedModel`]): Whose attention implementation it is for.

    Returns:
        `(attention_mask, position_ids)`: a mask of shape `(1, 1, nodes + 1, columns + nodes + 1)`, to be added to
        attention scores, or where the tree is a chain the usual one of shape `(1, columns + nodes + 1)` or `None`;
        positions of shape `(1, nodes + 1)`.
    """
    device = target.device
    # Row and column 0 are the text's last token, which every node sees.
    depths = [0]
    for parent in parents:
        depths.append(depths[parent + 1] + 1)
    position_ids = torch.tensor([[position + depth for depth in depths]], device=device)
    size = len(depths)
    if all(parent == i - 1 for i, parent in enumerate(parents)):
        if padding is None:
            return None, position_ids
        return torch.cat([padding, padding.new_ones((1, size))], dim=-1), position_ids
    # Added to scores by either implementation: of a mask of booleans torch's would make this one anew in every layer.
    hidden = score_of_hidden(target.config.get_text_config()._attn_implementation, target.dtype)
    own = np.full((size, size), hidden)
    own[0, 0] = 0.0
    for i, parent in enumerate(parents, start=1):
        own[i] = own[parent + 1]
        own[i, i] = 0.0
    mask = torch.zeros((size, columns + size), dtype=target.dtype, device=device)
    mask[:, columns:] = torch.from_numpy(own)
    if padding is not None:
        mask[:, :columns].masked_fill_(padding == 0, hidden)
    return mask[None, None], position_ids


@torch.no_grad()
def check_tree_target(target: PreTrainedModel) -> None:
    """
    Refuses targets that cannot verify a draft tree. Cheap after the first call.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.

    Raises:
        ValueError: Saying why, and what to do instead.
    """
    remedy = "Leave `tree` out of the window to draft chains"
    config = target.config.get_text_config()
    reason = cannot_pack(target)
    if reason is None and set(attention_kinds(config)) != {FULL}:
        window = getattr(config, "sliding_window", None)
        reason = (
            f"it has layers with sliding-window attention (`sliding_window`={window}), whose cache drops positions"
        )
    if reason is None:
        trials = _TRIALS.setdefault(target, {})
        key = (config._attn_implementation, target.dtype, str(target.device))
        if key not in trials:
            try:
                # Keys are shared as in decoding. Dropout would make any two passes differ.
                with shared_keys(target.device), evaluating(target):
                    trials[key] = _trial(target)
            except Exception as error:
                raise ValueError(
                    f"Whether `{type(target).__name__}` can verify a draft tree is not known: a trial broke off with "
                    f"{type(error).__name__}: {error}. {remedy}, or remove the cause: the next call tries again."
                ) from error
        reason = trials[key]
    if reason is not None:
        raise ValueError(
            f"`{type(target).__name__}` cannot verify a draft tree: {reason}. {remedy}, or load the target with full "
            'attention layers and `attn_implementation="sdpa"` or `"eager"`.'
        )


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside a `with` block; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _trial(target: PreTrainedModel) -> str | None:
    """A small tree against plain passes over its paths: a mask that is ignored raises no error."""
    vocab_size = target.config.get_text_config().vocab_size
    # No random numbers: a trial must not move the generators of the call it precedes.
    ids = (torch.arange(10, device=target.device) * 7919 + 13) % vocab_size
    text, tokens = ids[:5], ids[4:]
    parents, path = [-1, 0, -1, 2, 2], [2, 4]
    cache = DynamicCache(config=target.config)
    target(input_ids=text[None, :-1], past_key_values=cache, use_cache=True)
    mask, positions = tree_inputs(parents, 4, 4, None, target)
    kwargs = {"past_key_values": cache, "use_cache": True}
    found = target(input_ids=tokens[None], attention_mask=mask, position_ids=positions, **kwargs).logits[0]
    keep_columns(cache, 4, [0, *(node + 1 for node in path)])
    next_ids, next_position = ids[None, :1], torch.tensor([[7]], device=target.device)
    after = target(input_ids=next_ids, position_ids=next_position, **kwargs).logits[0, -1:]
    along = torch.cat([text, tokens[1:][path], ids[:1]])
    plain = target(input_ids=along[None], use_cache=False).logits[0]
    branch = torch.cat([text, tokens[1:3]])
    other = target(input_ids=branch[None], use_cache=False).logits[0, -2:]
    found = torch.cat([found[[0, 3, 5, 1, 2]], after]).float()
    wanted = torch.cat([plain[[4, 5, 6]], other, plain[-1:]]).float()
    found, wanted = (logits - logits.mean(-1, keepdim=True) for logits in (found, wanted))
    # Relative to how far the target's logits spread. Half precision moves a few rows a good deal (routing, ties in
    # rounding), a mask that is ignored moves nearly all of them.
    error = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp(min=1e-30)
    exact = target.dtype in (torch.float32, torch.float64)
    distance, limit = (error.max(), 1e-3) if exact else (error.median(), 0.1)
    if distance <= limit:
        return None
    return f"its logits under a tree's mask are {float(distance):.2g} of their spread away from plain ones"
