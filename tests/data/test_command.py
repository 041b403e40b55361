# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`ppow data` on a tiny target: what it records."""

import hashlib
import json

from typer.testing import CliRunner

from ppow_hf import cli

from .data_testing_utils import char_target, char_tokenizer


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
