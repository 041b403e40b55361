# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest

from ppow_hf.scripts.experiment_report import report_text, write_report


def entry(drafter, suite, tau, difference=None):
    values = {"drafter": drafter, "suite": suite, "window": 5, "acceptance_length": tau, "low": tau - 0.1}
    values |= {"high": tau + 0.1, "difference": difference, "difference_low": None, "difference_high": None}
    if difference is not None:
        values |= {"difference_low": difference - 0.02, "difference_high": difference + 0.02}
    return values


def results(init, baseline, common, cost=None, arms=None):
    suites = ("gsm8k", "mean")
    log = [{"step": 10 * i, "kl": 1.0 - 0.1 * i, "simulated_acceptance_length": 2.0} for i in range(3)]
    return {
        "environment": {"cpu": "A CPU", "versions": {"torch": "2"}},
        "config": {
            "title": "A question",
            "init": init,
            "baseline": baseline,
            "windows": [5],
            "max_new_tokens": 64,
            "parallel": 2,
            "common": common,
            "responses": ["runs/responses"],
            "arms": arms or {"other": {"stage": "sft", "seeds": [0]}},
        },
        "results": [entry(baseline, suite, 2.0) for suite in suites]
        + [entry("other-seed0", suite, 2.25, 0.25) for suite in suites],
        "training": {"other-seed0": {"steps": 123, "cost": cost, "log": log}},
    }


@pytest.mark.parametrize(
    ("init", "baseline", "common", "said"),
    [
        ("runs/first", "init", {"max_seconds": 60.0}, ["starts from `runs/first`", "60 seconds of training steps on"]),
        (None, "base-seed0", {"max_steps": 40}, ["begins with a fresh drafter", "trains for 40 steps on"]),
    ],
)
def test_the_report_holds_the_figures(tmp_path, init, baseline, common, said):
    given = results(init, baseline, common)
    text = report_text(given)
    than = "the initialisation" if baseline == "init" else "`base-seed0`"
    for part in (*said, f"mean over {than}", "2 at a time", "cpu A CPU"):
        assert part in text, part
    assert "| other-seed0 | 123 | — | — | 2.250 [2.15, 2.35] | 2.250 [2.15, 2.35] | +0.250 [+0.230, +0.270] |" in text
    assert f"| {baseline} |  |  |  | 2.000 [1.90, 2.10] | 2.000 [1.90, 2.10] |  |" in text
    assert "on the same responses, 2 at a time" in text
    write_report(tmp_path, given)
    assert (tmp_path / "report.md").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acceptance.png", "report.md", "training.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("acceptance.png", "training.png"))


def test_both_budgets_are_shown():
    common = {"max_seconds": 60.0}
    text = report_text(results("runs/first", "init", common, {"seconds": 60.71, "target_tokens": 1234567}))
    assert "| drafter | steps | seconds | target tokens | gsm8k | mean |" in text
    assert "| other-seed0 | 123 | 61 | 1,234,567 | 2.250" in text
    # Gone on with from a checkpoint that did not say.
    text = report_text(results("runs/first", "init", common, {"seconds": None, "target_tokens": None}))
    assert "| other-seed0 | 123 | — | — | 2.250" in text


def test_arms_with_data_of_their_own_are_named():
    arms = {"other": {"stage": "sft", "seeds": [0]}, "more": {"responses": ["a", "b"]}, "less": {"responses": "c"}}
    text = report_text(results("runs/first", "init", {"max_steps": 40}, arms=arms))
    assert "on `runs/responses` (`more` on `a`, `b`, `less` on `c`), 2 at a time" in text
    assert "on the same responses" not in text


def test_every_temperature_has_its_table(tmp_path):
    given = results("runs/first", "init", {"max_steps": 40})
    assert "greedy answers of at most 64 tokens" in report_text(given) and "sampled" not in report_text(given)
    sampled = [entry("init", "mean", 1.5), entry("other-seed0", "mean", 1.625, 0.125)]
    given["results"] = [e | {"temperature": 0} for e in given["results"]] + [e | {"temperature": 1} for e in sampled]
    text = report_text(given)
    greedy, at_one = text.split("## Windows of 5, sampled at temperature 1\n")
    assert "## Windows of 5\n" in greedy and "+0.250 [" in greedy and "+0.125 [" not in greedy
    assert "+0.125 [+0.105, +0.145]" in at_one and "+0.250 [" not in at_one
    assert "greedy ones and sampled ones" in greedy
    write_report(tmp_path, given)
