# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What scripts run with `python -m` share with `ppow`: options from type hints, errors in one line."""

import os
import sys
from collections.abc import Callable

import typer
from rich.console import Console


def run(function: Callable[..., None]) -> None:
    """
    Runs a function as a command. Errors a user can act on end in one line and exit status 1; `PPOW_DEBUG=1` shows the
    traceback.

    Args:
        function (`Callable`): Its parameters carry typer's annotations.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    try:
        app()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("PPOW_DEBUG"):
            raise
        Console(stderr=True, highlight=False).print("[bold red]Error:[/]", error, soft_wrap=True)
        sys.exit(1)
