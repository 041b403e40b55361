# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
import random
from pathlib import Path

import pytest

from ppow_hf import CausalLMDrafter
from ppow_hf.generation.lookup import LookupIndex
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.recipes.loaded_script import loaded_script

SCRIPT = Path(__file__).parents[2] / "trainers" / "recipes" / "smollm2" / "lookup_overlap.py"


@pytest.fixture
def script():
    with loaded_script(SCRIPT) as module:
        yield module


@pytest.mark.parametrize("seed", range(4))
def test_looked_up_as_an_index_of_each_prefix_says(script, seed):
    rng = random.Random(seed)
    # Repeats itself, but for every sixth token or so.
    text = [rng.randrange(4) if rng.random() < 0.2 else i % 7 for i in range(80)]
    expected = []
    for position in range(7, len(text)):
        index = LookupIndex()
        index.extend(text[:position])
        proposal, right = index.propose(5), 0
        while right < len(proposal) and position + right < len(text) and proposal[right] == text[position + right]:
            right += 1
        expected.append(right)
    assert script.looked_up_from_everywhere(text, 7, 5) == expected
    assert len(set(expected)) > 2


def test_figures_by_hand(script):
    # Of six positions lookup is right at two, the drafter at one of these and at one of the other four.
    lengths = [
        {"lookup": [2, 0, 0, 0], "drafter": [0, 0, 1, 0], "further": [2, 0, 1, 0]},
        {"lookup": [1, 0], "drafter": [1, 0], "further": [1, 0]},
    ]
    found = script.figures(lengths, 2)
    assert found["positions"] == 6 and found["lookup_right"] == 2 / 6
    assert found["drafter_right_where_lookup_is"] == 1 / 2 and found["drafter_right_where_lookup_is_not"] == 1 / 4
    # Lookup: 3 + 1, and 2 in one cycle; the drafter: 1 + 1 + 2, and 2; the further: 3 + 1, and 2.
    assert found["tau_lookup"] == 6 / 3 and found["tau_drafter"] == 6 / 4 and found["tau_further"] == 6 / 3
    with pytest.raises(ValueError, match="nothing to draft for"):
        script.figures([], 2)


def test_a_drafter_that_is_the_target_knows_all_that_lookup_knows(script, tmp_path):
    target, tokenizer = char_target(), char_tokenizer()
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    for name, layers in (("all", 2), ("half", 1)):
        CausalLMDrafter.from_target(target, num_layers=layers).save_pretrained(tmp_path / name)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i} and {i}."}) + "\n" for i in range(3)))
    script.main(
        drafter=[f"all={tmp_path / 'all'}", str(tmp_path / "half")],
        suite=[str(prompts)],
        output=tmp_path / "out",
        window=3,
        max_new_tokens=24,
        target=str(tmp_path / "target"),
        dtype="float32",
        seed=0,
    )
    rows = {row["drafter"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())["results"]}
    assert rows.keys() == {"all", "half"}
    own, half = rows["all"], rows["half"]
    assert own["drafter_right_where_lookup_is_not"] == 1.0 and own["tau_drafter"] == own["tau_further"] > 3
    assert own["tau_lookup"] == half["tau_lookup"] and own["positions"] == half["positions"]
    assert half["tau_drafter"] <= half["tau_further"] <= own["tau_drafter"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| `half` |" in text and f"{own['tau_further'] - own['tau_drafter']:+.2f}" in text
