# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The figures of "Why it pays" and "Compare" as HTML. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .html_view import escape, number
from .records import Race
from .trace_view import first_difference
from .what_if import Outcome


def prediction_note(race: Race | None) -> str:
    """Predicted against measured, and what lies between them."""
    if race is None or not race.comparable or race.stopped or race.predicted_speedup is None:
        return '<p class="pp-quiet">Press “Run” above: the times of every cycle appear here.</p>'
    model = race.cost_model
    measured = race.decode_speedup
    cards = [
        ("predicted", number(race.predicted_speedup, 2, "×"), "from measured costs and the cycles of this run"),
        ("measured, decoding", number(measured, 2, "×"), "without the prompt, like the prediction"),
        ("measured, whole call", number(race.speedup, 2, "×"), "prompt included"),
    ]
    shown = "".join(f"<li><b>{v}</b><span>{k}</span><small>{note}</small></li>" for k, v, note in cards)
    now, then = race.plain.step_seconds, model.target_step_seconds
    drift = ""
    if now and then:
        drift = (
            f" A step of the target alone took {1000 * now:.1f} ms in this run and {1000 * then:.1f} ms when the "
            "costs were measured; a busy machine moves the two speedups apart."
        )
    return (
        f'<ul class="pp-cards">{shown}</ul><p class="pp-note">In units of one step of the target alone, a draft step '
        f"costs {model.gamma:.3f}, checking 4 tokens {model.verify(4):.2f}, checking 8 {model.verify(8):.2f}, and our "
        f"own work {model.overhead:.3f} per cycle.{drift}</p>"
    )


def compare_table(rows: Sequence[Any] | None) -> str:
    """Plain decoding, prompt lookup and drafters on one prompt."""
    if not rows:
        return '<p class="pp-quiet">Decodes the prompt above once with each, one after the other.</p>'
    plain = rows[0]
    body = []
    for row in rows:
        if isinstance(row, tuple):
            label, reason = row
            body.append(
                f'<tr><th scope="row">{escape(label)}</th><td colspan="6" class="pp-left">{escape(reason)}</td></tr>'
            )
            continue
        if not row.finished:
            body.append(
                f'<tr><th scope="row">{escape(row.name)}</th><td colspan="6" class="pp-left">decoding: '
                f"{len(row.tokens)} tokens …</td></tr>"
            )
            continue
        fair = row is not plain and plain.finished and not (row.stopped or plain.stopped) and row.tokens
        speedup = row.tokens_per_second / plain.tokens_per_second if fair else None
        same = "–"
        if row is not plain and plain.finished:
            where = first_difference(plain.tokens, row.tokens, whole=not (row.stopped or plain.stopped))
            same = "yes" if where is None else f"until token {where}"
        bar = f'<i class="pp-minibar" style="width:{min(100.0, 25 * (speedup or 1.0)):.0f}%"></i>'
        body.append(
            f'<tr><th scope="row">{escape(row.name)}{" (stopped)" if row.stopped else ""}</th>'
            f"<td>{len(row.tokens)}</td><td>{number(row.tokens_per_second, 1)}</td>"
            f"<td>{'1.00×' if row is plain else number(speedup, 2, '×')}{bar}</td>"
            f"<td>{number(row.acceptance_length, 2)}</td><td>{number(row.mean_window, 2)}</td><td>{same}</td></tr>"
        )
    heads = ("decoding", "tokens", "tokens/s", "speedup", "acceptance length", "mean window", "same text")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        '<div class="pp-scroll" tabindex="0" role="region" aria-label="Comparison"><table class="pp-table"><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def what_if_cards(fixed: Outcome, adaptive: Outcome) -> str:
    """The two cases of the what-if panel, side by side."""
    cards = "".join(
        f"<li><b>{number(outcome.per_token_ms, 1)} ms</b><span>{name}</span><small>per accepted token; a cycle takes "
        f"{number(outcome.cycle_ms, 0)} ms, {number(outcome.speedup, 2)}× the target alone</small></li>"
        for name, outcome in (("window A", fixed), ("window B", adaptive))
    )
    return f'<ul class="pp-cards" aria-live="polite">{cards}</ul>'
