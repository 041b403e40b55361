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


def results(init, baseline, common):
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
        },
        "results": [entry(baseline, suite, 2.0) for suite in suites]
        + [entry("other-seed0", suite, 2.25, 0.25) for suite in suites],
        "training": {"other-seed0": {"steps": 123, "log": log}},
    }


@pytest.mark.parametrize(
    ("init", "baseline", "common", "said"),
    [
        ("runs/first", "init", {"max_seconds": 60.0}, ["starts from `runs/first`", "60 seconds of training"]),
        (None, "base-seed0", {"max_steps": 40}, ["begins with a fresh drafter", "trains for 40 steps"]),
    ],
)
def test_the_report_holds_the_figures(tmp_path, init, baseline, common, said):
    given = results(init, baseline, common)
    text = report_text(given)
    than = "the initialisation" if baseline == "init" else "`base-seed0`"
    for part in (*said, f"mean over {than}", "2 at a time", "cpu A CPU"):
        assert part in text, part
    assert "| other-seed0 | 123 | 2.250 [2.15, 2.35] | 2.250 [2.15, 2.35] | +0.250 [+0.230, +0.270] |" in text
    assert f"| {baseline} |  | 2.000 [1.90, 2.10] | 2.000 [1.90, 2.10] |  |" in text
    write_report(tmp_path, given)
    assert (tmp_path / "report.md").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acceptance.png", "report.md", "training.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("acceptance.png", "training.png"))
