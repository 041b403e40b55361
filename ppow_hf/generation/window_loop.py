# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
The window loop: draft tokens one after another until the policy, the length or the end of the text stops it.

There is one such loop. Decoding runs it for one sequence, training rollouts for a batch of them: what is trained is
what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .acceptance import AcceptanceEstimator, DraftStats, acceptance_features
from .draws import distribution, draw_in_turn
from .host_rows import rows_of, summarise
from .policies import WindowPolicy

if TYPE_CHECKING:
    from ..drafters import DrafterModel
    from ..drafters.drafter_state import DrafterState

# These look at the values of one row only, not at which token stands where: on logits padded with -inf to the target's
# vocabulary and on the draft vocabulary alone they do the same, and the latter is several times smaller.
_ROWWISE = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


class DraftSampler:
    """
    Turns draft logits into draft tokens, after the same logits processors as the target's.

    Args:
        draft_token_ids (`torch.LongTensor` of shape `(draft_vocab_size,)`, *optional*):
            Target id of every draft id; `None` when the vocabularies are the same.
        vocab_size (`int`): The target's logit width.
        logits_processor (`LogitsProcessorList`, *optional*): Processors of this call.
        do_sample (`bool`, *optional*, defaults to `False`): Draw from the distribution instead of taking its maximum.
        generator (`torch.Generator`, *optional*): Source of randomness; the global one by default.
    """

    def __init__(
        self,
        draft_token_ids: torch.Tensor | None,
        vocab_size: int,
        logits_processor: LogitsProcessorList | None = None,
        do_sample: bool = False,
        generator: torch.Generator | None = None,
    ):
        self.draft_token_ids = draft_token_ids
        self.vocab_size = vocab_size
        self.processors = LogitsProcessorList(logits_processor or [])
        self.do_sample = do_sample
        self.generator = generator
        # In the draft vocabulary as long as nothing asks which token a logit belongs to.
        self.reduced = all(type(processor) in _ROWWISE for processor in self.processors)
        # Processors that forbid or force tokens can forbid everything the drafter knows.
        self.may_lack_support = not self.reduced
        # Whether a column of `scores` is a draft id that must be translated.
        self.mapped = self.reduced and draft_token_ids is not None

    def scores(self, logits: torch.Tensor, context_ids: torch.LongTensor | None) -> torch.Tensor:
        """
        Processes draft logits.

        Args:
            logits (`torch.Tensor` of shape `(batch, draft_vocab_size)`): From the drafter.
            context_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): The text so far, drafts included.

        Returns:
            `torch.Tensor` of shape `(batch, draft_vocab_size)` (or `(batch, vocab_size)`, with `-inf` outside the
            draft vocabulary, if a processor needs to know the tokens), float32: logits of the draft distribution.
        """
        logits = logits.float()
        if not self.processors:
            return logits
        if self.reduced:
            return self.processors(context_ids, logits)
        return self.processors(context_ids, self.to_target_vocabulary(logits))

    def to_target_vocabulary(self, scores: torch.Tensor) -> torch.Tensor:
        """Spreads `(..., draft_vocab_size)` over `(..., vocab_size)`, with `-inf` where the drafter has no token."""
        if self.draft_token_ids is None:
            return scores
        full = scores.new_full((*scores.shape[:-1], self.vocab_size), -torch.inf)
        full[..., self.draft_token_ids] = scores
        return full

    def draw(self, scores: torch.Tensor) -> tuple[torch.LongTensor, torch.LongTensor, torch.Tensor]:
        """
        Chooses one token per row.

        Args:
            scores (`torch.Tensor` of shape `(batch, width)`): From [`DraftSampler.scores`].

        Returns:
            `(columns, token_ids, stats)`: the column of `scores` that was chosen and its target id, each `(batch,)`,
            and per row the two highest probabilities, the entropy, the target id and its probability, `(batch, 5)`
            float32. A row without any possible token has NaN as its highest probability.
        """
        probs, entropy = distribution(scores)
        top = probs.topk(2, dim=-1) if probs.shape[-1] > 1 else None
        if self.do_sample:
            weights = probs.nan_to_num(nan=1.0) if self.may_lack_support else probs
            columns = draw_in_turn(weights, 1, self.generator)
            chosen = probs.gather(-1, columns)
        elif top is not None:
            columns, chosen = top.indices[:, :1], top.values[:, :1]
        else:
            columns, chosen = torch.zeros_like(probs, dtype=torch.long), probs
        token_ids = self.draft_token_ids[columns] if self.mapped else columns
        values = top.values if top is not None else torch.cat([probs, torch.zeros_like(probs)], dim=-1)
        stats = torch.cat([values, entropy, token_ids.to(values.dtype), chosen], dim=-1)
        return columns[:, 0], token_ids[:, 0], stats

    def favourite(
        self, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.LongTensor, torch.LongTensor, tuple[float, ...]]:
        """
        [`DraftSampler.scores`] and [`DraftSampler.draw`] of one row in one, where they are `simple`: greedy, on a CPU
        and without processors. The same up to rounding, in a fraction of the time.

        Args:
            logits (`torch.Tensor` of shape `(1, draft_vocab_size)`): From the drafter.

        Returns:
            `(scores, columns, token_ids, stats)`: as the two return them, the statistics as five numbers.
        """
        scores = logits.float()
        said = summarise(rows_of(scores)[0], 1)
        column, first = said.columns[0], said.probabilities[0]
        said.weights[column] = 0.0
        second = float(said.weights.max()) / said.total
        columns = torch.tensor([column])
        token_ids = self.draft_token_ids.narrow(0, column, 1) if self.mapped else columns
        token = token_ids.item() if self.mapped else column
        return scores, columns, token_ids, (first, second, said.entropy, token, first)

    def simple(self, logits: torch.Tensor) -> bool:
        """Whether [`DraftSampler.favourite`] can draw from these logits."""
        return not (self.do_sample or self.processors) and logits.is_cpu and len(logits) == 1 and logits.shape[-1] > 1

    def probabilities_at(self, target_probs: torch.Tensor) -> torch.Tensor:
        """Columns of target probabilities `(..., vocab_size)` that correspond to the columns of `scores`."""
        return target_probs.index_select(-1, self.draft_token_ids) if self.mapped else target_probs

    def candidate_logits(self, scores: Sequence[torch.Tensor]) -> torch.Tensor:
        """
        The draft logits that sampling verification needs: exactly the distributions the drafts were drawn from.

        Args:
            scores (`Sequence[torch.Tensor]`): One `(batch, width)` tensor per draft token.

        Returns:
            `torch.Tensor` of shape `(batch, len(scores), vocab_size)`.
        """
        stacked = torch.stack(list(scores), dim=1)
        return self.to_target_vocabulary(stacked) if self.reduced else stacked


