# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest

from ppow_hf.json_files import DamagedFileError, read_json_object


def test_an_object(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": "\u00e9"}', encoding="utf-8")
    assert read_json_object(path, "Save it again.") == {"a": "\u00e9"}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'{"a": ', "truncated or not JSON"), (b"[1]", "holds a list"), (b'{"a": "\xff"}', "truncated or not JSON")],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=words) as caught:
        read_json_object(path, "Save it again.")
    assert str(path) in str(caught.value) and str(caught.value).endswith("Save it again.")
    # Both kinds of error that readers of files raise.
    assert isinstance(caught.value, OSError) and isinstance(caught.value, ValueError)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "none.json", "Save it again.")
