# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""From a trace to tokens, rows, totals, HTML and figures, against numbers worked out by hand."""

import html
import re

import pytest

from ppow_hf import CostModel

pytest.importorskip("plotly", reason="the demo's packages are not installed: pip install -e .[demo]")
from ppow_demo import html_tables, html_view  # noqa: E402
from ppow_demo.figures import speedup_figure, time_figure  # noqa: E402
from ppow_demo.records import Decoding, Race  # noqa: E402
from ppow_demo.settings import POLICY_LABELS, DemoError, Settings, check_prompt  # noqa: E402
from ppow_demo.trace_view import (  # noqa: E402
    Detokenizer,
    Row,
    adaptive_rows,
    annotate,
    cycle_milliseconds,
    first_difference,
    fixed_rows,
    pieces,
    predicted_speedup,
    totals,
)
from ppow_demo.what_if import what_if  # noqa: E402

from ppow_hf import WindowConfig  # noqa: E402

WORDS = {0: "A", 1: " cat", 2: " sat", 3: " dog", 4: " on", 5: " <b>", 6: "{{x}}${y}"}


def decode(tokens):
    return "".join(WORDS[token] for token in tokens)


def cycle(drafted, accepted, committed, tokens, divergence=0.5, seconds=(0.002, 0.03, 0.001)):
    return {
        "drafted": drafted,
        "accepted": accepted,
        "committed": committed,
        "tokens": tokens,
        "bonus": None,
        "predicted": [0.9, 0.5, 0.25][:drafted],
        "confidence": [],
        "outcomes": [],
        "divergence": divergence,
        "rate": 1.4,
        "stop": "policy",
        "seconds": dict(zip(("draft", "verify", "other"), seconds, strict=True)),
    }


# "A" from the prefill; 3 drafted of which 1 accepted; 2 drafted and accepted, nothing of the target's own (the end).
TOKENS = [0, 1, 2, 4, 5]
CYCLES = [cycle(3, 1, 2, [1, 3, 3]), cycle(2, 2, 2, [4, 5], divergence=2.5)]


def make_race(plain_tokens=TOKENS, temperature=0.0, dtype="bfloat16", **changes):
    trace = {
        "cycles": CYCLES,
        "seconds": {"prefill": 0.02, "draft": 0.004, "verify": 0.06, "other": 0.002},
        "acceptance_length": 2.0,
        "mean_window": 2.5,
        "new_tokens": 5,
        "window": WindowConfig().to_dict(),
    }
    plain = Decoding("plain", list(plain_tokens), [0.02, 0.05, 0.08, 0.11, 0.14], [True] * 5, 0.14, True)
    drafted = Decoding("drafter", TOKENS, [0.02, 0.05, 0.05, 0.08, 0.08], [True] * 5, 0.08, True, trace=trace)
    cost = {"gamma": 0.1, "verify_curve": [1.0], "overhead": 0.0, "target_step_seconds": 0.03, "key": None}
    race = Race("hello", Settings(temperature=temperature), dtype, plain, drafted, cost=cost)
    race.marked = annotate(TOKENS, CYCLES, decode)
    for name, value in changes.items():
        setattr(race, name, value)
    return race


# ---- tokens --------------------------------------------------------------------------------------------------------


def test_annotate_puts_rejected_drafts_beside_their_place():
    marked = annotate(TOKENS, CYCLES, decode)
    assert [(token.text, token.kind, token.cycle) for token in marked] == [
        ("A", "own", 0),
        (" cat", "accepted", 1),
        (" dog", "rejected", 1),
        (" dog", "rejected", 1),
        (" sat", "own", 1),
        (" on", "accepted", 2),
        (" <b>", "accepted", 2),
    ]
    assert [token.predicted for token in marked[:5]] == [None, 0.9, 0.5, 0.25, None]
    assert "".join(token.text for token in marked if token.kind != "rejected") == decode(TOKENS)