@dataclass
class DraftWindow:
    """
    What one run of the window loop proposed, for `B` rows and `K` drawn tokens.

    Args:
        token_ids (`torch.LongTensor` of shape `(B, K)`): Draft tokens, as target ids. Row `b` proposes only its first
            `lengths[b]`.
        columns (`torch.LongTensor` of shape `(B, K)`): The same tokens as columns of `scores`.
        scores (`list[torch.Tensor]`): `K` processed draft logits, see [`DraftSampler.scores`].
        lengths (`list[int]`): Tokens proposed by each row.
        forwards (`int`): Drafter passes, the one that committed the last tokens included.
        stop (`list[str]`): Why each row stopped.
        tokens, predicted, confidence, features (`list[list]`): Per row and token, on the host; empty if
            `record=False`.
    """

    token_ids: torch.LongTensor
    columns: torch.LongTensor
    scores: list[torch.Tensor]
    lengths: list[int]
    forwards: int
    stop: list[str]
    tokens: list[list[int]] = field(default_factory=list)
    predicted: list[list[float]] = field(default_factory=list)
    confidence: list[list[float]] = field(default_factory=list)
    features: list[list[tuple[float, ...]]] = field(default_factory=list)


def draft_window(
    drafter: DrafterModel,
    state: DrafterState,
    logits: torch.Tensor,
    *,
    sampler: DraftSampler,
    policies: Sequence[WindowPolicy],
    sizes: Sequence[int],
    context_ids: torch.LongTensor | None = None,
    estimator: AcceptanceEstimator | None = None,
    divergence: float = 0.0,
    eos_token_ids: frozenset[int] = frozenset(),
    record: bool = True,
    step: Callable[[DrafterState, torch.Tensor], torch.Tensor] | None = None,
    offset: int = 0,
) -> DraftWindow:
    """
    Drafts one window per row.

    Args:
        drafter ([`DrafterModel`]): The drafter.
        state ([`DrafterState`]): Its state, just extended; changed in place.
        logits (`torch.Tensor` of shape `(B, draft_vocab_size)`): What `drafter.extend` returned.
        sampler ([`DraftSampler`]): Draws the tokens.
        policies (`Sequence[WindowPolicy]`): One per row.
        sizes (`Sequence[int]`): Most tokens to draft, per row (from `policy.target_size()`, within the length budget).
        context_ids (`torch.LongTensor` of shape `(B, length)`, *optional*): The text so far, for the processors.
        estimator ([`AcceptanceEstimator`], *optional*): Acceptance estimate; needed unless `record=False`.
        divergence (`float`, *optional*, defaults to 0.0): Running total variation, a feature of the estimate.
        eos_token_ids (`frozenset[int]`, *optional*): Tokens after which nothing is drafted.
        record (`bool`, *optional*, defaults to `True`): Fill the host-side lists. With `False`, and policies that need
            no statistics, the loop does not wait for the device at all.
        step (`Callable`, *optional*): Called in place of `drafter.step` (to time it).
        offset (`int`, *optional*, defaults to 0): Tokens of another source that already lead the window, and have been
            fed to the drafter. They count in `sizes` and in the positions, and are no part of what is returned.

    Returns:
        [`DraftWindow`].
    """
    step = step or drafter.step
    rows = logits.shape[0]
    if len(policies) != rows or len(sizes) != rows:
        raise ValueError(
            f"`policies` and `sizes` must hold one entry per row ({rows}), got {len(policies)} and {len(sizes)}."
        )
    on_host = record or bool(eos_token_ids) or sampler.may_lack_support or any(p.needs_stats for p in policies)
    if on_host and estimator is None:
        estimator = AcceptanceEstimator(sampling=sampler.do_sample)
    window = DraftWindow(
        token_ids=torch.empty((rows, 0), dtype=torch.long, device=logits.device),
        columns=torch.empty((rows, 0), dtype=torch.long, device=logits.device),
        scores=[],
        lengths=[0] * rows,
        forwards=1,
        stop=["limit"] * rows,
        tokens=[[] for _ in range(rows)],
        predicted=[[] for _ in range(rows)],
        confidence=[[] for _ in range(rows)],
        features=[[] for _ in range(rows)],
    )
    active = [row for row in range(rows) if sizes[row] > offset]
    simple = on_host and sampler.simple(logits)
    needs_context = bool(sampler.processors) and not sampler.reduced
    drawn: list[torch.Tensor] = []
    columns: list[torch.Tensor] = []
    position = offset
    while active:
        if simple:
            scores, column, token_ids, stats = sampler.favourite(logits)
            values = [stats]
        else:
            scores = sampler.scores(logits, context_ids)
            # The token is drawn along with the statistics, so that one transfer brings both; `wants` decides without.
            column, token_ids, stats = sampler.draw(scores)
            values = stats.tolist() if on_host else None
        still = []
        kept_any = False
        for row in active:
            if values is None:
                kept_any = True
                window.lengths[row] += 1
                if position + 1 < sizes[row] and policies[row].continues(position, 1.0, None, None):
                    still.append(row)
                continue
            top1, top2, entropy, token, probability = values[row]
            if top1 != top1:  # NaN: the processors forbid everything the drafter knows
                window.stop[row] = "no_support"
                continue
            draft = DraftStats(top1, top2, entropy)
            features = acceptance_features(draft, position, divergence)
            estimate = estimator.predict(features)
            if not policies[row].wants(position, estimate, draft):
                window.stop[row] = "policy"
                continue
            kept_any = True
            token = int(token)
            window.lengths[row] += 1
            window.tokens[row].append(token)
            window.predicted[row].append(estimate)
            window.confidence[row].append(top1)
            window.features[row].append(features)
            if token in eos_token_ids:
                window.stop[row] = "eos"
            elif position + 1 >= sizes[row]:
                pass
            elif policies[row].continues(position, estimate, draft, probability):
                still.append(row)
            else:
                window.stop[row] = "policy"
        if not kept_any:
            break
        window.scores.append(scores)
        drawn.append(token_ids)
        columns.append(column)
        active = still
        if active:
            if needs_context:
                context_ids = torch.cat([context_ids, token_ids[:, None].to(context_ids.device)], dim=-1)
            logits = step(state, token_ids)
            window.forwards += 1
            position += 1
    if drawn:
        window.token_ids = torch.stack(drawn, dim=1)
        window.columns = torch.stack(columns, dim=1)
    return window
