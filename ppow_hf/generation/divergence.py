# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How far drafter and target were apart at the positions just verified: both distributions are at hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .window_loop import DraftSampler

_KL_MAX = 20.0
_PRIOR = {"tv": 0.4, "kl": 1.0}


def window_divergence(
    scores: Sequence[torch.Tensor], target_scores: torch.Tensor, sampler: DraftSampler, kl: bool = False
) -> tuple[list[float], list[float]]:
    """
    Divergence between drafter and target at every position.

    Args:
        scores (`Sequence[torch.Tensor]`): Processed draft logits of the positions, each `(1, width)`.
        target_scores (`torch.Tensor` of shape `(positions, vocab_size)`): Processed target logits, of any precision.
        sampler ([`DraftSampler`]): Knows which target token a column of `scores` is.
        kl (`bool`, *optional*, defaults to `False`): Also compute the KL divergence of the drafter from the target.

    Returns:
        `(total_variation, kl)`: two lists with one entry per position; the second is empty unless asked for. One minus
        the total variation is the chance `sum_x min(p(x), q(x))` that a sampled draft token is accepted. KL(q || p),
        not KL(p || q): a drafter with a reduced vocabulary gives most tokens no probability at all.
    """
    draft = torch.cat(list(scores), dim=0)
    q = draft.softmax(dim=-1)
    # Two passes are faster than one that converts as it goes.
    p = sampler.probabilities_at(target_scores.float().softmax(dim=-1)).to(q.device)
    overlap = torch.minimum(p, q).sum(dim=-1)
    if not kl:
        return [min(max(1.0 - value, 0.0), 1.0) for value in overlap.tolist()], []
    terms = torch.where(q > 0, q * (q.clamp_min(1e-38).log() - p.clamp_min(1e-38).log()), 0.0)
    both = torch.stack([overlap, terms.sum(dim=-1)]).tolist()
    return [min(max(1.0 - v, 0.0), 1.0) for v in both[0]], [min(max(v, 0.0), _KL_MAX) for v in both[1]]


class RunningDivergence:
    """
    Exponential mean of the divergence over verified positions.

    Args:
        metric (`str`): `"tv"` or `"kl"`: the unit of `value`.
        decay (`float`): Weight of the past, per position.
    """

    def __init__(self, metric: str, decay: float):
        self.metric = metric
        self.decay = decay
        self.total_variation = _PRIOR["tv"]
        self.value = _PRIOR[metric]

    def update(self, total_variation: Sequence[float], kl: Sequence[float]) -> None:
        """Adds the positions of one verification, in order."""
        for value in total_variation:
            self.total_variation += (1.0 - self.decay) * (value - self.total_variation)
        if self.metric == "tv":
            self.value = self.total_variation
        for value in kl if self.metric == "kl" else ():
            self.value += (1.0 - self.decay) * (value - self.value)
