# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the commands print: names and paths as they are, whatever is in them."""

import io

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from ppow_hf.hub.commands import card, show_push
from ppow_hf.hub.push_files import PlannedFile
from ppow_hf.hub.push_session import PushResult
from tests.testing_utils import tiny_eagle3, tiny_target

# A colour, a closing tag of nothing, an emoji: all of them names that a folder may have.
NAMES = ["runs[red]", "runs[/]", "my:smile:run", "[link=x]y"]


def run(command, *arguments) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.exception
    return result.output


@pytest.mark.parametrize("name", NAMES)
def test_what_a_push_shows(name):
    files = [
        PlannedFile(f"benchmarks/{name}.json", 10, "regular", "new"),
        PlannedFile(f"{name}.py", 20, "lfs", "unchanged"),
    ]
    result = PushResult(
        f"org/{name}",
        "model",
        f"branch-{name}",
        f"https://hub/{name}",
        files,
        left_out=[(f"{name}/notes.txt", f"no file of a drafter, see {name}")],
        commit_url=f"https://hub/{name}/commit",
        pull_request_url=f"https://hub/{name}/pull",
    )
    stream = io.StringIO()
    show_push(result, Console(file=stream, width=200, highlight=False))
    shown = stream.getvalue()
    for text in (
        f"https://hub/{name} (branch-{name})",
        f"benchmarks/{name}.json",
        f"left out: {name}/notes.txt (no file of a drafter, see {name})",
        f"to org/{name}, in one commit: https://hub/{name}/commit\n",
        f"Pull request: https://hub/{name}/pull",
    ):
        assert text in shown, shown
    result.commit_url = result.pull_request_url = None
    show_push(result, Console(file=stream, width=200, highlight=False))
    result.dry_run = True
    show_push(result, Console(file=stream, width=200, highlight=False))
    assert f"org/{name} is up to date" in stream.getvalue() and f"would be sent to org/{name}." in stream.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_of_a_card(tmp_path, name):
    folder = tmp_path / name / "a-name-that-is-so-long-that-a-terminal-of-eighty-columns-would-break-it"
    tiny_eagle3(tiny_target(), 40).save_pretrained(folder)
    assert run(card, folder, "--repo", "org/drafter").endswith(f"Card: {folder}/README.md\n")


def test_files_that_stay_are_named_as_they_are(hub, client, drafter_folder):
    (drafter_folder / "notes[red].txt").write_text("stays")
    (drafter_folder / "odd[").mkdir()
    (drafter_folder / "odd[" / "].txt").write_text("stays")  # together a closing tag of nothing
    done = client.call("command", arguments=[str(drafter_folder), "--repo", "alice/drafter", "--dry-run"])
    assert done["exit_code"] == 0, done
    assert "left out: notes[red].txt (" in done["output"] and "left out: odd[/ (" in done["output"]
