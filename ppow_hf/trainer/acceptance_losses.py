# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Losses between the target's distribution and the drafter's over a draft vocabulary, one value per column."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..row_blocks import rows_per_block


@dataclass
class TeacherRows:
    """
    The target's distributions at the scored positions, restricted to the draft vocabulary.

    Args:
        probs (`torch.Tensor` of shape `(rows, draft_vocab_size)`, float32):
            The target's probabilities of the draft vocabulary, *not* renormalised: a row sums to the share of the
            target's mass that the drafter can reach.
        argmax (`torch.LongTensor` of shape `(rows,)`): The target's most probable token, as a target id.
        negative_entropy (`torch.Tensor` of shape `(rows,)`, float32):
            `sum_x p(x) log p(x)` of the probabilities renormalised over the draft vocabulary.
    """

    probs: torch.Tensor
    argmax: torch.LongTensor
    negative_entropy: torch.Tensor

    @classmethod
    def from_logits(
        cls,
        logits: torch.Tensor,
        draft_token_ids: torch.LongTensor | None,
        head: Callable[[torch.Tensor], torch.Tensor] | None = None,
        chunk_size: int | None = None,
    ) -> "TeacherRows":
        """
        Args:
            logits (`torch.Tensor` of shape `(rows, vocab_size)`): The target's logits; or, with `head`, the states
                `(rows, hidden_size)` it is applied to.
            draft_token_ids (`torch.LongTensor` of shape `(draft_vocab_size,)`, *optional*): Target ids of the draft
                vocabulary; `None` when it is the whole vocabulary.
            head (`Callable`, *optional*): The target's head.
            chunk_size (`int`, *optional*): Rows taken at a time. On a CPU 64: the whole vocabulary of few rows fits in
                its cache, that of all rows does not.
        """
        chunk_size = rows_per_block(logits.device, 64, logits.shape[-1]) if chunk_size is None else chunk_size
        parts = [], [], []
        blocks = (
            block
            for rows in logits.split(4 * chunk_size)
            for block in (rows if head is None else head(rows)).split(chunk_size)
        )
        for block in blocks:
            chunk = block.float()
            kept = chunk if draft_token_ids is None else chunk.index_select(-1, draft_token_ids)
            log_p = kept - chunk.logsumexp(-1, keepdim=True)
            p = log_p.exp()
            mass = p.sum(-1).clamp_min(1e-9)
            # sum (p / mass) log(p / mass), without another logarithm per token.
            finite = log_p.clamp_min(torch.finfo(log_p.dtype).min)
            negative_entropy = torch.linalg.vecdot(p, finite) / mass - mass.log()
            for part, value in zip(parts, (p, chunk.argmax(-1), negative_entropy), strict=True):
                part.append(value)
        if not len(logits):
            # No token to learn from: prompts that fill `max_length`, for example.
            vocab_size = (logits if head is None else head(logits)).shape[-1]
            width = len(draft_token_ids) if draft_token_ids is not None else vocab_size
            empty = logits.new_zeros((0, width), dtype=torch.float32)
            return cls(empty, empty.new_zeros(0, dtype=torch.long), empty.new_zeros(0))
        return cls(*(torch.cat(part) for part in parts))

    def __getitem__(self, index: torch.Tensor) -> "TeacherRows":
        return TeacherRows(self.probs[index], self.argmax[index], self.negative_entropy[index])


def forward_kl(
    teacher: torch.Tensor, log_q: torch.Tensor, negative_entropy: torch.Tensor | None = None
) -> torch.Tensor:
    """
    KL(p || q) with p renormalised over the draft vocabulary (EAGLE-3's soft cross-entropy up to p's own entropy).

    Args:
        teacher (`torch.Tensor` of shape `(rows, draft_vocab_size)`, float32): p, not necessarily summing to 1.
        log_q (`torch.Tensor` of shape `(rows, draft_vocab_size)`, float32): Log-probabilities of the drafter.
        negative_entropy (`torch.Tensor` of shape `(rows,)`, *optional*): `sum p log p` of the renormalised p, where it
            is known already ([`TeacherRows`]).

    Returns:
        `torch.Tensor` of shape `(rows,)`, in nats.
    """
    mass = teacher.sum(-1).clamp_min(1e-9)
    if negative_entropy is None:
        negative_entropy = torch.special.xlogy(teacher, teacher).sum(-1) / mass - mass.log()
    return negative_entropy - torch.linalg.vecdot(teacher, log_q) / mass


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
    loss_type: str,
    teacher: torch.Tensor,
    log_q: torch.Tensor,
    acceptance_weight: float = 0.5,
    negative_entropy: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The loss of a `loss_type`, per column.

    Args:
        loss_type (`str`): `"forward_kl"`, `"total_variation"`, `"lk"`, or `"mixed"`, which is
            `(1 - acceptance_weight) * forward_kl + acceptance_weight * lk`.
        teacher (`torch.Tensor` of shape `(rows, draft_vocab_size)`, float32): The target's probabilities.
        log_q (`torch.Tensor` of shape `(rows, draft_vocab_size)`, float32): Log-probabilities of the drafter.
        acceptance_weight (`float`, *optional*, defaults to 0.5): Share of the acceptance loss in the mix.
        negative_entropy (`torch.Tensor` of shape `(rows,)`, *optional*): As for [`forward_kl`].

    Returns:
        `torch.Tensor` of shape `(rows,)`.
    """
    if loss_type == "forward_kl":
        return forward_kl(teacher, log_q, negative_entropy)
    if loss_type == "mixed":
        divergence = forward_kl(teacher, log_q, negative_entropy)
        return (1 - acceptance_weight) * divergence + acceptance_weight * lk(teacher, log_q)
    return LOSSES[loss_type](teacher, log_q)
