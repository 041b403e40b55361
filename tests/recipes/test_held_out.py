# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
from pathlib import Path

import pytest

from ppow_hf.data import generate_responses
from ppow_hf.evaluation.suites import load_suite
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.recipes.loaded_script import loaded_script

SCRIPT = Path(__file__).parents[2] / "trainers" / "recipes" / "smollm2" / "held_out.py"


def write(path, questions):
    path.write_text("".join(json.dumps({"task": question}) + "\n" for question in questions))
    return path


def test_nothing_that_was_trained_on_is_chosen(tmp_path):
    trained = [f"Say {i}." for i in range(6)]
    generate_responses(
        char_target(), char_tokenizer(), trained, tmp_path / "responses", max_new_tokens=4, progress=False
    )
    pool = write(tmp_path / "pool.jsonl", [f"Say {i}." for i in range(12)])
    suite = tmp_path / "suite.jsonl"
    suite.write_text('{"question": "say 8"}\n')
    arguments = {"prompts": [f"{pool}::task"], "exclude": [str(tmp_path / "responses"), str(suite)]}
    with loaded_script(SCRIPT) as script:
        script.main(**arguments, output=tmp_path / "out", count=24, seed=0)
        script.main(**arguments, output=tmp_path / "two", count=2, seed=1)
        script.main(**arguments, output=tmp_path / "again", count=2, seed=1)
        with pytest.raises(ValueError, match="none are left"):
            script.main(prompts=[str(suite)], exclude=[str(suite)], output=tmp_path / "none", count=2, seed=0)
    examples = load_suite(tmp_path / "out" / "pool.jsonl")
    assert sorted(example.turns[0] for example in examples) == sorted(f"Say {i}." for i in (6, 7, 9, 10, 11))
    assert {example.suite for example in examples} == {"pool"} and len({example.id for example in examples}) == 5
    two, again = (tmp_path / name / "pool.jsonl" for name in ("two", "again"))
    assert len(load_suite(two)) == 2 and two.read_bytes() == again.read_bytes()
