# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""From the records of single calls to the rows of `growth.json`, and how steeply each cost rises."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .methods import PLAIN

PHASES = ("draft", "verify", "other")
# Lengths over which a slope is taken: short prompts are dominated by what does not grow at all.
SLOPE_POINTS = 3


def growth_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    Medians over repeats.

    Args:
        records (`Sequence[Mapping]`): Of kind `"time"` and `"memory"`, each with `part`, `length`, `repeat` and, per
            method, what was measured.

    Returns:
        `list[dict]`: Per part (`"length"` or `"window"`), length and method: `tokens_per_second` behind the first
        tokens, `speedup` of that over plain `generate` on the same prompt (both None where all came at once),
        `speedup_call` of the whole call,
        `first_seconds` (time to the first token), `acceptance_length`, `mean_window`, `prompt_draft` (drafter's
        seconds in the first cycle), `cycle` (seconds of a later one in draft, verify and other), `draft_share` (of the
        time of a cycle), `peak_bytes`, `cache_bytes`, `state_bytes`, `repeats`, and how many texts had `ended`.
    """
    rows = []
    places = dict.fromkeys((record["part"], record["length"]) for record in records)
    for part, length in sorted(places):
        here = [record for record in records if (record["part"], record["length"]) == (part, length)]
        timed = [record["methods"] for record in here if record["kind"] == "time"]
        memory = next((record["methods"] for record in here if record["kind"] == "memory"), {})
        names = sorted(timed[0], key=_by_window) if part == "window" else list(timed[0])
        for name in sorted(names, key=lambda name: name != PLAIN):
            runs = [methods[name] for methods in timed]
            plain = [methods[PLAIN] for methods in timed]
            cycles = [run["verifications"] for run in runs]
            speculative = None not in cycles and sum(cycles) > 0
            cycle = _median_cycle([run["cycle"] for run in runs])
            held = memory.get(name, {})
            rows.append(
                {
                    "part": part,
                    "length": length,
                    "method": name,
                    "repeats": len(runs),
                    "ended": sum(run["ended"] for run in plain),
                    "tokens_per_second": _median([_rate(run) for run in runs]),
                    "speedup": _median([_ratio(_rate(r), _rate(p)) for r, p in zip(runs, plain, strict=True)]),
                    "speedup_call": statistics.median(
                        (r["tokens"] / r["seconds"]) / (p["tokens"] / p["seconds"])
                        for r, p in zip(runs, plain, strict=True)
                    ),
                    "first_seconds": statistics.median(run["first_seconds"] for run in runs),
                    "acceptance_length": sum(r["committed"] for r in runs) / sum(cycles) if speculative else None,
                    "mean_window": sum(r["drafted"] for r in runs) / sum(cycles) if speculative else None,
                    "prompt_draft": _median([run["prompt_draft"] for run in runs]),
                    "cycle": cycle,
                    "draft_share": cycle["draft"] / sum(cycle.values()) if cycle else None,
                    "peak_bytes": held.get("peak"),
                    "cache_bytes": held.get("cache"),
                    "state_bytes": held.get("state"),
                }
            )
    return rows


def growth_exponents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    How steeply costs rise with the prompt: the exponent `b` of `cost ~ length^b` over the longest lengths, by least
    squares of the logarithms. 0 is constant, 1 linear, 2 quadratic.

    Args:
        rows (`Sequence[Mapping]`): From [`growth_rows`].

    Returns:
        `list[dict]`: `method`, `quantity` (`first_token`, `token`, `prompt_draft`, `draft`, `verify`, `other`, `peak`,
        `cache`, `state`), `exponent`, and the values it rises `from` and `to`. Empty for fewer than two lengths.
    """
    found = []
    rows = [row for row in rows if row["part"] == "length"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["length"])[-SLOPE_POINTS:]
        if len(own) < 2:
            continue
        quantities = {name: [_quantity(row, name) for row in own] for name in _QUANTITIES}
        for name, values in quantities.items():
            if all(value is not None and value > 0 for value in values):
                exponent = _slope([math.log(row["length"]) for row in own], [math.log(value) for value in values])
                found.append(
                    {
                        "method": method,
                        "quantity": name,
                        "exponent": exponent,
                        "from": values[0],
                        "to": values[-1],
                        "lengths": [own[0]["length"], own[-1]["length"]],
                    }
                )
    return found


_QUANTITIES = {
    "first_token": "first_seconds",
    "token": "tokens_per_second",
    "prompt_draft": "prompt_draft",
    **{phase: phase for phase in PHASES},
    "peak": "peak_bytes",
    "cache": "cache_bytes",
    "state": "state_bytes",
}


def _quantity(row: Mapping[str, Any], name: str) -> float | None:
    if name in PHASES:
        return row["cycle"][name] if row["cycle"] else None
    value = row[_QUANTITIES[name]]
    return 1.0 / value if name == "token" and value is not None else value


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return statistics.linear_regression(x, y).slope


def _rate(run: Mapping[str, Any]) -> float | None:
    """
    Tokens per second behind the first ones: the prompt left out, the drafter's work on it included. None where all
    tokens came at once, as a short text does that prompt lookup knows before the first pass.
    """
    tokens = run["tokens"] - run["first_tokens"]
    return tokens / (run["seconds"] - run["first_seconds"]) if tokens else None


def _ratio(rate: float | None, plain: float | None) -> float | None:
    return None if rate is None or plain is None else rate / plain


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _median_cycle(cycles: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    known = [cycle for cycle in cycles if cycle is not None]
    return {phase: statistics.median(cycle[phase] for cycle in known) for phase in PHASES} if known else None


def _by_window(name: str) -> int:
    return int(name.partition(":")[2] or 0)
