# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Plotly figures. Backgrounds are clear and style.css sets the colour of text and axes, for light and dark alike."""

from __future__ import annotations

import plotly.graph_objects as go

from .records import Race
from .trace_view import cycle_milliseconds

# Okabe and Ito's palette, told apart with any colour vision and on both backgrounds; hatching where even that fails.
PHASES = {
    "prefill": ("prompt (prefill)", "#8C8C8C", ""),
    "draft": ("draft", "#56B4E9", "/"),
    "verify": ("verify", "#0072B2", ""),
    "other": ("everything else", "#E69F00", "x"),
}


def _layout(figure: go.Figure, height: int, **kwargs) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 48, "r": 8, "t": 8, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        hovermode="x unified",
        **kwargs,
    )
    return figure


def time_figure(race: Race | None) -> go.Figure | None:
    """
    Stacked time of the prefill (bar 0) and of every cycle, with a line where one step of the target alone lies.

    Args:
        race ([`Race`], *optional*): A race that is over.

    Returns:
        `plotly.graph_objects.Figure` or `None`: `None` if there is nothing to draw.
    """
    if race is None or not race.finished or race.drafted.trace is None or not race.drafted.trace["cycles"]:
        return None
    rows = cycle_milliseconds(race.drafted.trace)
    committed = [1] + [cycle["committed"] for cycle in race.drafted.trace["cycles"]]
    figure = go.Figure()
    for phase, (label, color, pattern) in PHASES.items():
        figure.add_bar(
            x=list(range(len(rows))),
            y=[row[phase] for row in rows],
            name=label,
            marker={
                "color": color,
                "line": {"width": 0},
                "pattern": {"shape": pattern, "fgcolor": "#FFFFFF", "size": 5},
            },
            hovertemplate=f"{label}: %{{y:.1f}} ms<extra></extra>",
        )
    step = race.plain.step_seconds
    if step:
        figure.add_scatter(
            x=list(range(1, len(rows))),
            y=[1000 * step * count for count in committed[1:]],
            name="the same tokens, target alone",
            mode="lines",
            line={"color": "#D55E00", "width": 1.5, "dash": "dot", "shape": "hvh"},
            hovertemplate="target alone: %{y:.1f} ms<extra></extra>",
        )
    figure.update_xaxes(title_text="cycle (0 is the prompt)", zeroline=False, showgrid=False)
    figure.update_yaxes(title_text="milliseconds", zeroline=False, gridcolor="rgba(128,128,128,0.25)")
    return _layout(figure, 320, barmode="stack", bargap=0.15)


def speedup_figure(race: Race | None) -> go.Figure | None:
    """Predicted speedup beside the measured ones, as bars; `None` if there is nothing to draw."""
    if race is None or race.predicted_speedup is None or race.speedup is None:
        return None
    bars = {
        "target alone": (1.0, "#8C8C8C"),
        "measured, whole call": (race.speedup, "#0072B2"),
        "measured, decoding": (race.decode_speedup, "#0072B2"),
        "predicted": (race.predicted_speedup, "#56B4E9"),
    }
    bars = {name: value for name, value in bars.items() if value[0] is not None}
    figure = go.Figure(
        go.Bar(
            x=[value for value, _ in bars.values()],
            y=list(bars),
            orientation="h",
            marker={"color": [color for _, color in bars.values()]},
            text=[f"{value:.2f}×" for value, _ in bars.values()],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(visible=False, range=[0, 1.25 * max(value for value, _ in bars.values())])
    figure.update_yaxes(automargin=True)
    _layout(figure, 190, showlegend=False, bargap=0.35)
    figure.update_layout(hovermode=False, margin={"l": 8, "r": 8, "t": 8, "b": 8})
    return figure
