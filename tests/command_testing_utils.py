# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What tests of the commands share: tiny models in folders as a user has them, and two ways to call a command."""

import functools
import json
import sys
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM
from typer.testing import CliRunner, Result

from ppow_hf import cli
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_eagle3


def write_folders(root: Path, **overrides) -> Path:
    """A target with its tokenizer, an untrained drafter, prompts and a suite."""
    target = char_target(**overrides)
    target.save_pretrained(root / "target")
    char_tokenizer().save_pretrained(root / "target")
    tiny_eagle3(target, draft_vocab_size=60).save_pretrained(root / "drafter")
    write_jsonl(root / "prompts.jsonl", [{"prompt": f"Say {i}."} for i in range(12)])
    write_jsonl(
        root / "suite.jsonl", [{"id": f"s/{i}", "suite": "small", "turns": [f"Count to {i}."]} for i in range(2)]
    )
    return root


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but those that decoding keeps in a hidden one of its own."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def models(folders: Path) -> tuple:
    return ("--target", folders / "target", "--drafter", folders / "drafter", "--device", "cpu")


def run(*arguments) -> Result:
    """A command, with its output and exit status; errors are raised."""
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)


def call_main(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """The entry point as the shell calls it: exit status, standard output, standard error in one line."""
    monkeypatch.setattr(sys, "argv", ["ppow", *(str(a) for a in arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, " ".join(captured.err.split())


def break_verification(monkeypatch) -> None:
    """A target that is wrong about several tokens at once, as a faulty attention kernel would be: the text of windows
    differs from plain `generate`'s, in float32 too."""
    forward = LlamaForCausalLM.forward

    @functools.wraps(forward)
    def wrong(self, *args, **kwargs):
        cache = kwargs.get("past_key_values")
        verifying = cache is not None and cache.get_seq_length() > 0
        output = forward(self, *args, **kwargs)
        if verifying and output.logits.shape[1] > 1:
            output.logits = output.logits.roll(1, dims=-1)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", wrong)
