# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The draft vocabulary: which target tokens a drafter can propose, and the maps `d2t` and `t2d`.

`d2t` (int64, one entry per draft id) holds offsets, `target_id = draft_id + d2t[draft_id]`; `t2d` (bool, one entry per
target id) marks the tokens that are kept. This is the form of public EAGLE-3 checkpoints.
"""

import torch


def vocabulary_maps(draft_token_ids: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Builds `d2t` and `t2d` from the target ids of a draft vocabulary.

    Args:
        draft_token_ids (`torch.Tensor` of shape `(draft_vocab_size,)`, int64): Target ids, strictly ascending.
        vocab_size (`int`): Logit width of the target.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `d2t` (int64, `(draft_vocab_size,)`) and `t2d` (bool, `(vocab_size,)`).

    Raises:
        ValueError: If the ids are not strictly ascending or do not lie in the target's vocabulary.
    """
    ids = torch.as_tensor(draft_token_ids, dtype=torch.long)
    if ids.ndim != 1 or ids.numel() == 0 or (ids[1:] <= ids[:-1]).any() or ids[0] < 0 or ids[-1] >= vocab_size:
        raise ValueError(
            "`draft_token_ids` must be a one-dimensional list of strictly ascending ids in "
            f"[0, {vocab_size - 1}], got {ids.numel()} ids from {ids.min().item() if ids.numel() else None} to "
            f"{ids.max().item() if ids.numel() else None}. `build_draft_vocabulary` makes such a list."
        )
    t2d = torch.zeros(vocab_size, dtype=torch.bool)
    t2d[ids] = True
    return ids - torch.arange(len(ids)), t2d


def draft_id_table(draft_token_ids: torch.Tensor, vocab_size: int) -> torch.LongTensor:
    """
    The way back: the draft id of every target token.

    Args:
        draft_token_ids (`torch.Tensor` of shape `(draft_vocab_size,)`, int64): Target ids.
        vocab_size (`int`): Logit width of the target.

    Returns:
        `torch.LongTensor` of shape `(vocab_size,)`: Draft ids; -1 for tokens outside the draft vocabulary.
    """
    table = torch.full((vocab_size,), -1, dtype=torch.long, device=draft_token_ids.device)
    table[draft_token_ids] = torch.arange(len(draft_token_ids), device=draft_token_ids.device)
    return table


def check_vocabulary_maps(d2t: torch.Tensor, t2d: torch.Tensor) -> None:
    """
    Checks that the two maps of a checkpoint describe the same draft vocabulary.

    Args:
        d2t (`torch.Tensor` of shape `(draft_vocab_size,)`, int64): Offsets from draft ids to target ids.
        t2d (`torch.Tensor` of shape `(vocab_size,)`, bool): Target tokens that are kept.

    Raises:
        ValueError: If they disagree.
    """
    ids = d2t + torch.arange(len(d2t), device=d2t.device)
    if not torch.equal(ids, t2d.nonzero().squeeze(-1)):
        raise ValueError(
            f"`d2t` ({len(d2t)} tokens) and `t2d` ({int(t2d.sum())} tokens) of this checkpoint name different draft "
            "vocabularies. The checkpoint is damaged or was put together from two drafters."
        )