def test_drafts_of_any_source_are_drafts():
    """A cycle may say what proposed; whatever it was, its tokens are drafted ones."""
    cycles = [
        {**entry, "source": source, "looked_up": 1} for entry, source in zip(CYCLES, ("lookup", "?"), strict=True)
    ]
    assert annotate(TOKENS, cycles, decode) == annotate(TOKENS, CYCLES, decode)
    assert adaptive_rows(cycles) == adaptive_rows(CYCLES)


def test_annotate_refuses_a_trace_of_another_text():
    with pytest.raises(ValueError, match="not in the text"):
        annotate([0, 3, 2, 4, 5], CYCLES, decode)
    with pytest.raises(ValueError, match="commit"):
        annotate([0, 1], CYCLES, decode)


def test_pieces_hold_back_half_characters():
    """Bytes as tokens: the pieces add up to the text, and no piece holds half a character."""
    data = list("né €😀!".encode())

    def bytes_decode(tokens):
        return bytes(tokens).decode(errors="replace")

    texts = pieces(data, bytes_decode)
    assert len(texts) == len(data)
    assert "".join(texts) == "né €😀!"
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)
    assert pieces(data[:2], bytes_decode) == ["n", "\N{REPLACEMENT CHARACTER}"]


def test_detokenizer_sees_the_context():
    """A tokenizer that swallows the blank at the beginning of a text must not swallow it in the middle."""

    def stripped(tokens):
        return decode(tokens).lstrip()

    assert pieces([1, 2], stripped) == ["cat", " sat"]
    assert pieces([2], stripped, context=[0, 1]) == [" sat"]
    detokenizer = Detokenizer(stripped)
    assert "".join(detokenizer.push(token) for token in TOKENS * 3) == decode(TOKENS * 3)


# ---- rows and totals -----------------------------------------------------------------------------------------------


def test_rows_and_cells():
    rows = adaptive_rows(CYCLES)
    assert rows == [Row(3, 1, 1), Row(2, 2, 0)]
    assert rows[0].cells == ["accepted", "own", "rejected", "rejected"]
    assert rows[0].wasted == 2 and rows[1].wasted == 0


def test_fixed_rows_claim_only_what_the_cycles_tell():
    long = cycle(10, 9, 10, list(range(10)))
    rows = fixed_rows([*CYCLES, long, cycle(0, 0, 1, [])], size=8)
    assert rows[0] == Row(8, 1, 1, unknown=0) and rows[0].wasted == 7  # rejected at the second: known
    assert rows[1] == Row(8, 2, 0, unknown=6) and rows[1].wasted == 0  # all accepted: the rest is not known
    assert rows[2] == Row(8, 8, 1)  # more than eight were accepted
    assert rows[3] == Row(8, 0, 1, unknown=8)
    assert rows[1].cells == ["accepted"] * 2 + ["unknown"] * 6


def test_totals_and_prediction_by_hand():
    model = CostModel(gamma=0.1, verify_curve=[1.0, 1.1, 1.2, 1.3], overhead=0.05)
    summed = totals(adaptive_rows(CYCLES), model)
    # 0.3 + 1.3 + 0.05 and 0.2 + 1.2 + 0.05 target steps for 2 + 2 tokens.
    assert summed.cost == pytest.approx(3.1) and summed.cost_per_token == pytest.approx(3.1 / 4)
    assert (summed.drafted, summed.accepted, summed.wasted, summed.committed) == (5, 3, 2, 4)
    assert predicted_speedup(adaptive_rows(CYCLES), model) == pytest.approx(4 / 3.1)
    assert totals(fixed_rows(CYCLES), model).cost is None  # six cells are not known


def test_first_difference():
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([1, 2, 3], [1, 2], whole=False) is None


def test_cycle_milliseconds():
    rows = cycle_milliseconds(make_race().drafted.trace)
    assert rows[0] == {"prefill": 20.0, "draft": 0.0, "verify": 0.0, "other": 0.0}
    assert rows[1]["draft"] == pytest.approx(2.0) and rows[1]["verify"] == pytest.approx(30.0)


# ---- what-if -------------------------------------------------------------------------------------------------------


