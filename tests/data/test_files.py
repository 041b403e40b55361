# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import errno
import json

import pytest
from datasets import Dataset, load_from_disk

from ppow_hf.data import files
from ppow_hf.data.files import PROVENANCE_FILE, read_jsonl, save_dataset_whole


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_read_jsonl_skips_blank_lines_and_numbers_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": "\xc3\xa9"}\n')
    assert list(read_jsonl(path, "path")) == [(1, {"a": 1}), (3, {"a": "é"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        (b'{"a": 1}\n"text"\n', "line 2: a str where a JSON object"),
        (b'{"a": "\xff"}\n', "line 1: not valid JSON"),
    ],
)
def test_read_jsonl_names_file_line_and_argument(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        list(read_jsonl(path, "prompts"))
    assert "`prompts`" in str(error.value) and "rows.jsonl" in str(error.value)


def test_read_jsonl_without_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path`.*no such file"):
        list(read_jsonl(tmp_path / "none.jsonl", "path"))


def test_save_dataset_whole(tmp_path):
    dataset = Dataset.from_dict({"a": [1, 2]})
    save_dataset_whole(dataset, tmp_path / "deep" / "out", {"rows": 2})
    assert load_from_disk(tmp_path / "deep" / "out")["a"][:] == [1, 2]
    assert json.loads((tmp_path / "deep" / "out" / PROVENANCE_FILE).read_text()) == {"rows": 2}
    with pytest.raises(FileExistsError, match="`output_dir`.*not empty"):
        save_dataset_whole(dataset, tmp_path / "deep" / "out", {})


@pytest.mark.parametrize("writer", ["save_to_disk", "provenance"])
def test_save_dataset_whole_leaves_nothing_when_the_disk_is_full(tmp_path, monkeypatch, writer):
    if writer == "save_to_disk":
        monkeypatch.setattr(Dataset, "save_to_disk", no_space)
    else:
        monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(OSError, match="disk is full.*free some space") as error:
        save_dataset_whole(Dataset.from_dict({"a": [1]}), tmp_path / "out", {})
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
