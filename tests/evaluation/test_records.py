# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The log: what is on disk survives a kill, and belongs to one set of arguments."""

import json

import pytest

from ppow_hf.evaluation import ResumeError
from ppow_hf.evaluation.records import RecordLog

ARGUMENTS = {"methods": ("target", "fixed:2"), "seed": 0}


def test_reopens_with_what_was_written(tmp_path):
    path = tmp_path / "records.jsonl"
    log = RecordLog(path, ARGUMENTS)
    log.append({"kind": "prompt", "id": "a"})
    log.append({"kind": "prompt", "id": "b"})
    again = RecordLog(path, ARGUMENTS)
    assert again.records == log.records == [{"kind": "prompt", "id": "a"}, {"kind": "prompt", "id": "b"}]


@pytest.mark.parametrize("kept", range(1, 24))
def test_a_line_cut_off_anywhere_is_dropped(tmp_path, kept):
    path = tmp_path / "records.jsonl"
    RecordLog(path, ARGUMENTS).append({"id": "a"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind":"prompt","id":"b"}'[:kept])
    log = RecordLog(path, ARGUMENTS)
    assert log.records == [{"id": "a"}]
    log.append({"id": "c"})
    assert RecordLog(path, ARGUMENTS).records == [{"id": "a"}, {"id": "c"}]


def test_a_cut_off_header_starts_again(tmp_path):
    path = tmp_path / "records.jsonl"
    RecordLog(path, ARGUMENTS)
    path.write_bytes(path.read_bytes()[:-5])
    RecordLog(path, ARGUMENTS).append({"id": "a"})
    assert RecordLog(path, ARGUMENTS).records == [{"id": "a"}]


def test_other_arguments_are_named_and_nothing_is_changed(tmp_path):
    path = tmp_path / "records.jsonl"
    RecordLog(path, ARGUMENTS).append({"id": "a"})
    before = path.read_bytes()
    with pytest.raises(ResumeError, match="seed: 0 then, 1 now"):
        RecordLog(path, {**ARGUMENTS, "seed": 1})
    assert path.read_bytes() == before


def test_broken_line_in_the_middle_and_foreign_file(tmp_path):
    path = tmp_path / "records.jsonl"
    RecordLog(path, ARGUMENTS).append({"id": "a"})
    path.write_bytes(path.read_bytes().replace(b'{"id"', b'{"id') + b"{}\n")
    with pytest.raises(ResumeError, match="line 2"):
        RecordLog(path, ARGUMENTS)
    path.write_text(json.dumps({"id": "a"}) + "\n")
    with pytest.raises(ResumeError, match="first line"):
        RecordLog(path, ARGUMENTS)


def test_numbers_that_are_not_json_are_refused(tmp_path):
    log = RecordLog(tmp_path / "records.jsonl", ARGUMENTS)
    with pytest.raises(ValueError):
        log.append({"seconds": float("nan")})
    assert RecordLog(tmp_path / "records.jsonl", ARGUMENTS).records == []


def test_looking_leaves_another_process_its_half_line(tmp_path):
    path = tmp_path / "records.jsonl"
    RecordLog(path, ARGUMENTS).append({"kind": "prompt", "id": "a"})
    with path.open("ab") as file:
        file.write(b'{"kind":"prompt","id":"b')
    before = path.read_bytes()
    assert [record["id"] for record in RecordLog(path, ARGUMENTS, read_only=True).records] == ["a"]
    assert path.read_bytes() == before
    empty = tmp_path / "begun.jsonl"
    empty.touch()
    assert RecordLog(empty, ARGUMENTS, read_only=True).records == [] and empty.read_bytes() == b""
    with pytest.raises(ResumeError, match="then, "):
        RecordLog(path, {**ARGUMENTS, "seed": 99}, read_only=True)
