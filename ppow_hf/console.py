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

from .drafters import DrafterModel
from .generation import GenerationTrace

ACCEPTED_STYLE = "green"


class MarkedStreamer(BaseStreamer):
    """
    Prints text as it is committed; accepted draft tokens in green, the target's own in the plain colour.

    `put` receives the prompt, then the target's first token, then one cycle after another: the accepted draft tokens
    and, last, the target's own token, unless the text ended on a draft token.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        console ([`~rich.console.Console`]): Where to print.
        drafter ([`DrafterModel`]): The drafter of the call; its `last_trace` says what the last token was.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, console: Console, drafter: DrafterModel):
        self.tokenizer = tokenizer
        self.console = console
        self.drafter = drafter
        self._reset()

    def _reset(self) -> None:
        self._prompt_seen = False
        self._last: list[int] = []  # the last token of the last `put`, whose colour is known when the cycle is over
        # What a token adds to the text depends on the token before it: many tokenizers drop the space in front of
        # what they decode. So tokens are decoded with those printed last, and only the difference is printed.
        self._ids: list[int] = []
        self._whole = 0  # how many of them end in whole characters that were printed
        self._printed = 0  # how many characters of their text were printed

    def put(self, value: torch.Tensor) -> None:
        tokens = value.reshape(-1).tolist()
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._print(self._last)
        self._print(tokens[:-1], ACCEPTED_STYLE)
        self._last = tokens[-1:]

    def end(self) -> None:
        trace = self.drafter.last_trace
        drafted = trace is not None and trace.cycles and trace.cycles[-1].bonus is None
        self._print(self._last, ACCEPTED_STYLE if drafted else "", flush=True)
        self.console.print()
        self._reset()

    def _print(self, token_ids: list[int], style: str = "", flush: bool = False) -> None:
        """Prints what these tokens add to the text; `flush` also what is left of a character never completed."""
        self._ids += token_ids
        text = self._decode(self._ids)
        # A character may be split over several tokens: what is there of it decodes to replacement characters.
        end = len(text) if flush else max(self._printed, len(text.rstrip("\N{REPLACEMENT CHARACTER}")))
        self.console.print(Text(text[self._printed : end], style=style), end="", soft_wrap=True)
        if self._printed < end == len(text):
            # Enough to decode what follows; with the whole text, long answers would take ever longer to print.
            self._ids = self._ids[self._whole :]
            self._whole, end = len(self._ids), len(self._decode(self._ids))
        self._printed = end

    def _decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)


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


def figures_table(rows: list[tuple[str, Decoded, GenerationTrace | None]], title: str) -> Table:
    """
    One line of figures per way of decoding; the first row is what speedups refer to. One alone has none.

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
            f"{decoded.tokens_per_second / reference:.2f}x" if len(rows) > 1 else "-",
            figure(trace and trace.acceptance_length),
            figure(trace and trace.mean_window),
        )
    return table


def figure(value: float | None) -> str:
    """A figure as a table shows it: `-` where there is none, as of a text that ended before the first window."""
    return "-" if value is None else f"{value:.2f}"
