# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Prompts of an exact number of tokens, from real text that is never repeated (repetition would flatter lookup)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_MARK = "<<the text of the user>>"
_BETWEEN = "\n\n"


def prompts_of_lengths(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], lengths: Sequence[int], count: int, seed: int = 0
) -> list[dict[int, list[int]]]:
    """
    Builds `count` prompts of every length. The shorter ones are the end of the longest: what is answered stays the
    same, only what stands before it grows.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's; its chat template frames the text as one
            user message.
        texts (`Sequence[str]`): Texts to string together; one that comes twice is used once, and no text is in two
            prompts.
        lengths (`Sequence[int]`): Tokens per prompt, the template's own included.
        count (`int`): Prompts of each length.
        seed (`int`, *optional*, defaults to 0): Of the order of the texts.

    Returns:
        `list[dict[int, list[int]]]`: Token ids by length, `count` times.

    Raises:
        ValueError: If there is too little text, or a length leaves no room beside the template.
    """
    before, after = _frame(tokenizer)
    frame = len(before) + len(after)
    if min(lengths) <= frame:
        raise ValueError(
            f"`lengths` holds {min(lengths)}, but the chat template alone takes {frame} tokens: give lengths above."
        )
    room = max(lengths) - frame
    order = list(dict.fromkeys(text for text in texts if text.strip()))
    random.Random(seed).shuffle(order)
    encoded = (tokenizer(text + _BETWEEN, add_special_tokens=False)["input_ids"] for text in order)
    prompts, found = [], 0
    for _ in range(count):
        filler: list[int] = []
        while len(filler) < room:
            ids = next(encoded, None)
            if ids is None:
                raise ValueError(
                    f"The prompts hold {found + len(filler)} tokens of text, but {count} different prompts of "
                    f"{max(lengths)} tokens need {count * room}: give more text, fewer repeats or shorter lengths."
                )
            filler = ids + filler  # to the front, so that the end is a whole text
        found += len(filler)
        prompts.append({length: before + filler[len(filler) - (length - frame) :] + after for length in lengths})
    return prompts


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the chat template puts before and after the user's text; without a template, the special tokens."""
    if tokenizer.chat_template is None:
        return list(tokenizer("")["input_ids"]), []
    messages = [{"role": "user", "content": _MARK}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    parts = text.split(_MARK)
    if len(parts) != 2:
        raise ValueError("The tokenizer's chat template does not show the user's message once: it cannot be framed.")
    return tuple(tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
