# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How much of a drafted window is accepted, given the target's logits behind the text and every draft token."""

from __future__ import annotations

from itertools import takewhile
from operator import eq

import torch
from transformers import GenerationConfig, LogitsProcessorList

from .host_rows import favourite, on_host, rows_of

# Chosen tokens as a tensor of shape `(n,)`; those that stand, on the host; the target's scores `(1, k + 1, vocab)`.
Verified = tuple[torch.LongTensor, list[int], torch.Tensor]


def verify_favourites(
    candidates: torch.LongTensor, draft_logits: torch.Tensor | None, logits: torch.Tensor
) -> Verified:
    """
    Plain greedy verification: the draft tokens that are the target's favourites, and its own behind them.

    Args:
        candidates (`torch.LongTensor` of shape `(1, length + k)`): The text and the window behind it.
        draft_logits: Not needed.
        logits (`torch.Tensor` of shape `(1, k + 1, vocab_size)`): The target's.

    Returns:
        `(chosen, tokens, scores)`: The target's choices, at all places or as far as they are accepted and one further;
        the accepted tokens and its own; the logits.
    """
    length = candidates.shape[1] - logits.shape[1] + 1
    drafted = candidates[0, length:].tolist()
    if on_host(logits):
        # Behind the first place where they differ nobody asks.
        tokens = []
        for place in range(len(drafted) + 1):
            tokens.append(favourite(rows_of(logits[0, place])))
            if place == len(drafted) or tokens[place] != drafted[place]:
                break
        return torch.tensor(tokens), tokens, logits
    chosen = logits[0].argmax(dim=-1)
    tokens = chosen.tolist()
    accepted = sum(1 for _ in takewhile(bool, map(eq, drafted, tokens)))
    return chosen, tokens[: accepted + 1], logits


class ChainVerifier:
    """
    Verification with logits processors and by sampling (Leviathan et al. 2023), as transformers' own loop does it.

    Args:
        generation_config ([`~transformers.GenerationConfig`]): The prepared configuration of the call.
        logits_processor ([`~transformers.LogitsProcessorList`], *optional*): Processors of the call.
    """

    def __init__(self, generation_config: GenerationConfig, logits_processor: LogitsProcessorList | None):
        self.config, self.processors = generation_config, LogitsProcessorList(logits_processor or [])

    def __call__(
        self, candidates: torch.LongTensor, draft_logits: torch.Tensor | None, logits: torch.Tensor
    ) -> Verified:
        """
        Args:
            candidates (`torch.LongTensor` of shape `(1, length + k)`): The text and the window behind it.
            draft_logits (`torch.Tensor` of shape `(1, k, vocab_size)`, *optional*):
                What the window was drawn from, when sampling.
            logits (`torch.Tensor` of shape `(1, k + 1, vocab_size)`): The target's.

        Returns:
            `(chosen, tokens, scores)`: The accepted tokens and the target's own behind them, twice; the processed
            logits, float32.
        """
        scores = logits.to(candidates.device, torch.float32, copy=True)
        drafted = scores.shape[1] - 1
        length = candidates.shape[1] - drafted
        for place in range(drafted + 1) if self.processors else ():
            scores[:, place] = self.processors(candidates[:, : length + place], scores[:, place])
        if self.config.do_sample and draft_logits is not None:
            # Here, where it is needed: `check_upstream` says what to do where it is gone.
            from transformers.generation.utils import _speculative_sampling

            chosen, _ = _speculative_sampling(
                candidates,
                draft_logits.to(scores.device),
                drafted,
                scores,
                assistant_ensemble_weight=getattr(self.config, "assistant_ensemble_weight", None),
            )
            chosen = chosen[0]
        else:
            if self.config.do_sample:
                own = torch.multinomial(scores[0].softmax(dim=-1), num_samples=1)[:, 0]
            else:
                own = scores[0].argmax(dim=-1)
            matches = (candidates[0, length:] == own[:-1]).long().cumprod(dim=-1).sum()
            chosen = own[: matches + 1]
        return chosen, chosen.tolist(), scores
