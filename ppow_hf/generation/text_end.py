# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Where a text ends: behind the first token that meets a stopping criterion, however many are committed at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria

from ..end_tokens import eos_token_ids_of


class TextEnd:
    """
    Asks the stopping criteria of one call as plain decoding asks them: once per token, about the text up to it.

    Only where one of them could end the text within what a cycle commits. The call's own `max_length` and end tokens
    cannot, since nothing is drafted or kept behind them, and criteria are then asked once per cycle.

    Args:
        criteria ([`~transformers.StoppingCriteriaList`]): Prepared by `generate`.
        generation_config ([`~transformers.GenerationConfig`]): The prepared configuration of the call.
    """

    def __init__(self, criteria: StoppingCriteriaList, generation_config: GenerationConfig):
        self.criteria = criteria
        self._own = OwnEnd.of(criteria)
        self.token_by_token = any(_may_end_within(criterion, generation_config) for criterion in criteria)

    def extend(
        self,
        input_ids: torch.LongTensor,
        new: torch.LongTensor,
        scores: Sequence[torch.Tensor] | None = None,
        last: int | None = None,
    ) -> tuple[torch.LongTensor, bool]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(1, length)`): The text.
            new (`torch.LongTensor` of shape `(1, n)`): The tokens to commit, at least one.
            scores (`Sequence[torch.Tensor]`, *optional*):
                Where they are returned, the scores of all generated tokens, those of `new` included: criteria are
                given what is known by their token.
            last (`int`, *optional*): The last of the new tokens, where it is known on the host.

        Returns:
            `(input_ids, ended)`: The text with as many of the new tokens as it keeps, and whether it ends there.
        """
        count = new.shape[1]
        if last is not None and self._own is not None and not self.token_by_token:
            text = torch.cat([input_ids, new], dim=-1)
            return text, self._own.met(text.shape[1], last)
        for kept in range(1, count + 1) if self.token_by_token else (count,):
            text = torch.cat([input_ids, new[:, :kept]], dim=-1)
            seen = None if scores is None else tuple(scores[: len(scores) - count + kept])
            if bool(self.criteria(text, seen).all()):
                return text, True
        return text, False


class OwnEnd(NamedTuple):
    """
    The end of a text that only its length and its end tokens decide: two numbers, where criteria ask the device.

    Args:
        max_length (`int`): Tokens at which it ends.
        eos_token_ids (`frozenset[int]`): Tokens behind which it ends.
    """

    max_length: int
    eos_token_ids: frozenset[int]

    @classmethod
    def of(cls, criteria: StoppingCriteriaList) -> OwnEnd | None:
        """What criteria come to; `None` where they ask anything else, or would warn."""
        if type(criteria) is not StoppingCriteriaList:
            return None
        lengths, ends = [], set()
        for criterion in criteria:
            if type(criterion) is MaxLengthCriteria:
                limit = criterion.max_position_embeddings
                if limit is not None and criterion.max_length > limit:
                    return None
                lengths.append(criterion.max_length)
            elif type(criterion) is EosTokenCriteria:
                ends.update(criterion.eos_token_id.flatten().tolist())
            else:
                return None
        return cls(min(lengths), frozenset(ends)) if lengths else None

    def met(self, length: int, last: int) -> bool:
        """Whether a text of this length ends with this token."""
        return length >= self.max_length or last in self.eos_token_ids


def _may_end_within(criterion: StoppingCriteria, config: GenerationConfig) -> bool:
    """Whether a criterion may be met by a token that others are committed behind."""
    if type(criterion) is MaxTimeCriteria:
        return False  # Met by the clock, not by a token.
    # The user may pass criteria of these kinds, too, which then take the place of the call's own.
    if type(criterion) is MaxLengthCriteria:
        return criterion.max_length < config.max_length
    if type(criterion) is EosTokenCriteria:
        return not eos_token_ids_of(config).issuperset(criterion.eos_token_id.flatten().tolist())
    return True
