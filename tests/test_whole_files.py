# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Files that are there whole or not at all."""

import errno
import json
import math
import os
import stat

import pytest

from ppow_hf import whole_files
from ppow_hf.whole_files import write_json_whole, write_text_whole, written_whole


def test_text_takes_the_place_of_the_old_file(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for text in ("ä\n", "two\r\nlines\n"):
        write_text_whole(path, text)
        assert path.read_bytes() == text.encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_it_may_be_read_by_whom_other_files_may_be(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text_whole(tmp_path / "ours", "")
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_the_old_file_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_text_whole(path, "old")

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole_files.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_text_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_when_the_block_fails(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        assert temporary.suffix == ".png" and temporary.name.startswith(".") and temporary.parent == tmp_path
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_share_a_name(tmp_path):
    with written_whole(tmp_path / "a") as one, written_whole(tmp_path / "a") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "a").read_text() == "1"  # the block that ended last


def test_json(tmp_path):
    path = tmp_path / "a.json"
    write_json_whole(path, {"b": "ß", "a": [1, None]})
    assert path.read_text(encoding="utf-8") == '{\n  "b": "ß",\n  "a": [\n    1,\n    null\n  ]\n}\n'
    write_json_whole(path, {"b": 1, "a": 2}, sort_keys=True)
    assert list(json.loads(path.read_text())) == ["a", "b"]


@pytest.mark.parametrize("content", [{"a": math.nan}, [math.inf], {"a": object()}])
def test_what_is_not_json_is_refused_and_the_old_file_stays(tmp_path, content):
    path = tmp_path / "a.json"
    write_json_whole(path, 1)
    with pytest.raises((ValueError, TypeError)):
        write_json_whole(path, content)
    assert json.loads(path.read_text()) == 1


def test_nan_where_it_is_asked_for(tmp_path):
    write_json_whole(tmp_path / "log.json", [math.nan, -math.inf], allow_nan=True)
    nan, infinite = json.loads((tmp_path / "log.json").read_text())
    assert math.isnan(nan) and infinite == -math.inf
