# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The pictures show what the results say: cells, bars and lines are counted on the figure."""

from collections import Counter

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from ppow_hf.evaluation import plots


def cycle(drafted, accepted, bonus=1, divergence=0.5):
    return {"drafted": drafted, "accepted": accepted, "committed": accepted + bonus, "divergence": divergence}


TRACE = {
    "suite": "talk",
    "id": "a",
    "temperature": 0.0,
    "adaptive": {"method": "cost_aware", "cycles": [cycle(3, 3), cycle(4, 1), cycle(0, 0), cycle(2, 2, bonus=0)]},
    "fixed": {"method": "fixed:8", "cycles": [cycle(8, 3), cycle(8, 0), cycle(8, 2)]},
}


def cells(axes):
    """How many cells of every colour, and how many of them are hatched."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return Counter(to_hex(patch.get_facecolor()) for patch in found), sum(bool(patch.get_hatch()) for patch in found)


@pytest.mark.parametrize(
    ("row", "part", "accepted", "bonus", "wasted"), [(1, "adaptive", 6, 3, 3), (2, "fixed", 5, 3, 19)]
)
def test_a_cell_for_every_token_and_wasted_ones_hatched(row, part, accepted, bonus, wasted):
    axes = plots._window_figure(TRACE).axes[row]
    colors, hatched = cells(axes)
    kinds = {kind: to_hex(style["facecolor"]) for kind, style in plots._CELLS.items()}
    assert len(set(kinds.values())) == 3
    assert {kind: colors[color] for kind, color in kinds.items()} == {
        "accepted": accepted,
        "bonus": bonus,
        "wasted": wasted,
    }
    assert hatched == wasted
    assert f"{wasted} of {accepted + wasted} draft tokens wasted" in axes.get_title(loc="left")


def test_the_running_divergence_stands_above_them():
    top = plots._window_figure(TRACE).axes[0]
    assert top.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.5], [3, 0.5], [4, 0.5]]
    bare = {**TRACE, "adaptive": {**TRACE["adaptive"], "cycles": [cycle(1, 1, divergence=None)]}}
    assert not plots._window_figure(bare).axes[0].lines


def results(speedups):
    rows = [
        {"suite": suite, "method": method, "temperature": 0.0, "speedup": speedup, "speedup_interval": None}
        for suite in ("one", "two")
        for method, speedup in speedups.items()
    ]
    return {
        "arguments": {
            "methods": ["target", *speedups],
            "suites": ["one", "two"],
            "temperatures": [0.0],
            "target": "tiny",
            "dtype": "float32",
            "max_new_tokens": 8,
        },
        "results": rows,
        "summary": [{**row, "suite": None} for row in rows if row["suite"] == "one"],
        "bootstrap": {"level": 0.95},
    }


def test_a_bar_for_every_method_and_suite():
    speedups = {"prompt_lookup": 1.25, "prompt_lookup:3": 1.1, "fixed:2": 1.5, "cost_aware": 2.0, "mixed_tree:16": 2.5}
    axes = plots._speedup_figure(results(speedups)).axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [bar.get_height() for bar in bars] == [*speedups.values()] * 3  # two suites and their mean
    assert not any(bar.get_hatch() for bar in bars)


def test_bars_of_another_drafter_are_hatched_in_the_colour_of_the_method():
    speedups = {"fixed:4": 1.5, "cost_aware": 2.0, "fixed:4@cst": 1.4, "cost_aware@cst": 1.8, "cost_aware@ppow": 1.9}
    axes = plots._speedup_figure(results(speedups)).axes[0]
    bars = dict(zip(speedups, axes.patches, strict=False))
    assert {name: bars[name].get_height() for name in speedups} == speedups
    for name in speedups:
        assert bars[name].get_facecolor() == bars[name.partition("@")[0]].get_facecolor()
    hatches = [bars[name].get_hatch() for name in speedups]
    assert hatches[:2] == [None, None] and hatches[2] == hatches[3] != hatches[4] and all(hatches[2:])
