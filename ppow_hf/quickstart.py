# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`ppow quickstart`: the same prompts, decoded plainly and speculatively, and one table."""

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .console import Decoded, MarkedStreamer, chat_inputs, figure, timed_generate
from .drafters import DrafterModel
from .evaluation.precision import cast_floating
from .generation import CostModel

REFERENCE_DRAFTER = "smollm2-135m-instruct-eagle3"

PROMPTS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "A box holds 12 rows of 8 apples. I eat 5 and give away 20. How many apples are left? Think step by step.",
    "List five tips for learning a new language.",
)


def reference_drafter_path() -> Path:
    """
    Folder of the reference drafter in a checkout of the repository.

    Raises:
        FileNotFoundError: If the package is installed without the repository.
    """
    folder = Path(__file__).resolve().parent.parent / "model_cards" / REFERENCE_DRAFTER
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"The reference drafter `{REFERENCE_DRAFTER}` comes with the repository, not with the installed package. "
            "Run this in a checkout, or name a drafter with `--drafter`."
        )
    return folder


@dataclass
class QuickstartRow:
    """One prompt, both ways; no acceptance length for a text that ended before the first window."""

    prompt: str
    plain: Decoded
    speculative: Decoded
    acceptance_length: float | None
    identical: bool


def run_quickstart(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafter: DrafterModel,
    console: Console,
    *,
    max_new_tokens: int = 128,
    prompts: tuple[str, ...] = PROMPTS,
) -> list[QuickstartRow]:
    """
    Decodes every prompt plainly and speculatively, in turn, shows the text and ends with a table.

    The texts are compared twice: as measured, in the target's own dtype, and in float32, where greedy speculative
    decoding must give exactly the plain text. (In bfloat16 two tokens of nearly equal probability can swap when a
    window is verified in one pass; that is rounding, not the method.)

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        drafter ([`DrafterModel`]): The drafter.
        console ([`~rich.console.Console`]): Where to print.
        max_new_tokens (`int`, *optional*, defaults to 128): New tokens per prompt.
        prompts (`tuple[str, ...]`, *optional*): What to ask.

    Returns:
        `list[QuickstartRow]`.
    """
    options = {"do_sample": False, "max_new_tokens": max_new_tokens}
    drafter.bind_target(target)
    with console.status("Measuring the cost of drafting and verifying on this machine..."):
        cost = CostModel.for_models(target, drafter)
    console.print(
        f"One draft step costs [bold]{cost.gamma:.3f}[/] of a target step; verifying 4 drafted tokens "
        f"[bold]{cost.verify(4):.2f}[/], 8 [bold]{cost.verify(8):.2f}[/].\n"
    )
    warm_up = chat_inputs(tokenizer, "Hello!", target.device)
    for assistant in (None, drafter):
        timed_generate(target, tokenizer, warm_up, **{**options, "max_new_tokens": 8}, assistant_model=assistant)

    measured = []
    for prompt in prompts:
        console.print(Text(f"> {prompt}", style="bold"))
        inputs = chat_inputs(tokenizer, prompt, target.device)
        plain = timed_generate(target, tokenizer, inputs, **options)
        # Shown when it is done, so that no printing is timed with what the other is compared with.
        console.print(Text(plain.text), soft_wrap=True)
        console.print(Text(_took("plain generate", plain), style="dim"))
        streamer = MarkedStreamer(tokenizer, console, drafter)
        speculative = timed_generate(target, tokenizer, inputs, **options, assistant_model=drafter, streamer=streamer)
        console.print(Text(_took("with the drafter", speculative), style="dim"))
        console.print()
        measured.append((prompt, inputs, plain, speculative, drafter.last_trace.acceptance_length))

    with console.status("Comparing the texts in float32..."):
        identical = _identical_in_float32(target, drafter, [inputs for _, inputs, *_ in measured], options)
    rows = [
        QuickstartRow(prompt, plain, speculative, tau, same)
        for (prompt, _, plain, speculative, tau), same in zip(measured, identical, strict=True)
    ]
    console.print(_table(rows, str(target.dtype).removeprefix("torch.")))
    console.print(
        "Green tokens were drafted and accepted. tau is the acceptance length: tokens committed per verification, "
        "the target's own included. In bfloat16 two nearly equally likely tokens can swap; in float32 the text must "
        "be the same."
    )
    return rows


def _took(how: str, decoded: Decoded) -> str:
    return f"^ {how}: {len(decoded.token_ids)} tokens in {decoded.seconds:.1f} s"


def _identical_in_float32(target, drafter, all_inputs, options) -> list[bool]:
    identical = []
    with cast_floating((target, drafter), torch.float32):
        for inputs in all_inputs:
            plain = target.generate(**inputs, **options)
            identical.append(torch.equal(plain, target.generate(**inputs, **options, assistant_model=drafter)))
    return identical


def _table(rows: list[QuickstartRow], dtype: str) -> Table:
    # Narrow enough for a terminal of 80 columns.
    table = Table(title="Plain generate against speculative generate")
    table.add_column("prompt", no_wrap=True, overflow="ellipsis", max_width=18)
    for name in ("plain tok/s", "draft tok/s", "speedup", "tau"):
        table.add_column(name, justify="right")
    table.add_column("same text float32", min_width=7)
    table.add_column(f"same text {dtype}", min_width=len(dtype))
    for row in rows:
        table.add_row(
            Text(row.prompt),
            f"{row.plain.tokens_per_second:.1f}",
            f"{row.speculative.tokens_per_second:.1f}",
            f"{row.speculative.tokens_per_second / row.plain.tokens_per_second:.2f}x",
            figure(row.acceptance_length),
            "yes" if row.identical else "no",
            "yes" if row.plain.token_ids == row.speculative.token_ids else "no",
        )
    lengths = [row.acceptance_length for row in rows if row.acceptance_length is not None]
    speedups = [row.speculative.tokens_per_second / row.plain.tokens_per_second for row in rows]
    table.add_section()
    table.add_row(
        "mean",
        f"{statistics.mean(row.plain.tokens_per_second for row in rows):.1f}",
        f"{statistics.mean(row.speculative.tokens_per_second for row in rows):.1f}",
        f"{statistics.mean(speedups):.2f}x",
        figure(statistics.mean(lengths) if lengths else None),
        "yes" if all(row.identical for row in rows) else "no",
        "yes" if all(r.plain.token_ids == r.speculative.token_ids for r in rows) else "no",
    )
    return table
