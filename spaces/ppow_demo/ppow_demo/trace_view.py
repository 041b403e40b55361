# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""From a trace to what is drawn: tokens with their origin, rows of cells, totals. Pure functions, no models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ppow_hf import CostModel

ACCEPTED, OWN, REJECTED, UNKNOWN = "accepted", "own", "rejected", "unknown"
KIND_LABELS = {
    ACCEPTED: "drafted and accepted",
    OWN: "the target's own token",
    REJECTED: "drafted in vain",
    UNKNOWN: "drafted, but not judged",
}
# What the adaptive window is held against: the window of the worked example.
FIXED_SIZE = 8
_CONTEXT = 4

Decode = Callable[[list[int]], str]


class Detokenizer:
    """
    Turns a stream of tokens into pieces of text that add up to the text.

    A character split over several tokens appears with the last of them; until then the pieces are empty.

    Args:
        decode (`Callable`): `list[int] -> str`.
        context (`Sequence[int]`, *optional*): Tokens before the first one, for tokenizers that write a word
            differently at the beginning of a text.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()):
        self._decode = decode
        self._tokens = list(context[-_CONTEXT:])
        self._done = len(self._tokens)  # tokens whose text is out

    def push(self, token: int) -> str:
        """Returns the text that `token` adds."""
        self._tokens.append(int(token))
        start = max(0, self._done - _CONTEXT)
        before = self._decode(self._tokens[start : self._done]) if self._done > start else ""
        text = self._decode(self._tokens[start:])
        if text.endswith("\N{REPLACEMENT CHARACTER}") or len(text) < len(before):
            return ""
        self._done = len(self._tokens)
        return text[len(before) :]


def pieces(tokens: Sequence[int], decode: Decode, context: Sequence[int] = ()) -> list[str]:
    """One piece of text per token; what never became a whole character is shown as the replacement character."""
    detokenizer = Detokenizer(decode, context)
    texts = [detokenizer.push(token) for token in tokens]
    if texts and not texts[-1] and "".join(texts) != decode(list(tokens)):
        texts[-1] = "\N{REPLACEMENT CHARACTER}"
    return texts


@dataclass(frozen=True)
class Token:
    """
    One token of the picture.

    Args:
        text (`str`): Its text.
        kind (`str`): `"accepted"`, `"own"` (the target's) or `"rejected"` (not part of the text).
        cycle (`int`): The cycle it came from; 0 is the prefill.
        predicted (`float`, *optional*): Estimated chance of acceptance, for draft tokens.
    """

    text: str
    kind: str
    cycle: int
    predicted: float | None = None


def annotate(tokens: Sequence[int], cycles: Sequence[dict[str, Any]], decode: Decode) -> list[Token]:
    """
    Every token of the text with its origin, and the rejected drafts beside the place they were meant for.

    Args:
        tokens (`Sequence[int]`): The new tokens, in order.
        cycles (`Sequence[dict]`): `GenerationTrace.to_dict()["cycles"]`.
        decode (`Callable`): `list[int] -> str`.

    Returns:
        `list[Token]`: In reading order: what a cycle accepted, what it rejected, the target's own token.

    Raises:
        ValueError: If the cycles do not add up to the tokens.
    """
    texts = pieces(tokens, decode)
    place = len(tokens) - sum(cycle["committed"] for cycle in cycles)
    if place < 0:
        raise ValueError(f"The cycles commit {len(tokens) - place} tokens, but the text has {len(tokens)}.")
    marked = [Token(text, OWN, 0) for text in texts[:place]]
    for number, cycle in enumerate(cycles, start=1):
        accepted, predicted = cycle["accepted"], cycle["predicted"]
        if list(tokens[place : place + accepted]) != list(cycle["tokens"][:accepted]):
            raise ValueError(f"Cycle {number} accepted tokens that are not in the text at {place}.")
        for index in range(accepted):
            marked.append(Token(texts[place + index], ACCEPTED, number, _at(predicted, index)))
        rejected = cycle["tokens"][accepted : cycle["drafted"]]
        for index, text in enumerate(pieces(rejected, decode, tokens[: place + accepted])):
            marked.append(Token(text, REJECTED, number, _at(predicted, accepted + index)))
        for index in range(accepted, cycle["committed"]):
            marked.append(Token(texts[place + index], OWN, number))
        place += cycle["committed"]
    return marked


def _at(values: Sequence[float], index: int) -> float | None:
    return values[index] if index < len(values) else None


@dataclass(frozen=True)
class Row:
    """
    One cycle as a row of cells.

    Args:
        drafted (`int`): Tokens drafted.
        accepted (`int`): How many of them, from the front, became text.
        own (`int`): The target's own tokens (1, or 0 where the text ended on an accepted draft token).
        unknown (`int`): Draft tokens behind the accepted ones whose fate is not known.
    """

    drafted: int
    accepted: int
    own: int = 1
    unknown: int = 0

    @property
    def wasted(self) -> int:
        return self.drafted - self.accepted - self.unknown

    @property
    def cells(self) -> list[str]:
        """`list[str]`: One kind per cell, in the order they are drawn: what became text first."""
        return [ACCEPTED] * self.accepted + [OWN] * self.own + [REJECTED] * self.wasted + [UNKNOWN] * self.unknown


def adaptive_rows(cycles: Sequence[dict[str, Any]]) -> list[Row]:
    """The cycles as they were run."""
    return [Row(c["drafted"], c["accepted"], c["committed"] - c["accepted"]) for c in cycles]


def fixed_rows(cycles: Sequence[dict[str, Any]], size: int = FIXED_SIZE) -> list[Row]:
    """
    What a fixed window would have made of the same places, as far as the cycles alone tell.

    A cycle in which a draft token was rejected tells it all: drafting on would have been in vain. Where the whole
    window was accepted only drafting further can tell ([`Engine.replay_fixed`] does, for greedy text); here the rest
    of the fixed window is marked as not judged.

    Args:
        cycles (`Sequence[dict]`): The cycles of the run.
        size (`int`, *optional*, defaults to 8): The fixed window.

    Returns:
        `list[Row]`: One per cycle.
    """
    rows = []
    for cycle in cycles:
        accepted = min(cycle["accepted"], size)
        settled = cycle["accepted"] < cycle["drafted"] or accepted == size
        own = cycle["committed"] - cycle["accepted"]
        rows.append(Row(size, accepted, own, 0 if settled else size - accepted))
    return rows


@dataclass(frozen=True)
class Totals:
    """Sums over rows. `cost` is in plain target steps, `None` without a cost model or with unknown cells."""

    cycles: int
    drafted: int
    accepted: int
    wasted: int
    unknown: int
    committed: int
    cost: float | None

    @property
    def cost_per_token(self) -> float | None:
        return self.cost / self.committed if self.cost is not None and self.committed else None


def totals(rows: Sequence[Row], cost_model: CostModel | None = None) -> Totals:
    """
    Args:
        rows (`Sequence[Row]`): The cycles.
        cost_model ([`CostModel`], *optional*): What they cost.
    """
    unknown = sum(row.unknown for row in rows)
    cost = sum(cost_model.cycle_cost(row.drafted) for row in rows) if cost_model is not None and not unknown else None
    return Totals(
        cycles=len(rows),
        drafted=sum(row.drafted for row in rows),
        accepted=sum(row.accepted for row in rows),
        wasted=sum(row.wasted for row in rows),
        unknown=unknown,
        committed=sum(row.accepted + row.own for row in rows),
        cost=cost,
    )


def predicted_speedup(rows: Sequence[Row], cost_model: CostModel) -> float | None:
    """Tokens per plain target step over the cycles, by the cost model: the speedup without prefill."""
    summed = totals(rows, cost_model)
    return summed.committed / summed.cost if summed.cost else None


def first_difference(a: Sequence[int], b: Sequence[int], *, whole: bool = True) -> int | None:
    """
    Where two token lists part.

    Args:
        a, b (`Sequence[int]`): The lists.
        whole (`bool`, *optional*, defaults to `True`): Whether both are whole texts; if not (a run was stopped), one
            being the beginning of the other is no difference.

    Returns:
        `int` or `None`: Index of the first difference.
    """
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b)) if whole and len(a) != len(b) else None


def cycle_milliseconds(trace: dict[str, Any]) -> list[dict[str, float]]:
    """
    Returns:
        `list[dict]`: Milliseconds in `prefill`, `draft`, `verify` and `other`, first of the prefill, then per cycle.
    """
    phases = ("prefill", "draft", "verify", "other")
    rows = [{"prefill": 1000 * trace["seconds"]["prefill"], "draft": 0.0, "verify": 0.0, "other": 0.0}]
    rows += [{phase: 1000 * cycle["seconds"].get(phase, 0.0) for phase in phases} for cycle in trace["cycles"]]
    return rows
