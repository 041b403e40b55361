# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The page's own pieces of HTML and SVG. Pure functions; colours come from style.css, so that both themes fit."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

from .records import Decoding, Race
from .trace_view import (
    ACCEPTED,
    FIXED_SIZE,
    KIND_LABELS,
    OWN,
    REJECTED,
    UNKNOWN,
    Decode,
    Row,
    Token,
    Totals,
    pieces,
    totals,
)

# The component that shows these strings runs them through two template languages.
_TEMPLATE_SIGNS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})
_replays = itertools.count(1)


def escape(text: Any) -> str:
    """Text as HTML that neither the browser nor the page's templates take for anything else."""
    return html.escape(str(text)).translate(_TEMPLATE_SIGNS)


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"


HEADER = f"""
<header class="pp-head">
<h1>Guess a window, check it once</h1>
<p>A large model writes one token per pass. A small <b>drafter</b> guesses a few tokens ahead, and the large model, the
<b>target</b>, checks the whole guess in a single pass: it keeps what it agrees with and adds one token of its own. The
text stays the target's; it only needs fewer passes. How far ahead to guess, the <b>window</b>, is decided anew every
time.</p>
<ul class="pp-legend" aria-label="Legend">
{
    "".join(
        f'<li><span class="pp-t pp-{kind}">{kind_text}</span> {KIND_LABELS[kind]}</li>'
        for kind, kind_text in ((ACCEPTED, "guess"), (OWN, "own"), (REJECTED, "miss"))
    )
}
</ul>
</header>"""