def test_worked_example():
    """(30 * 8 + 150) / 3 = 130 ms, and (30 * 6.5 + 150) / 6.5 = 53.08 ms."""
    assert what_if(150, 30, 8, 3).per_token_ms == pytest.approx(130.0)
    assert what_if(150, 30, 6.5, 6.5).per_token_ms == pytest.approx(345 / 6.5)
    assert what_if(150, 30, 8, 3).cycle_ms == pytest.approx(390.0)
    assert what_if(150, 30, 8, 3).speedup == pytest.approx(150 / 130)
    text = html_tables.what_if_cards(what_if(150, 30, 8, 3), what_if(150, 30, 6.5, 6.5))
    assert "130.0 ms" in text and "53.1 ms" in text


@pytest.mark.parametrize(
    "values", [(0, 30, 8, 3), (150, -1, 8, 3), (150, 30, 8, 9), (150, 30, None, 3), (150, 30, 8, 0)]
)
def test_what_if_refuses(values):
    with pytest.raises(DemoError):
        what_if(*values)


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 9}, "Temperature"),
        ({"temperature": None}, "Temperature"),
        ({"max_new_tokens": 100000}, "New tokens"),
        ({"max_new_tokens": 3.5}, "New tokens"),
        ({"policy": "magic"}, "policy"),
        ({"min_size": 9, "max_size": 3}, "smallest"),
        ({"seed": -1}, "Seed"),
        ({"size": "five"}, "window"),
    ],
)
def test_settings_refuse(changes, named):
    with pytest.raises(DemoError, match=named):
        Settings(**changes)


def test_settings_keep_the_drafters_calibration():
    own = WindowConfig(calibration={"greedy": [1.0] * 6}, max_size=5)
    window = Settings(policy="fixed", size=3, min_size=2, max_size=9).window(own)
    assert (window.policy, window.size, window.min_size, window.max_size) == ("fixed", 3, 2, 9)
    assert window.calibration == own.calibration and window.divergence_metric == "kl"


def test_settings_draw_chains_of_the_drafter():
    """Whatever a drafter's own defaults are, every policy of the page works."""
    fields = WindowConfig.__dataclass_fields__
    owns = [WindowConfig()]
    owns += [WindowConfig(tree=True)] if "tree" in fields else []
    owns += [WindowConfig(proposals="mixed")] if "proposals" in fields else []
    for own in owns:
        for policy in POLICY_LABELS:
            window = Settings(policy=policy).window(own)
            assert window.policy == policy
            assert getattr(window, "tree", None) is None and getattr(window, "proposals", "drafter") == "drafter"


def test_prompts():
    assert check_prompt("  hi ") == "hi"
    for bad in ("", "   \n", None, 5, "x" * 30_000):
        with pytest.raises(DemoError):
            check_prompt(bad)


# ---- html ----------------------------------------------------------------------------------------------------------


def plain_text(markup):
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


def test_text_from_a_model_is_never_markup_nor_template():
    for text in ("<script>alert(1)</script>", "{{#each value}}", "${alert(1)}", "`", "a\\b", '" onload="x'):
        escaped = html_view.escape(text)
        assert not set('<>{}$`\\"') & set(escaped)
        assert html.unescape(escaped) == text


def test_theatre_text_shows_the_text_and_strikes_out_the_rest():
    race = make_race()
    shown = html_view.theatre_text(race.marked, current=1)
    assert re.sub(r"<del.*?</del>", "", shown).count("<b>") == 0
    assert plain_text(re.sub(r"<del.*?</del>", "", shown)) == decode(TOKENS)
    assert shown.count("<del") == 2 and shown.count("pp-now") == 4
    assert "<del" not in html_view.theatre_text(race.marked, show_rejected=False)


def test_cycle_detail_counts():
    race = make_race()
    text = plain_text(html_view.cycle_detail(race, 1))
    assert "Cycle 1 of 2" in text and "3 drafted, 1 accepted, 2 wasted" in text
    assert "8 drafted, 1 accepted, 7 wasted" in text and "0.50" in text
    text = plain_text(html_view.cycle_detail(race, 99))  # clamped
    assert "Cycle 2 of 2" in text and "6 not judged" in text and "2.50" in text


