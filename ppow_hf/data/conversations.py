# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Conversations as they grow, and the batches they are answered in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from .chat import Messages, next_turn_token_ids, prompt_token_ids
from .settings import ResponseSettings


@dataclass
class Conversation:
    """A conversation as it grows. `token_ids` and `loss_mask` cover `prompt` and, once given, the answer to it."""

    index: int
    turns: tuple[str, ...]
    source: str
    temperature: float
    prompt: str | Messages
    token_ids: list[int]
    loss_mask: list[int]
    answer: str = ""
    rows: list[dict] = field(default_factory=list)

    def add_answer(self, tokenizer: PreTrainedTokenizerBase, response_ids: list[int], ended: bool) -> None:
        self.token_ids = self.token_ids + response_ids
        self.loss_mask = self.loss_mask + [1] * len(response_ids)
        self.answer = tokenizer.decode(response_ids[:-1] if ended else response_ids, skip_special_tokens=True)

    def ask_next(self, tokenizer: PreTrainedTokenizerBase, turn: int, end_token: str, limit: int) -> bool:
        """Append user message number `turn`. False when the conversation ends here; its last row is then closed."""
        if turn < len(self.turns):
            user = {"role": "user", "content": self.turns[turn]}
            prompt = [*self.prompt, {"role": "assistant", "content": self.answer}, user]
            added = next_turn_token_ids(tokenizer, self.prompt, self.answer, end_token, user)
            token_ids = prompt_token_ids(tokenizer, prompt) if added is None else self.token_ids + added
            if len(token_ids) <= limit:
                if added is None:
                    self._close_row()
                    self.loss_mask = []
                self.loss_mask = self.loss_mask + [0] * (len(token_ids) - len(self.loss_mask))
                self.prompt, self.token_ids = prompt, token_ids
                return True
        self._close_row()
        return False

    def _close_row(self) -> None:
        self.rows.append(
            {
                "prompt": self.prompt,
                "completion": self.answer,
                "input_ids": self.token_ids,
                "loss_mask": self.loss_mask,
                "temperature": self.temperature,
                "source": self.source,
            }
        )


def plan_batches(conversations: Sequence[Conversation], settings: ResponseSettings) -> Iterator[list[Conversation]]:
    """Batches of one temperature each and of similar length, the longest first: what does not fit into memory shows at
    once, and the time left is overestimated rather than underestimated."""
    batch: list[Conversation] = []
    for conversation in sorted(conversations, key=lambda c: (c.temperature, -len(c.token_ids), c.index)):
        if batch:
            rows = len(batch) + 1
            tokens = rows * (len(batch[0].token_ids) + settings.max_new_tokens)
            if (
                conversation.temperature != batch[0].temperature
                or rows > settings.batch_size
                or (settings.max_batch_tokens is not None and tokens > settings.max_batch_tokens)
            ):
                yield batch
                batch = []
        batch.append(conversation)
    if batch:
        yield batch


def left_pad(token_ids: list[list[int]], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of shape `[B, T]`, padded on the left."""
    length = max(map(len, token_ids))
    padded = [[pad_token_id] * (length - len(row)) + row for row in token_ids]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in token_ids]
    return {
        "input_ids": torch.tensor(padded, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def cut_after_end(response: list[int], eos_token_ids: list[int]) -> list[int]:
    end = next((position for position, token in enumerate(response, start=1) if token in eos_token_ids), None)
    return response[:end]
