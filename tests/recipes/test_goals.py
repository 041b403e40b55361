# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The report of goals is what the committed figures say."""

from pathlib import Path

from tests.recipes.loaded_script import loaded_script

ROOT = Path(__file__).parents[2]


def test_the_report_is_up_to_date():
    """Else run the script."""
    written = {}
    with loaded_script(ROOT / "trainers" / "recipes" / "smollm2" / "goals.py") as script:
        script.main(written.__setitem__)
    ((path, text),) = written.items()
    assert path.read_text(encoding="utf-8") == text


def test_what_is_not_met_says_why():
    with loaded_script(ROOT / "trainers" / "recipes" / "smollm2" / "goals.py") as script:
        goals = script.all_goals(script.read(script.DRAFTER, "benchmarks", "results.json"))
        assert len(goals) > 10
        text = script.report(goals, "all")
    for goal in goals:
        assert goal.met or goal.cause, goal.what
        assert f"| {goal.what} | {goal.goal} | {goal.measured} | {'yes' if goal.met else '**no**'} |" in text
        assert (f"- **{goal.what}**: " in text) == (not goal.met)
