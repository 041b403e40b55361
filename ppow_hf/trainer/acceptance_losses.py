# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Losses between the target's distribution and the drafter's over a draft vocabulary, one value per column."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class TeacherRows:
    """
    The target's distributions at the scored positions, restricted to the draft vocabulary.

    Args:
        probs (`torch.Tensor` of shape `(rows, draft_vocab_size)`, float32):
            The target's probabilities of the draft vocabulary, *not* renormalised: a row sums to the share of the
            target's mass that the drafter can reach.
        argmax (`torch.LongTensor` of shape `(rows,)`): The target's most probable token, as a target id.
    """

    probs: torch.Tensor
    argmax: torch.LongTensor

    @classmethod
    def from_logits(
        cls, logits: torch.Tensor, draft_token_ids: torch.LongTensor | None, chunk_size: int = 256
    ) -> "TeacherRows":
        """
        Args:
            logits (`torch.Tensor` of shape `(rows, vocab_size)`): The target's logits.
            draft_token_ids (`torch.LongTensor` of shape `(draft_vocab_size,)`, *optional*): Target ids of the draft
                vocabulary; `None` when it is the whole vocabulary.
            chunk_size (`int`, *optional*, defaults to 256): Rows widened to float32 at a time.
        """
        probs = []
        for chunk in logits.split(chunk_size):
            chunk = chunk.float()
            kept = chunk if draft_token_ids is None else chunk.index_select(-1, draft_token_ids)
            probs.append(torch.exp(kept - chunk.logsumexp(-1, keepdim=True)))
        width = logits.shape[-1] if draft_token_ids is None else len(draft_token_ids)
        stacked = torch.cat(probs) if probs else logits.new_zeros((0, width), dtype=torch.float32)
        return cls(stacked, logits.argmax(-1))

    def __getitem__(self, index: torch.Tensor) -> "TeacherRows":
        return TeacherRows(self.probs[index], self.argmax[index])


def forward_kl(teacher: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """
    KL(p || q) with p renormalised over the draft vocabulary (EAGLE-3's soft cross-entropy up to p's own entropy).

    Args:
        teacher (`torch.Tensor` of shape `(rows, draft_vocab_size)`, float32): p, not necessarily summing to 1.
        log_q (`torch.Tensor` of shape `(rows, draft_vocab_size)`, float32): Log-probabilities of the drafter.

    Returns:
        `torch.Tensor` of shape `(rows,)`, in nats.
    """
    p = teacher / teacher.sum(-1, keepdim=True).clamp_min(1e-9)
    return torch.nn.functional.kl_div(log_q, p, reduction="none").sum(-1)


def total_variation(teacher: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """
    1 - sum_x min(p(x), q(x)): the chance that rejection sampling refuses a drafted token (Leviathan et al. 2023).

    Args and returns as [`forward_kl`]; p is taken as it is, so mass outside the draft vocabulary counts as refused.
    """
    return 1 - torch.minimum(teacher, log_q.exp()).sum(-1)


def lk(teacher: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """
    -log sum_x min(p(x), q(x)): the negative log-likelihood of acceptance (LK loss, arXiv 2602.23881).

    Args and returns as [`total_variation`].
    """
    return -torch.minimum(teacher, log_q.exp()).sum(-1).clamp_min(1e-6).log()


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "forward_kl": forward_kl,
    "total_variation": total_variation,
    "lk": lk,
}


def distillation_loss(
    loss_type: str, teacher: torch.Tensor, log_q: torch.Tensor, acceptance_weight: float = 0.5
) -> torch.Tensor:
    """
    The loss of a `loss_type`, per column.

    Args:
        loss_type (`str`): `"forward_kl"`, `"total_variation"`, `"lk"`, or `"mixed"`, which is
            `(1 - acceptance_weight) * forward_kl + acceptance_weight * lk`.
        teacher (`torch.Tensor` of shape `(rows, draft_vocab_size)`, float32): The target's probabilities.
        log_q (`torch.Tensor` of shape `(rows, draft_vocab_size)`, float32): Log-probabilities of the drafter.
        acceptance_weight (`float`, *optional*, defaults to 0.5): Share of the acceptance loss in the mix.

    Returns:
        `torch.Tensor` of shape `(rows,)`.
    """
    if loss_type == "mixed":
        return (1 - acceptance_weight) * forward_kl(teacher, log_q) + acceptance_weight * lk(teacher, log_q)
    return LOSSES[loss_type](teacher, log_q)
