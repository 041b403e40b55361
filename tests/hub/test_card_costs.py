# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The costs on a card: one row for every entry of `cost_model.json`, and nothing else taken for one."""

import pytest

from ppow_hf import CostModel
from ppow_hf.hub.card import write_card
from tests.testing_utils import tiny_eagle3, tiny_target

CPU = CostModel(0.04, [1.0, 1.04, 1.1], 0.06, 0.04, key="cpu Some CPU x2 | bfloat16/bfloat16 | torch 9.9 | 0a")
GPU = CostModel(0.125, [1.0, 1.5], 0.25, 0.008, key="Some GPU | float16/float16 | torch 9.8, transformers 9.7 | 0b")


@pytest.fixture
def folder(tmp_path):
    tiny_eagle3(tiny_target(), 40).save_pretrained(tmp_path / "drafter")
    return tmp_path / "drafter"


def cost_rows(folder) -> list[list[str]]:
    """Cells of the table of costs, without its header."""
    section = write_card(folder).read_text().split("## Costs of drafting")[1].split("## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[2:]]


def test_every_machine_has_its_row(folder):
    assert cost_rows(folder) == []
    assert "gamma: not measured" in (folder / "README.md").read_text()
    CPU.save(folder)
    row = ["cpu Some CPU x2", "bfloat16 target, bfloat16 drafter", "torch 9.9"]
    rows = [[*row, "0.040", "1.04", "-", "-", "0.060", "40.0 ms"]]
    assert cost_rows(folder) == rows
    GPU.save(folder)
    row = ["Some GPU", "float16 target, float16 drafter", "torch 9.8, transformers 9.7"]
    rows.append([*row, "0.125", "1.50", "-", "-", "0.250", "8.0 ms"])
    assert sorted(cost_rows(folder)) == sorted(rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 1, "entries": []}', "must be an object"),
        ('{"format": 1, "entries": {"k": [1]}}', "needs the fields"),
        ('{"format": 1, "entries": {"k": {"gamma": 0.1, "speed": 2}}}', "needs the fields"),
        ('{"format": 1, "entries": {"k": {"gamma": -1}}}', "`gamma`"),
        ('{"format": 1, "ent', "truncated or not JSON"),
    ],
)
def test_what_is_no_cost_model_is_refused(folder, text, words):
    (folder / "cost_model.json").write_text(text)
    with pytest.raises(OSError, match=words) as caught:
        write_card(folder)
    assert f"`{folder / 'cost_model.json'}`" in str(caught.value)