def message(text: str, kind: str = "info") -> str:
    """A line of status; errors are announced at once by screen readers, the rest when they are idle."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="pp-message pp-{kind}" role="{role}">{escape(text)}</div>'


# ---- race ----------------------------------------------------------------------------------------------------------


def _span(text: str, kind: str, *, style: str = "", extra: str = "", title: str = "") -> str:
    shown = escape(text).replace("\n", '<span class="pp-nl" aria-hidden="true">↵</span>\n')
    style = f' style="{style}"' if style else ""
    title = f' title="{escape(title)}"' if title else ""
    return f'<span class="pp-t pp-{kind}{extra}"{style}{title}>{shown}</span>'


def _pane(
    title: str, decoding: Decoding | None, decode: Decode, *, difference: int | None, replay: int, colours: bool
) -> str:
    if decoding is None:
        return f'<section class="pp-pane"><h3>{title}</h3><p class="pp-quiet">waits for its turn</p></section>'
    tokens = list(decoding.tokens)
    times, own = decoding.times, decoding.own
    parts = []
    for index, text in enumerate(pieces(tokens, decode)):
        kind = ("own" if own[index] else "accepted") if colours else "bare"
        style = f"--t:{times[index]:.3f}s" if replay else ""
        parts.append(_span(text, kind, style=style, extra=" pp-differs" if index == difference else ""))
    state = "stopped" if decoding.stopped else "finished" if decoding.finished else "decoding"
    clock = f"{decoding.seconds:.1f} s · {len(tokens)} tokens · {number(decoding.tokens_per_second, 1)} tokens/s"
    return (
        f'<section class="pp-pane pp-{state}"><h3>{title} <span class="pp-state">{state}</span></h3>'
        f'<p class="pp-clock">{clock}</p><div class="pp-text" tabindex="0" role="region" aria-label="{title}: text">'
        f"{''.join(parts)}</div></section>"
    )


def race_panes(race: Race | None, decode: Decode, *, replay: bool = False) -> str:
    """
    Two panes of text.

    Args:
        race ([`Race`], *optional*): What was run.
        decode (`Callable`): `list[int] -> str`.
        replay (`bool`, *optional*): Show both together, every token at the time it was recorded at.
    """
    if race is None:
        return '<p class="pp-quiet">Press “Run”: the target answers alone first, then with the drafter.</p>'
    serial = next(_replays) if replay else 0
    difference = race.difference if race.comparable else None
    shared = {"decode": decode, "difference": difference, "replay": serial}
    panes = _pane("Target alone", race.plain, colours=False, **shared)
    panes += _pane("With the drafter", race.drafted, colours=True, **shared)
    note = ""
    if replay:
        note = (
            '<p class="pp-quiet" role="status">Both recorded runs, started together and shown at the speed they were '
            "decoded at.</p>"
        )
    # The number makes the page build the panes anew, which starts the replay.
    asked = race.prompt if len(race.prompt) <= 120 else race.prompt[:117] + "..."
    return (
        f'<p class="pp-quiet">Asked: {escape(asked)}</p>'
        f'<div class="pp-race{" pp-replay" if replay else ""}" data-replay="{serial}">{panes}</div>{note}'
    )


def identity_note(race: Race) -> tuple[str, str]:
    """Whether the texts are the same, in a word and in a sentence."""
    if race.settings.temperature > 0:
        return "two draws", (
            "At a temperature above 0 both texts are draws from the same distribution, so they need not be the same. "
            "Set it to 0 to compare them word for word."
        )
    where = race.difference
    if where is None:
        return "identical", f"Both texts are the same, token for token ({race.dtype})."
    if race.dtype == "float32":
        return "different", f"The texts part at token {where + 1}, in float32. This must not happen: please report it."
    checked = {
        None: "Press “Check in float32” to see that there they are the same.",
        True: "Checked just now: in float32 both texts are the same.",
        False: "Checked just now: in float32 they differ too. This must not happen: please report it.",
    }[race.float32]
    return "near-tie", (
        f"The texts part at token {where + 1} (marked). In {race.dtype} two nearly equally likely tokens can swap "
        f"when a window is checked in one pass; that is rounding, not the method. {checked}"
    )


def verdict(race: Race | None) -> str:
    """Figures and bars of a race that is over."""
    if race is None or not race.comparable:
        return ""
    word, sentence = identity_note(race)
    if race.stopped:
        word, sentence = "stopped", "The run was stopped: too little was decoded for a fair comparison."
    plain, drafted = race.plain, race.drafted
    tau = drafted.acceptance_length
    cards = [
        ("speedup", number(race.speedup, 2, "×"), "tokens per second against the target alone"),
        ("tokens/s", number(drafted.tokens_per_second, 1), f"target alone: {number(plain.tokens_per_second, 1)}"),
        ("acceptance length", number(tau, 2), "tokens per pass of the target, its own included"),
        ("mean window", number(drafted.mean_window, 2), "tokens guessed per pass"),
        ("same text", word, "token for token" if word == "identical" else "see below"),
    ]
    shown = "".join(f"<li><b>{v}</b><span>{k}</span><small>{note}</small></li>" for k, v, note in cards)
    longest = max(plain.seconds, drafted.seconds) or 1.0
    bars = "".join(
        f'<div class="pp-bar"><span>{name}</span>'
        f'<i class="pp-{kind}" style="width:{100 * d.seconds / longest:.1f}%"></i>'
        f"<em>{d.seconds:.2f} s</em></div>"
        for name, kind, d in (("target alone", "bar-plain", plain), ("with the drafter", "bar-draft", drafted))
    )
    return (
        f'<ul class="pp-cards">{shown}</ul><div class="pp-bars" role="img" aria-label="Seconds: target alone '
        f'{plain.seconds:.2f}, with the drafter {drafted.seconds:.2f}">{bars}</div>'
        f'<p class="pp-note">{escape(sentence)} '
        "The two were decoded one after the other on the same machine; both clocks include the prompt.</p>"
    )


# ---- window theatre ------------------------------------------------------------------------------------------------


def theatre_text(marked: Sequence[Token], current: int = 0, *, show_rejected: bool = True) -> str:
    """
    The text with the origin of every token.

    Args:
        marked (`Sequence[Token]`): From [`annotate`].
        current (`int`, *optional*): The cycle to point out; 0 for none.
        show_rejected (`bool`, *optional*): Whether rejected drafts are shown, struck through.
    """
    if not marked:
        return '<p class="pp-quiet">Nothing decoded yet: press “Run” above.</p>'
    parts = []
    for token in marked:
        if token.kind == REJECTED and not show_rejected:
            continue
        now = current and token.cycle == current
        title = f"cycle {token.cycle}: {KIND_LABELS[token.kind]}" if token.cycle else "prefill: the target's own token"
        if token.predicted is not None:
            title += f", expected chance {token.predicted:.0%}"
        text, kind = token.text, token.kind
        if kind == REJECTED:
            text = text.replace("\n", "↵")
            parts.append(
                f'<del class="pp-t pp-rejected{" pp-now" if now else ""}" title="{escape(title)}">{escape(text)}</del>'
            )
        else:
            parts.append(_span(text, kind, extra=" pp-now" if now else "", title=title))
    return (
        '<div class="pp-text pp-theatre" tabindex="0" role="region" aria-label="Text with the origin of every token">'
        f"{''.join(parts)}</div>"
    )


def gauge(divergence: float | None, *, top: float = 4.0) -> str:
    """The running KL divergence as a meter, from 0 (agreement) to `top` nats and more."""
    if divergence is None:
        return '<div class="pp-gauge"><span>running KL: not known yet</span></div>'
    share = min(divergence / top, 1.0)
    mood = (
        "they agree: room for a long window"
        if divergence < 0.7
        else ("they part: a short window is wiser" if divergence > 1.8 else "some doubt")
    )
    return (
        f'<div class="pp-gauge"><span>running KL <b>{divergence:.2f}</b> nats</span>'
        f'<div class="pp-meter" role="meter" aria-valuemin="0" aria-valuemax="{top:g}" '
        f'aria-valuenow="{min(divergence, top):.2f}" aria-label="Running KL divergence between drafter and target">'
        f'<i style="width:{100 * share:.1f}%"></i></div><span class="pp-quiet">{mood}</span></div>'
    )


def _cells(row: Row) -> str:
    return "".join(f'<i class="pp-cell pp-c-{kind}"></i>' for kind in row.cells)


def cycle_detail(race: Race | None, current: int) -> str:
    """One cycle: the gauge, what was guessed, and what a fixed window would have made of it."""
    if race is None or not race.marked:
        return ""
    cycles = race.drafted.trace["cycles"]
    if not cycles:
        return '<p class="pp-quiet">The text ended with the first token: there was no cycle.</p>'
    current = min(max(int(current), 1), len(cycles))
    cycle, row, fixed = cycles[current - 1], race.rows[current - 1], race.fixed[current - 1]
    tokens = [token for token in race.marked if token.cycle == current]
    guessed = "".join(
        f'<li class="pp-t pp-{token.kind}"><span>{escape(_visible(token.text))}</span>'
        f"<small>{_chance(token)}</small></li>"
        for token in tokens
    )
    unknown = f", {fixed.unknown} not judged" if fixed.unknown else ""
    why = {
        "limit": "the window was full",
        "policy": "another guess would not have paid",
        "eos": "the guess ended the text",
        "length": "the text may not be longer",
        "no_support": "nothing the drafter knows was allowed",
    }.get(cycle["stop"], "")
    return (
        f'<div class="pp-detail" aria-live="polite"><h3>Cycle {current} of {len(cycles)}</h3>'
        f"{gauge(cycle['divergence'])}"
        f'<ol class="pp-guess" aria-label="Tokens of this cycle with the expected chance of each">{guessed}</ol>'
        f'<table class="pp-rows"><tr><th scope="row">adaptive</th><td>{_cells(row)}</td><td>{row.drafted} drafted, '
        f"{row.accepted} accepted, {row.wasted} wasted{'; ' + why if why else ''}</td></tr>"
        f'<tr><th scope="row">fixed {FIXED_SIZE}</th><td>{_cells(fixed)}</td><td>{fixed.drafted} drafted, '
        f"{fixed.accepted} accepted, {fixed.wasted} wasted{unknown}</td></tr></table></div>"
    )


def _chance(token: Token) -> str:
    if token.kind == OWN:
        return "own"
    return "–" if token.predicted is None else f"{token.predicted:.0%}"


def _visible(text: str) -> str:
    return text.replace("\n", "↵").replace(" ", "\u00a0") or "∅"


def totals_note(race: Race | None) -> str:
    """What both windows cost over the whole text."""
    if race is None or not race.marked or not race.rows:
        return ""
    ours, fixed = totals(race.rows, race.cost_model), totals(race.fixed, race.cost_model)
    policy = race.settings.policy.replace("_", "-")
    body = _total_row(f"{policy} (as run)", ours) + _total_row(f"fixed {FIXED_SIZE} (same places)", fixed)
    note = (
        f"The fixed window is re-computed: the drafter drafts {FIXED_SIZE} tokens from every place where a cycle of "
        "this run began. Costs are the measured ones of this machine, in passes of the target alone."
        if race.replayed is not None
        else "The fixed window is read off the cycles of this run. Where a whole window was accepted, what would have "
        "come behind it is not known (at temperature 0, drafting on would tell), so it has no cost here."
    )
    return (
        '<div class="pp-scroll" tabindex="0" role="region" aria-label="Totals"><table class="pp-table"><thead><tr>'
        '<th scope="col">window</th><th scope="col">drafted</th><th scope="col">accepted</th>'
        '<th scope="col">wasted</th><th scope="col">cost per token</th></tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="pp-note">{note}</p>'
    )


def _total_row(name: str, total: Totals) -> str:
    share = f" ({total.wasted / total.drafted:.0%})" if total.drafted else ""
    unknown = f", {total.unknown} not judged" if total.unknown else ""
    return (
        f'<tr><th scope="row">{name}</th><td>{total.drafted}</td><td>{total.accepted}</td>'
        f"<td>{total.wasted}{share}{unknown}</td><td>{number(total.cost_per_token, 3)}</td></tr>"
    )


_CELL, _GAP = 11, 3


def window_svg(
    rows: Sequence[Row], fixed: Sequence[Row], divergences: Sequence[float | None], current: int = 0
) -> str:
    """
    All cycles at a glance: the running KL, and below it the adaptive and the fixed window as columns of cells.

    Args:
        rows, fixed (`Sequence[Row]`): One entry per cycle each.
        divergences (`Sequence[float]`): Running KL when each window was drafted.
        current (`int`, *optional*): The cycle to point out, from 1.
    """
    if not rows:
        return ""
    step, left, gauge_height = _CELL + _GAP, 8, 56
    heights = [max((len(row.cells) for row in part), default=1) * step for part in (rows, fixed)]
    tops = [gauge_height + 44, gauge_height + 44 + heights[0] + 30]
    width, height = left * 2 + len(rows) * step, tops[1] + heights[1] + 6
    top = max([4.0, *(d for d in divergences if d is not None)])
    shapes = []
    if current:
        x = left + (current - 1) * step - _GAP / 2
        shapes.append(f'<rect class="pp-band" x="{x:g}" y="0" width="{step}" height="{height}" rx="3"/>')
    points = [
        f"{left + index * step + _CELL / 2:.1f},{22 + gauge_height * (1 - value / top):.1f}"
        for index, value in enumerate(divergences)
        if value is not None
    ]
    shapes.append(f'<line class="pp-axis" x1="0" x2="{width}" y1="{22 + gauge_height}" y2="{22 + gauge_height}"/>')
    shapes.append(f'<polyline class="pp-kl" points="{" ".join(points)}"/>')
    for part, base, tall in ((rows, tops[0], heights[0]), (fixed, tops[1], heights[1])):
        for index, row in enumerate(part):
            for level, kind in enumerate(row.cells):
                x, y = left + index * step, base + tall - (level + 1) * step
                shapes.append(f'<rect class="pp-svg-{kind}" x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" rx="2"/>')
                if kind in (REJECTED, UNKNOWN):  # told apart without colour
                    shapes.append(f'<path class="pp-cross" d="M{x + 2} {y + _CELL - 2}L{x + _CELL - 2} {y + 2}"/>')
    labels = (("running KL", 12), ("adaptive window", tops[0] - 8), (f"fixed {FIXED_SIZE}, same places", tops[1] - 8))
    shapes += [f'<text class="pp-label" x="{left}" y="{y}">{text}</text>' for text, y in labels]
    ours, theirs = totals(rows), totals(fixed)
    summary = (
        f"{ours.cycles} cycles. Adaptive window: {ours.drafted} tokens drafted, {ours.wasted} in vain. "
        f"Fixed window of {FIXED_SIZE}: {theirs.drafted} drafted, {theirs.wasted} in vain."
    )
    return (
        f'<div class="pp-scroll" tabindex="0" role="region" aria-label="Windows, cycle by cycle"><svg class="pp-svg" '
        f'role="img" aria-label="{summary}" width="{width}" height="{height:g}" viewBox="0 0 {width} {height:g}">'
        f"{''.join(shapes)}</svg></div>"
    )


def theatre_svg(race: Race | None, current: int = 0) -> str:
    """[`window_svg`] of a race."""
    if race is None or not race.marked:
        return ""
    return window_svg(race.rows, race.fixed, [c["divergence"] for c in race.drafted.trace["cycles"]], current)
