# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a decoding left behind: tokens, clock and trace, and the figures that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ppow_hf import CostModel, WindowConfig

from .settings import Settings
from .trace_view import Row, Token, adaptive_rows, first_difference, fixed_rows, predicted_speedup


@dataclass
class Decoding:
    """
    One decoding, running or over.

    Args:
        name (`str`): What the page calls it.
        tokens (`list[int]`): New tokens so far.
        times (`list[float]`): Seconds from the start at which each was committed.
        own (`list[bool]`): Whether each came last in its cycle: the target's own, while the trace is not there yet.
        seconds (`float`): Wall-clock seconds of the whole call, prefill included.
        finished (`bool`): Whether it is over.
        stopped (`bool`): Whether it was stopped.
        trace (`dict`, *optional*): `GenerationTrace.to_dict()`, with a drafter.
        verifications, drafted (`int`, *optional*): Target passes after the prefill, draft tokens sent to them.
    """

    name: str
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False
    stopped: bool = False
    trace: dict[str, Any] | None = None
    verifications: int | None = None
    drafted: int | None = None

    @property
    def tokens_per_second(self) -> float | None:
        return len(self.tokens) / self.seconds if self.seconds > 0 and self.tokens else None

    @property
    def step_seconds(self) -> float | None:
        """`float`: Seconds per token once the first one is there: decoding without the prefill."""
        if len(self.tokens) < 2:
            return None
        return (self.seconds - self.times[0]) / (len(self.tokens) - 1)

    @property
    def acceptance_length(self) -> float | None:
        """`float`: tau, tokens per verification, the target's own included (the prefill's token is not counted)."""
        if self.trace is not None:
            return self.trace["acceptance_length"]
        return (len(self.tokens) - 1) / self.verifications if self.verifications else None

    @property
    def mean_window(self) -> float | None:
        if self.trace is not None:
            return self.trace["mean_window"]
        return self.drafted / self.verifications if self.verifications else None


@dataclass
class Race:
    """
    Plain decoding and a drafter on one prompt.

    Args:
        prompt, settings: What was asked.
        dtype (`str`): What both models compute in.
        plain, drafted ([`Decoding`]): The two; `drafted` is `None` until its turn.
        marked (`list[Token]`): The drafter's text with the origin of every token, when it is over.
        replayed (`list[Row]`, *optional*): A fixed window at the same places, where it could be replayed.
        cost (`dict`, *optional*): The cost model.
        window (`WindowConfig`, *optional*): The window in force.
        float32 (`bool`, *optional*): Whether both texts are the same in float32, once that was checked.
    """

    prompt: str
    settings: Settings
    dtype: str
    plain: Decoding
    drafted: Decoding | None = None
    marked: list[Token] = field(default_factory=list)
    replayed: list[Row] | None = None
    cost: dict[str, Any] | None = None
    window: WindowConfig | None = None
    float32: bool | None = None

    @property
    def finished(self) -> bool:
        return self.drafted is not None and self.drafted.finished

    @property
    def stopped(self) -> bool:
        return self.plain.stopped or (self.drafted is not None and self.drafted.stopped)

    @property
    def comparable(self) -> bool:
        """Whether both decodings have something to compare."""
        return self.finished and bool(self.plain.tokens) and bool(self.drafted.tokens)

    @property
    def speedup(self) -> float | None:
        """Tokens per second with the drafter over those of plain decoding, both over the whole call."""
        if not self.comparable or self.stopped:
            return None
        return self.drafted.tokens_per_second / self.plain.tokens_per_second

    @property
    def decode_speedup(self) -> float | None:
        """The same without the prefill, which is what the cost model predicts."""
        if not self.comparable or self.stopped or not (self.plain.step_seconds and self.drafted.step_seconds):
            return None
        return self.plain.step_seconds / self.drafted.step_seconds

    @property
    def cost_model(self) -> CostModel | None:
        return CostModel.from_dict(self.cost) if self.cost is not None else None

    @property
    def predicted_speedup(self) -> float | None:
        if self.cost is None or not self.comparable or not self.drafted.trace["cycles"]:
            return None
        return predicted_speedup(self.rows, self.cost_model)

    @property
    def rows(self) -> list[Row]:
        """The cycles as they were run."""
        return adaptive_rows(self.drafted.trace["cycles"])

    @property
    def fixed(self) -> list[Row]:
        """A fixed window at the places where those cycles began."""
        return self.replayed if self.replayed is not None else fixed_rows(self.drafted.trace["cycles"])

    @property
    def difference(self) -> int | None:
        """Index of the first token in which the texts differ, as far as both go."""
        return first_difference(self.plain.tokens, self.drafted.tokens, whole=not self.stopped)
