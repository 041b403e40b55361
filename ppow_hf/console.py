# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the commands show in a terminal: text as it is decoded, with accepted draft tokens marked, and the figures."""

import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

ACCEPTED_STYLE = "green"


class MarkedStreamer(BaseStreamer):
    """
    Prints tokens as they are committed; accepted draft tokens in green, the target's own in the plain colour.

    Each `put` of assisted generation holds one cycle: the accepted draft tokens and, last, the target's own token.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        console ([`~rich.console.Console`]): Where to print.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, console: Console):
        self.tokenizer = tokenizer
        self.console = console
        self.prompt_seen = False
        self.pending: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        tokens = value.reshape(-1).tolist()
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        for index, token in enumerate(tokens):
            self.pending.append(token)
            text = self.tokenizer.decode(self.pending, skip_special_tokens=True)
            if text.endswith("\N{REPLACEMENT CHARACTER}"):
                continue  # A character split over several tokens: wait for the rest.
            self.pending = []
            accepted = index < len(tokens) - 1
            self.console.print(Text(text, style=ACCEPTED_STYLE if accepted else ""), end="", soft_wrap=True)

    def end(self) -> None:
        self.console.print()


@dataclass
class Decoded:
    """One decoded prompt: its new tokens, text and wall-clock seconds."""

    token_ids: list[int]
    text: str
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return len(self.token_ids) / self.seconds


def chat_inputs(
    tokenizer: PreTrainedTokenizerBase, prompt: str, device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """
    The inputs of one user message, in the tokenizer's chat template where it has one.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        prompt (`str`): The message.
        device (`torch.device`, *optional*): Where to put the tensors.

    Raises:
        ValueError: If the prompt is empty.
    """
    if not prompt.strip():
        raise ValueError("The prompt is empty: give some text to answer.")
    if tokenizer.chat_template is None:
        inputs = tokenizer(prompt, return_tensors="pt")
    else:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    return {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}


def timed_generate(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, torch.Tensor], **kwargs
) -> Decoded:
    """
    `target.generate`, timed.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        inputs (`dict[str, torch.Tensor]`): From [`chat_inputs`].
        kwargs: Passed to `generate`.
    """
    start = time.perf_counter()
    output = target.generate(**inputs, **kwargs)
    if target.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    new = output[0, inputs["input_ids"].shape[1] :].tolist()
    return Decoded(new, tokenizer.decode(new, skip_special_tokens=True), seconds)


def figures_table(rows: list[tuple[str, Decoded, object | None]], title: str) -> Table:
    """
    One line of figures per way of decoding; the first row is what speedups refer to.

    Args:
        rows (`list[tuple[str, Decoded, GenerationTrace | None]]`): Name, result and trace of each.
        title (`str`): Title of the table.
    """
    table = Table(title=title)
    for name in ("decoding", "tokens", "seconds", "tokens/s", "speedup", "acceptance length", "mean window"):
        table.add_column(name, justify="left" if name == "decoding" else "right")
    reference = rows[0][1].tokens_per_second
    for name, decoded, trace in rows:
        table.add_row(
            name,
            str(len(decoded.token_ids)),
            f"{decoded.seconds:.2f}",
            f"{decoded.tokens_per_second:.1f}",
            f"{decoded.tokens_per_second / reference:.2f}x",
            "-" if trace is None else f"{trace.acceptance_length:.2f}",
            "-" if trace is None else f"{trace.mean_window:.2f}",
        )
    return table
