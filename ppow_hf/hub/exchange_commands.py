# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`ppow import` and `ppow export`: EAGLE-3 checkpoints of other projects, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .exchange_report import ExchangeReport, logger

console = Console(highlight=False, emoji=False)

SeedOption = Annotated[int, typer.Option("--seed", help="Seed. Nothing here is random; kept for uniform commands.")]


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="Checkpoint to read: a folder or Hub id, in the EAGLE-3 flat form "
            "(SafeAILab, SpecForge, SGLang) or the speculators form."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the drafter; must not exist.")],
    target: Annotated[
        str | None,
        typer.Option(
            help="The drafter's target: a Hub id, a folder or an embedded target. Needed where the "
            "checkpoint does not name its feature layers."
        ),
    ] = None,
    layer_ids: Annotated[
        str,
        typer.Option(
            help="How the checkpoint numbers feature layers: auto, input (vLLM, speculators) or output "
            "(SGLang, SpecForge)."
        ),
    ] = "auto",
    aux_layers: Annotated[
        str | None, typer.Option(help="Feature layers, comma-separated `hidden_states` indices such as 2,15,27.")
    ] = None,
    rope_theta: Annotated[float | None, typer.Option(help="RoPE theta, where config.json is wrong.", min=1.0)] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Read an EAGLE-3 checkpoint of another project as a drafter, and say what was filled in."""
    from .importer import import_drafter

    _quiet(seed)
    overrides: dict = {}
    if aux_layers is not None:
        overrides["aux_layer_ids"] = _ids(aux_layers)
    if rope_theta is not None:
        overrides["rope_parameters"] = {"rope_type": "default", "rope_theta": rope_theta}
    with console.status("Reading the checkpoint..."):
        drafter = import_drafter(
            source, target=target, output=output, layer_id_convention=layer_ids, revision=revision, **overrides
        )
    config = drafter.config
    console.print(
        f"Imported {escape(source)} ({drafter.import_report.form} form) into {escape(str(output))}: "
        f"{drafter.num_parameters() / 1e6:.1f}M parameters in {str(drafter.dtype).removeprefix('torch.')}, draft "
        f"vocabulary {config.draft_vocab_size} of {config.vocab_size}, feature layers "
        f"{escape(str(config.aux_layer_ids))}.",
        soft_wrap=True,
    )
    _print_notes(drafter.import_report)


def export(
    drafter: Annotated[str, typer.Argument(help="Drafter to write: a folder or Hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist.")],
    format: Annotated[
        str,
        typer.Option("--format", help="sglang, vllm, speculators, or eagle: the subset that all engines read."),
    ] = "eagle",
    target: Annotated[
        str | None,
        typer.Option(
            help="The drafter's target: a Hub id, a folder or an embedded target. The speculators form "
            "copies its embedding."
        ),
    ] = None,
    speculative_tokens: Annotated[int, typer.Option(help="Draft tokens per window of the engine.", min=1)] = 5,
    seed: SeedOption = 0,
) -> None:
    """Write a drafter in the form that another engine loads, and print the command that serves it."""
    from .exporter import export_drafter

    _quiet(seed)
    with console.status("Writing..."):
        report = export_drafter(drafter, output, format, target=target, speculative_tokens=speculative_tokens)
    console.print(f"Exported {escape(drafter)} as {report.form} into {escape(str(output))}.", soft_wrap=True)
    _print_notes(report)
    console.print("Serve it with:")
    for command in report.usage:
        console.print(f"  {escape(command)}", soft_wrap=True)


def _quiet(seed: int) -> None:
    """The notes are printed here, once."""
    from transformers import set_seed
    from transformers.utils import logging

    set_seed(seed)
    logging.disable_progress_bar()
    logger.setLevel("ERROR")


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"`--aux-layers` takes comma-separated whole numbers such as 2,15,27, got {text!r}."
        ) from None


def _print_notes(report: ExchangeReport) -> None:
    for note in report.notes:
        console.print(f"  [yellow]note[/] {escape(note)}", soft_wrap=True)
