# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`ppow data` on a tiny target: what it records."""

import hashlib
import json

import pytest
from typer.testing import CliRunner

from ppow_hf import cli

from .data_testing_utils import char_target, char_tokenizer


@pytest.mark.parametrize(("option", "shown"), [("--prompts", "--prompts"), ("--exclude", "exclude")])
@pytest.mark.parametrize(
    ("content", "what"), [(None, "there is no such file"), ("", "is empty"), ('{"question": "a"}\n{"b', "line 2: not")]
)
def test_bad_files_are_named_by_their_option(tmp_path, option, shown, content, what):
    (tmp_path / "good.jsonl").write_text('{"question": "Say 1."}\n')
    if content is not None:
        (tmp_path / "bad.jsonl").write_text(content)
    files = {"--prompts": "good.jsonl", "--exclude": "good.jsonl", option: "bad.jsonl"}
    arguments = ["data", "--output", tmp_path / "out"]
    for name, file in files.items():
        arguments += [name, tmp_path / file]
    with pytest.raises((ValueError, OSError), match=f"`{shown}` .*bad.jsonl.*{what}"):
        CliRunner().invoke(cli.app, [str(part) for part in arguments], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_excluded_files_are_recorded(tmp_path):
    char_target().save_pretrained(tmp_path / "target")
    char_tokenizer().save_pretrained(tmp_path / "target")
    for name, numbers in (("train.jsonl", range(8)), ("gsm8k.jsonl", (2, 5, 90)), ("other.jsonl", (91,))):
        (tmp_path / name).write_text("".join(json.dumps({"question": f"Say {i}."}) + "\n" for i in numbers))
    arguments = ["data", "--prompts", tmp_path / "train.jsonl", "--target", tmp_path / "target", "--device", "cpu"]
    arguments += ["--exclude", tmp_path / "gsm8k.jsonl", "--exclude", tmp_path / "other.jsonl"]
    arguments += ["--max-new-tokens", 4, "--output", tmp_path / "out"]
    result = CliRunner().invoke(cli.app, [str(part) for part in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["rows"] == 6
    assert [(entry["name"], entry["prompts_removed"]) for entry in provenance["excluded"]] == [
        ("gsm8k.jsonl", 2),
        ("other.jsonl", 0),
    ]
    for entry in provenance["excluded"]:
        assert entry["sha256"] == hashlib.sha256((tmp_path / entry["name"]).read_bytes()).hexdigest()
