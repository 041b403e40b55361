# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`ppow quickstart`: the table, and that it fails where the texts differ."""

import io
import json

import pytest
from rich.console import Console

from ppow_hf import AutoDrafter, cli, load_target
from ppow_hf.quickstart import PROMPTS, run_quickstart
from tests.command_testing_utils import break_verification, call_main, contents, models, run, write_folders


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch):
    monkeypatch.setattr(cli, "console", Console(width=200, highlight=False))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("quickstart"))


def cells(output: str, first: str) -> list[str]:
    """The cells of the table's row that begins so."""
    row = next(line for line in output.splitlines() if line.startswith("│") and line[1:].strip().startswith(first))
    return [cell.strip() for cell in row.split("│")[1:-1]]


def test_quickstart_compares_both_ways(folders):
    before = contents(folders / "drafter")
    result = run("quickstart", *models(folders), "--max-new-tokens", 8, "--dtype", "float32")
    assert result.exit_code == 0
    assert "Plain generate against speculative generate" in result.output
    rows = [cells(result.output, prompt[:12]) for prompt in PROMPTS] + [cells(result.output, "mean")]
    assert [row[-2:] for row in rows] == [["yes", "yes"]] * 5
    plain, drafted, speedup, tau = ([float(row[i].rstrip("x")) for row in rows] for i in range(1, 5))
    for values in (plain, drafted, speedup, tau):
        assert sum(values[:4]) / 4 == pytest.approx(values[4], abs=0.11)  # of rounded figures
    assert [b / a for a, b in zip(plain[:4], drafted[:4], strict=True)] == pytest.approx(speedup[:4], abs=0.02)
    assert all(1 <= value <= 8 for value in tau)
    assert contents(folders / "drafter") == before


def test_different_texts_fail(folders, monkeypatch, capsys):
    break_verification(monkeypatch)
    command = ("quickstart", *models(folders), "--max-new-tokens", 8, "--dtype", "float32")
    status, out, error = call_main(monkeypatch, capsys, *command)
    assert status == 1
    assert cells(out, "mean")[-2:] == ["no", "no"]
    assert error.startswith("Error:") and "differ in float32" in error and "report it" in error


def test_a_text_that_ends_at_once_has_no_acceptance_length(tmp_path):
    folders = write_folders(tmp_path)
    path = folders / "target" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": list(range(104))}))
    result = run("quickstart", *models(folders), "--max-new-tokens", 8, "--dtype", "float32")
    assert result.exit_code == 0
    assert cells(result.output, "mean")[4:] == ["-", "yes", "yes"]


def test_both_texts_are_shown(folders):
    target, tokenizer = load_target(folders / "target")
    drafter = AutoDrafter.from_pretrained(folders / "drafter")
    console = Console(file=io.StringIO(), width=200, highlight=False)
    (row,) = run_quickstart(target, tokenizer, drafter, console, max_new_tokens=9, prompts=("Say it.",))
    shown = console.file.getvalue()
    text = tokenizer.decode(row.plain.token_ids, skip_special_tokens=True)
    parts = shown.split("> Say it.\n")[1].split("^ ")
    assert parts[0].rstrip("\n") == text.rstrip("\n") and text.strip()
    assert parts[1].startswith("plain generate: 9 tokens in ") and parts[2].startswith(
        "with the drafter: 9 tokens in "
    )
    assert parts[1].split("\n", 1)[1].rstrip("\n") == text.rstrip("\n")


def test_prompts_are_shown_as_they_are(folders):
    target, tokenizer = load_target(folders / "target")
    drafter = AutoDrafter.from_pretrained(folders / "drafter")
    console = Console(file=io.StringIO(), width=200, highlight=False)
    run_quickstart(target, tokenizer, drafter, console, max_new_tokens=4, prompts=("[bold]a[/] :ox:", "x[/b]"))
    output = console.file.getvalue()
    assert "> [bold]a[/] :ox:" in output and "> x[/b]" in output
    assert cells(output, "[bold]")[0] == "[bold]a[/] :ox:"
