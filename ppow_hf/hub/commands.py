# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`ppow push`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from ..scripts.command_line import print_line

_STYLES = {"new": "green", "changed": "yellow", "deleted": "red", "unchanged": "dim"}


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A saved drafter, or a Space's folder with --space.")],
    repo: Annotated[str, typer.Option("--repo", help="namespace/name, or name in your own namespace.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    space: Annotated[bool, typer.Option("--space", help="The folder is a Space.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request in place of a commit.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch. Default: main.")] = None,
    message: Annotated[str | None, typer.Option("--message", help="First line of the commit.")] = None,
    unmeasured: Annotated[
        bool, typer.Option("--unmeasured", help="Push a drafter without benchmark results.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Accepted by every command; a push draws no numbers.")] = 0,
) -> None:
    """
    Share a drafter on the Hub: weights, configs, card, benchmarks and remote code in one commit.

    Needs a token with write permission: `hf auth login`, or HF_TOKEN. Unchanged files are not sent again. A Space gets
    the library it imports beside its app, and the checkout's drafters.
    """
    from .push_drafter import push_saved
    from .push_space import push_space

    options = {"private": private, "create_pr": create_pr, "revision": revision, "dry_run": dry_run}
    options["commit_message"] = message
    if space:
        result = push_space(folder, repo, **options)
    else:
        result = push_saved(folder, repo, require_results=not unmeasured, **options)
    show_push(result, Console(highlight=False), private=private)


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A saved drafter with its facts and benchmarks.")],
    repo: Annotated[str | None, typer.Option("--repo", help="Repository the card's examples name.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Nothing here is random; kept for uniform commands.")] = 0,
) -> None:
    """Write README.md and the remote code into a drafter's folder: what `ppow push` would add, to look at."""
    from .push_drafter import complete_folder

    complete_folder(folder, repo or folder.resolve().name)
    print_line(Console(highlight=False), f"Card: {folder / 'README.md'}")


def show_push(result, console: Console, *, private: bool = False) -> None:
    """
    Prints what a push did.

    Args:
        result (`PushResult`): From `push_folder`.
        console (`Console`): Where to print.
        private (`bool`, *optional*, defaults to `False`): Whether a new repository is a private one.
    """
    # What was given or comes from the Hub is shown as it is: `[...]` in a name is no markup.
    table = Table(title=Text(f"{result.url} ({result.revision})"))
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("stored as")
    table.add_column("status")
    for file in result.files:
        size = "-" if file.status == "deleted" else decimal(file.size)
        cells = (Text(file.path), size, "LFS" if file.mode == "lfs" else "git", file.status)
        table.add_row(*cells, style=_STYLES[file.status])
    console.print(table)
    for path, reason in result.left_out:
        console.print(Text(f"left out: {path} ({reason})", style="dim"), soft_wrap=True)
    kind = "private repository" if private else "repository"
    new = f", a new {kind}" if result.creates_repo else ", a new branch" if result.creates_branch else ""
    amount = f"{len(result.to_send)} of {len(result.files)} files ({decimal(result.bytes_to_send)})"
    if result.dry_run:
        print_line(console, f"Dry run: {amount} would be sent to {result.repo_id}{new}. Nothing was sent.")
    elif result.commit_url is not None:
        print_line(console, f"Sent {amount} to {result.repo_id}{new}, in one commit: {result.commit_url}")
    elif result.pull_request_url is None:
        print_line(console, f"{result.repo_id} is up to date: no commit was made.")
    if result.pull_request_url is not None:
        print_line(console, f"Pull request: {result.pull_request_url}")
