# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
import statistics
from pathlib import Path

from ppow_hf.data import generate_responses
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.recipes.loaded_script import loaded_script

SCRIPT = Path(__file__).parents[2] / "trainers" / "recipes" / "smollm2" / "packed_verification.py"


def test_both_ways_are_timed_and_agree(tmp_path):
    target, tokenizer = char_target(), char_tokenizer()
    prompts = [f"Say {i}." for i in range(6)]
    generate_responses(target, tokenizer, prompts, tmp_path / "responses", max_new_tokens=4, progress=False)
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    with loaded_script(SCRIPT) as script:
        script.main(
            responses=[str(tmp_path / "responses")],
            output=tmp_path / "out",
            target=str(tmp_path / "target"),
            dtype="float32",
            texts=4,
            starts=3,
            group=2,
            window=4,
            seed=0,
        )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["texts"]) == 4
    for row in results["texts"]:
        assert row["ratio"] == row["start_by_start_seconds"] / row["packed_seconds"] > 0
        assert row["largest_difference"] < 1e-5
    assert results["median_ratio"] == statistics.median(row["ratio"] for row in results["texts"])
