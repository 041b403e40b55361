# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
from pathlib import Path

import pytest
import typer

from tests.recipes.loaded_script import loaded_script

SCRIPT = Path(__file__).parents[2] / "trainers" / "recipes" / "smollm2" / "check_exclusion.py"
QUESTION = "How many apples are left when Ann has eaten three of her ten?"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def suites(tmp_path):
    turns = [["Write a poem about the sea and its colours."], [QUESTION, "Why?"]]
    rows = [{"id": str(i), "suite": "s", "turns": t} for i, t in enumerate(turns)]
    return [write(tmp_path / "one.jsonl", rows[:1]), write(tmp_path / "two.jsonl", rows[1:])]


def check(prompts, suites, output) -> dict:
    with loaded_script(SCRIPT) as script:
        script.main(prompts=prompts, evaluation=suites, output=output, seed=0)
    return json.loads((output / "exclusion.json").read_text())


def test_nothing_in_common(tmp_path, suites, capsys):
    # Short ones are matched whole: "Why?" is no part of what follows it here.
    source = write(tmp_path / "train.jsonl", [{"task": "Why? I wonder."}, {"task": "Ann eats apples."}])
    found = check([f"{source}::task"], suites, tmp_path / "out")
    assert found["prompts"][0]["found_at"] == {"one.jsonl": [], "two.jsonl": []}
    assert (found["prompts"][0]["source"], found["prompts"][0]["prompts"]) == ("train.jsonl", 2)
    assert [len(suite["sha256"]) for suite in found["evaluation"]] == [64, 64]
    assert "2 prompts, none of them of the evaluation." in capsys.readouterr().out


@pytest.mark.parametrize("prompt", [QUESTION, QUESTION.upper(), f"Solve this:\n\n{QUESTION}  ", QUESTION[:50], "why"])
def test_a_prompt_of_the_evaluation_is_found(tmp_path, suites, prompt):
    source = write(tmp_path / "train.jsonl", [{"prompt": "Ann eats apples."}, {"prompt": prompt}])
    with pytest.raises(typer.Exit) as stop:
        check([source], suites, tmp_path / "out")
    assert stop.value.exit_code == 1
    found = json.loads((tmp_path / "out" / "exclusion.json").read_text())
    assert found["prompts"][0]["found_at"] == {"one.jsonl": [], "two.jsonl": [1]}


def test_a_later_message_counts_too(tmp_path, suites):
    rows = [{"turns": ["Hello.", QUESTION]}]
    with pytest.raises(typer.Exit):
        check([write(tmp_path / "talks.jsonl", rows)], suites, tmp_path / "out")


def test_a_file_that_is_not_there(tmp_path, suites):
    with pytest.raises(FileNotFoundError, match="`--evaluation` is"):
        check([suites[0]], [str(tmp_path / "none.jsonl")], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="`--prompts` is"):
        check([str(tmp_path / "none.jsonl")], suites, tmp_path / "out")
    assert not (tmp_path / "out").exists()