def test_window_svg_has_one_cell_per_token():
    race = make_race()
    svg = html_view.theatre_svg(race, current=2)
    assert svg.count('class="pp-svg-accepted"') == 3 + 3
    assert svg.count('class="pp-svg-own"') == 1 + 1
    assert svg.count('class="pp-svg-rejected"') == 2 + 7
    assert svg.count('class="pp-svg-unknown"') == 6
    assert svg.count("pp-band") == 1 and len(re.search(r'points="([^"]*)"', svg)[1].split()) == 2


def test_gauge_is_a_meter():
    assert 'aria-valuenow="2.00"' in html_view.gauge(2.0) and "width:50.0%" in html_view.gauge(2.0)
    assert "width:100.0%" in html_view.gauge(11.0)
    assert "not known" in html_view.gauge(None)


def test_verdict_says_whether_the_texts_are_the_same():
    assert "identical" in html_view.verdict(make_race())
    assert "1.75×" in html_view.verdict(make_race())  # 0.14 s against 0.08 s for five tokens
    other = make_race([0, 1, 3, 4, 5])
    text = plain_text(html_view.verdict(other))
    assert "part at token 3" in text and "bfloat16" in text and "rounding" in text
    assert "must not happen" in html_view.verdict(make_race([0, 1, 3, 4, 5], dtype="float32"))
    assert "draws from the same distribution" in html_view.verdict(make_race([0, 1, 3, 4, 5], temperature=1.0))
    assert "pp-differs" in html_view.race_panes(other, decode)


def test_replay_carries_the_recorded_times():
    replayed = html_view.race_panes(make_race(), decode, replay=True)
    assert re.findall(r"--t:([\d.]+)s", replayed)[:5] == ["0.020", "0.050", "0.080", "0.110", "0.140"]
    assert "pp-replay" in replayed and "--t:" not in html_view.race_panes(make_race(), decode)
    assert html_view.race_panes(make_race(), decode, replay=True) != replayed  # it starts anew every time


def test_prediction_against_measurement():
    race = make_race()
    # Cycles of 3 and 2 drafts cost 1.3 + 1.2 target steps for 4 tokens; plain 30 ms a token, the drafter 15 ms.
    assert race.predicted_speedup == pytest.approx(4 / 2.5)
    assert race.decode_speedup == pytest.approx(2.0)
    text = plain_text(html_tables.prediction_note(race))
    assert "1.60×" in text and "2.00×" in text and "1.75×" in text
    race.plain.stopped = True
    assert race.speedup is None and race.decode_speedup is None


def test_compare_table():
    race = make_race()
    lookup = Decoding("Prompt lookup", [0, 1, 3], [0.1] * 3, [True] * 3, 0.042, True, verifications=1, drafted=4)
    text = html_tables.compare_table([race.plain, lookup, ("PPOW: x", "does <not> fit")])
    assert "until token 2" in text and "does &lt;not&gt; fit" in text
    assert "2.00×" in text  # 3 tokens in 42 ms against 5 in 140 ms
    assert lookup.acceptance_length == 2.0 and lookup.mean_window == 4.0


# ---- figures -------------------------------------------------------------------------------------------------------


def test_time_figure_stacks_every_cycle():
    figure = time_figure(make_race())
    bars = {trace.name: list(trace.y) for trace in figure.data if trace.type == "bar"}
    assert bars["verify"] == pytest.approx([0, 30, 30]) and bars["prompt (prefill)"] == pytest.approx([20, 0, 0])
    line = next(trace for trace in figure.data if trace.type == "scatter")
    assert list(line.y) == pytest.approx([60, 60])  # two tokens a cycle at 30 ms
    assert figure.layout.barmode == "stack"
    assert time_figure(None) is None


def test_speedup_figure():
    (bars,) = speedup_figure(make_race()).data
    assert dict(zip(bars.y, bars.x, strict=True)) == {
        "target alone": 1.0,
        "measured, whole call": pytest.approx(1.75),
        "measured, decoding": pytest.approx(2.0),
        "predicted": pytest.approx(1.6),
    }
    assert speedup_figure(None) is None
