# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Whether others used the processors while something was timed, and waiting until they no longer do."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

# Share of the processors' time, taken by others, from which on a timing counts as disturbed.
LIMIT = 0.05
_SAMPLE_SECONDS = 0.5
# Processors' times are counted in hundredths of a second.
_LEAST_SECONDS = 0.2


class OthersShare:
    """
    Measures, inside a `with` block, what share of all processors' time went to other processes (or, on a virtual
    machine, to its host).

    After the block, `share` is a number in [0, 1], or `None` where it cannot be told: of less than a fifth of a
    second, and where this process may not use all processors, so that others may be busy without being in the way.
    """

    def __init__(self):
        self.share: float | None = None

    def __enter__(self) -> OthersShare:
        self._start = self._times()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not _sees_all_processors():
            return
        wall, busy, own = (end - start for end, start in zip(self._times(), self._start, strict=True))
        if wall >= _LEAST_SECONDS:
            self.share = min(max(busy - own, 0.0) / (wall * psutil.cpu_count()), 1.0)

    @staticmethod
    def _times() -> tuple[float, float, float]:
        """The clock, busy time of all processors, and of this process."""
        every, own = psutil.cpu_times()._asdict(), psutil.Process().cpu_times()
        busy = sum(every.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        return time.perf_counter(), busy, own.user + own.system


def _sees_all_processors() -> bool:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return available == psutil.cpu_count()


def disturbed(share: float | None) -> bool:
    """Whether a timing in which others had this share of the processors is to be trusted less."""
    return share is not None and share > LIMIT


def disturbed_runs(prompts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """
    Args:
        prompts (`Sequence[Mapping]`): Records of prompts, each with its `methods`.

    Returns:
        `dict[str, int]`: `runs`, the timings others took part of the processors from, and `of`, those of which it is
        known.
    """
    shares = [run.get("others") for record in prompts for run in record["methods"].values()]
    known = [share for share in shares if share is not None]
    return {"runs": sum(map(disturbed, known)), "of": len(known)}


def wait_for_calm(seconds: float) -> bool:
    """
    Waits until others leave the processors alone.

    Args:
        seconds (`float`): At most so long.

    Returns:
        `bool`: Whether they do.
    """
    end = time.perf_counter() + seconds
    while True:
        with OthersShare() as others:
            time.sleep(_SAMPLE_SECONDS)
        if not disturbed(others.share):
            return True
        if time.perf_counter() >= end:
            return False
