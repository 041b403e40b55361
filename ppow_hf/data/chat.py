# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""From conversations to token ids, with a target's own chat template."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages) -> str:
    """The text a target sees before it answers: messages go through its chat template, a string stays as it is."""
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


def prompt_token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages) -> list[int]:
    """The token ids of [`render_prompt`]. A chat template writes its own BOS; a plain string gets the tokenizer's."""
    return tokenizer(render_prompt(tokenizer, prompt), add_special_tokens=isinstance(prompt, str)).input_ids


def next_turn_token_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    answer: str,
    end_token: str,
    user: dict[str, str],
) -> list[int] | None:
    """The tokens between an answer and the next one.

    The answer keeps the very tokens the target produced (text sampled at temperature 1 often tokenises differently
    when it is read back), so only what the template adds after it is tokenised.

    Args:
        messages (`list[dict]`): the conversation before the answer.
        answer (`str`): the text of the answer, without its end token.
        end_token (`str`): the end token the target wrote; empty when the answer was cut off.
        user (`dict`): the next user message.

    Returns:
        `list[int]` or `None`: what to append after the answer, or `None` when the template rewrites earlier turns (it
        trims answers, or drops their reasoning), so that the conversation cannot be continued in place.
    """
    before = render_prompt(tokenizer, messages) + answer + end_token
    after = render_prompt(tokenizer, [*messages, {"role": "assistant", "content": answer}, user])
    if not after.startswith(before):
        return None
    return tokenizer(after[len(before) :], add_special_tokens=False).input_ids
