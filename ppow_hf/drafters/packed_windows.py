# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Many windows drafted side by side from many places of many texts, sharing each text's keys and values.

A window start is the position `n` of its first draft token: tokens `0 .. n - 1` are committed. Decoding drafts one
window at a time; training drafts `starts * group_size` of them per text, as one row of queries over one cache. What a
query may see is all in the mask: the committed columns of its own start, and the columns of its own window.
"""

from dataclasses import dataclass, field

import torch
from transformers import DynamicCache


@dataclass
class PackedState:
    """
    What a drafter remembers of a batch of packed windows.

    Args:
        mask (`torch.Tensor` of shape `(batch, 1, windows, columns)`): Additive mask of the columns each window sees.
        positions (`torch.LongTensor` of shape `(batch, windows)`): Where the next fed column stands in its text.
        cache (`DynamicCache`): Keys and values of the text's columns, then of the windows' columns.
        hidden (`torch.Tensor` of shape `(batch, windows, hidden_size)`, *optional*): The drafter's own states.
    """

    mask: torch.Tensor
    positions: torch.LongTensor
    cache: DynamicCache = field(default_factory=DynamicCache)
    hidden: torch.Tensor | None = None

    @property
    def num_windows(self) -> int:
        """Windows per text."""
        return self.positions.shape[1]

    def see_own_column(self) -> None:
        """Lets every window see one more column of its own: the one about to be fed, the same place for all."""
        count = self.num_windows
        hidden = torch.finfo(self.mask.dtype).min
        own = torch.full((count, count), hidden, dtype=self.mask.dtype, device=self.mask.device).fill_diagonal_(0)
        self.mask = torch.cat([self.mask, own.expand(self.mask.shape[0], 1, -1, -1)], dim=-1)


def prefix_mask(lengths: torch.LongTensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """
    Additive mask by which each window sees the first columns of its text.

    Args:
        lengths (`torch.LongTensor` of shape `(batch, windows)`): How many columns each window sees.
        columns (`int`): Columns in the cache.
        dtype (`torch.dtype`): Of the mask.

    Returns:
        `torch.Tensor` of shape `(batch, 1, windows, columns)`.
    """
    seen = torch.arange(columns, device=lengths.device) < lengths[:, None, :, None]
    return torch.zeros(seen.shape, dtype=dtype, device=lengths.device).masked_fill_(~seen, torch.finfo(dtype).min)


def check_starts(starts: torch.LongTensor, input_ids: torch.LongTensor, group_size: int) -> torch.LongTensor:
    """
    Validates window starts and gives missing ones a harmless place.

    Args:
        starts (`torch.LongTensor` of shape `(batch, starts)`): Positions of first draft tokens; -1 for none.
        input_ids (`torch.LongTensor` of shape `(batch, length)`): The texts.
        group_size (`int`): Windows per start.

    Returns:
        `torch.LongTensor` of shape `(batch, starts)`: the starts, 2 where there was none.

    Raises:
        ValueError: If shapes do not agree, or a start lies outside its text: at least two tokens must come before it,
            as in decoding, where the prompt and the first generated token do.
    """
    if starts.dim() != 2 or starts.shape[0] != input_ids.shape[0] or starts.shape[1] == 0:
        raise ValueError(
            f"`starts` must have shape (batch, starts) for {input_ids.shape[0]} texts, got {tuple(starts.shape)}."
        )
    if group_size < 1:
        raise ValueError(f"`group_size` must be at least 1, got {group_size}.")
    real = starts[starts != -1]
    if len(real) and (int(real.min()) < 2 or int(real.max()) > input_ids.shape[1]):
        raise ValueError(
            f"`starts` must be -1 or between 2 and the length of the texts ({input_ids.shape[1]}), got "
            f"{int(real.min())} to {int(real.max())}."
        )
    return starts.where(starts != -1, 2)


def window_logits(
    drafter,
    input_ids: torch.LongTensor,
    features: torch.Tensor | None,
    starts: torch.LongTensor | None,
    window_tokens: torch.LongTensor,
) -> tuple[torch.Tensor, ...]:
    """
    A drafter's logits along given windows, differentiable through its own states.

    Args:
        drafter ([`DrafterModel`]): The drafter.
        input_ids (`torch.LongTensor` of shape `(batch, length)`): Texts, padded on the right.
        features (`torch.Tensor` of shape `(batch, length, features)`, *optional*): The target's features.
        starts (`torch.LongTensor` of shape `(batch, starts)`): Position of each window's first token; -1 for none.
        window_tokens (`torch.LongTensor` of shape `(batch, starts, group_size, window_size)`): The windows' tokens,
            as target ids.

    Returns:
        `tuple[torch.Tensor]`: One `(batch, starts, group_size, draft_vocab_size)` tensor per token of the windows.
    """
    if starts is None or window_tokens.dim() != 4 or window_tokens.shape[:2] != starts.shape:
        raise ValueError(
            "`window_tokens` must have shape (batch, starts, group_size, window_size) and come with `starts` of shape "
            f"(batch, starts), got {tuple(window_tokens.shape)} and {None if starts is None else tuple(starts.shape)}."
        )
    group_size, window_size = window_tokens.shape[2:]
    state, first = drafter.begin_windows(input_ids, features, starts, group_size)
    logits = [first[:, :, None].expand(-1, -1, group_size, -1)]
    for k in range(window_size - 1):
        step_logits = drafter.step_windows(state, window_tokens[..., k].flatten(1))
        logits.append(step_logits.unflatten(1, (-1, group_size)))
    return tuple(logits)
