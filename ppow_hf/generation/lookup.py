# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Lookup: what followed the last time the text read like this. No model, no training, no torch.

Text repeats itself (names, quotations, code, loops), so the tokens behind the most recent occurrence of the last few
tokens are often the next ones (Saxena, 2023, prompt lookup decoding). The index here is incremental and keeps, for
every context, how often it was seen and how often it was followed by the same token as the time before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class LookupMatch:
    """
    An earlier place where the text read as it does now.

    Args:
        position (`int`): Index of the token that followed there.
        length (`int`): How many tokens before it are the same as at the end of the text, at most `max_match`.
        seen (`int`): Earlier occurrences of the matched n-gram that were followed by a token.
        repeated (`int`): How many of these were followed by the same token as the occurrence before them.
    """

    position: int
    length: int
    seen: int
    repeated: int


class LookupIndex:
    """
    Incremental n-gram index over one text: constant work per token.

    Example:

    ```python
    >>> index = LookupIndex()
    >>> index.extend([1, 2, 3, 4, 1, 2])
    >>> index.propose(3)
    [3, 4, 1]
    >>> index.match.length
    2
    ```

    Args:
        max_ngram (`int`, *optional*, defaults to 4): Longest n-gram that is looked up, and the first one tried.
        min_ngram (`int`, *optional*, defaults to 1): Shortest.
        max_match (`int`, *optional*, defaults to 32): A match is followed back this far to tell its true length.

    Raises:
        ValueError: If the lengths are not `1 <= min_ngram <= max_ngram <= max_match`.
    """

    def __init__(self, max_ngram: int = 4, min_ngram: int = 1, max_match: int = 32):
        if not 1 <= min_ngram <= max_ngram <= max_match:
            raise ValueError(
                "`min_ngram`, `max_ngram` and `max_match` must be integers with 1 <= min_ngram <= max_ngram <= "
                f"max_match, got {min_ngram}, {max_ngram} and {max_match}."
            )
        self.max_ngram = max_ngram
        self.min_ngram = min_ngram
        self.max_match = max_match
        self.reset()

    def reset(self) -> None:
        """Forgets the text."""
        self.tokens: list[int] = []
        # n-gram -> [index of the token that followed it last, times followed, times followed by the same as before]
        self._contexts: dict[tuple[int, ...], list[int]] = {}
        self._match: LookupMatch | None = None
        self._matched_at = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, token: int) -> None:
        """Adds one token to the text."""
        tokens, contexts = self.tokens, self._contexts
        end = len(tokens)
        # An n-gram is entered only once the token behind it is known: the end of the text never matches itself.
        for n in range(self.min_ngram, min(self.max_ngram, end) + 1):
            entry = contexts.setdefault(tuple(tokens[end - n : end]), [end, 0, 0])
            if entry[1]:
                entry[2] += tokens[entry[0]] == token
            entry[0] = end
            entry[1] += 1
        tokens.append(token)

    def extend(self, tokens: Iterable[int]) -> None:
        """Adds tokens to the text, in order."""
        for token in tokens:
            self.append(token)

    @property
    def match(self) -> LookupMatch | None:
        """[`LookupMatch`]: The most recent earlier occurrence of the longest n-gram that has one; `None` without."""
        end = len(self.tokens)
        if self._matched_at != end:
            self._match, self._matched_at = self.match_behind(), end
        return self._match

    def match_behind(self, path: Sequence[int] = ()) -> LookupMatch | None:
        """
        As [`LookupIndex.match`], where the text went on with a few tokens more.

        Args:
            path (`Sequence[int]`, *optional*): Tokens behind the text, which are not in the index.
        """
        tokens = self.tokens
        tail = [*tokens[-self.max_match :], *path]
        for n in range(min(self.max_ngram, len(tail)), self.min_ngram - 1, -1):
            entry = self._contexts.get(tuple(tail[-n:]))
            if entry is None:
                continue
            position = entry[0]
            # Beyond the n-gram the match is followed back token by token: a longer one is a better one.
            length = n
            furthest = min(self.max_match, position)
            while length < furthest and tokens[position - 1 - length] == tail[-1 - length]:
                length += 1
            return LookupMatch(position, length, entry[1], entry[2])
        return None

    def propose(self, max_tokens: int) -> list[int]:
        """
        The tokens that followed the match.

        Args:
            max_tokens (`int`): How many.

        Returns:
            `list[int]`: `max_tokens` tokens; none without a match. A match that reaches the end of the text goes on
            into the proposal itself, so a repeating text is proposed to repeat.
        """
        match = self.match
        return self.follow(match, max_tokens) if match is not None else []

    def follow(self, match: LookupMatch, max_tokens: int, path: Sequence[int] = ()) -> list[int]:
        """
        The tokens that followed a match.

        Args:
            match ([`LookupMatch`]): Of the text, or of the text and a path behind it.
            max_tokens (`int`): How many.
            path (`Sequence[int]`, *optional*): That path.

        Returns:
            `list[int]`: See [`LookupIndex.propose`].
        """
        if max_tokens < 1:
            return []
        found = [*self.tokens[match.position : match.position + max_tokens], *path][:max_tokens]
        period = len(self.tokens) + len(path) - match.position
        for i in range(len(found), max_tokens):
            found.append(found[i - period])
        return found
