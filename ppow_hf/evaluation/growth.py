# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
How cost grows: speed, time to the first token and memory against prompt length and against window size.

Protocol. Greedy, batch 1, one process, exactly `new_tokens` tokens (no token ends the text). Prompts are real text;
those of one repeat end alike at every length. All methods answer a prompt before the next one begins, in an order that
rotates. Memory is measured in calls of its own, which are not timed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..drafters import DrafterModel
from ..whole_files import write_json_whole
from .environment import describe_environment
from .growth_measure import growth_methods, measure_call, measure_memory
from .growth_prompts import prompts_of_lengths
from .growth_rows import growth_exponents, growth_rows
from .memory import parameter_bytes
from .methods import Method, check_methods, parse_method, resolve_assistant
from .precision import content_hash, dtype_name, fingerprint, public_name, settings_hash
from .records import RecordLog
from .runner import padding_token

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
WINDOWS = tuple(range(1, 17))
METHODS = ("target", "prompt_lookup", "stored", "cost_aware")


def measure_growth(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drafter: DrafterModel | None,
    texts: Sequence[str],
    output_dir: str | os.PathLike,
    *,
    methods: Sequence[str] = METHODS,
    lengths: Sequence[int] = LENGTHS,
    windows: Sequence[int] = WINDOWS,
    window_length: int = 256,
    new_tokens: int = 64,
    repeats: int = 3,
    seed: int = 0,
    target_name: str | None = None,
    drafter_name: str | None = None,
    progress: bool = True,
    plots: bool = True,
) -> dict[str, Any]:
    """
    Measures, and writes `growth.json`, `growth.md`, two PNGs and `growth_records.jsonl` into `output_dir`. A run that
    was interrupted goes on where it stopped when it is started again with the same arguments.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        drafter ([`DrafterModel`], *optional*): Needed by our methods and for the windows.
        texts (`Sequence[str]`): Real text for the prompts.
        output_dir (`str` or `os.PathLike`): Created when missing.
        methods (`Sequence[str]`): As in the benchmark, and `stored`: the window the drafter comes with.
        lengths (`Sequence[int]`): Prompt lengths in tokens.
        windows (`Sequence[int]`): Fixed windows to measure at prompts of `window_length`; may be empty.
        window_length (`int`): Prompt length for the windows.
        new_tokens (`int`): Tokens to generate.
        repeats (`int`): Prompts of every length, each of other text. Figures are medians over them.
        seed (`int`): Of the order of the texts.
        target_name, drafter_name (`str`, *optional*): Names for the report; by default taken from the models.
        progress (`bool`): Show progress bars.
        plots (`bool`): Draw the pictures.

    Returns:
        `dict`: the content of `growth.json`.

    Raises:
        ValueError: an argument is not valid, a prompt is longer than the target's positions, there is too little text,
            or `output_dir` holds a run with other arguments.
    """
    lengths, windows = _whole_numbers("lengths", lengths, 1), _whole_numbers("windows", windows, 0)
    for name, value, least in (("new_tokens", new_tokens, 2), ("repeats", repeats, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be a whole number >= {least}, got {value!r}.")
    _check_positions(target, lengths, windows, window_length, new_tokens)
    by_length = growth_methods(methods)
    by_window = [parse_method("target"), *(parse_method(f"fixed:{size}") for size in windows)] if windows else []
    assistant = resolve_assistant(drafter, None)
    check_methods([*by_length, *by_window], target, drafter, assistant)
    wanted = sorted({*lengths, *([window_length] if windows else [])})
    prompts = prompts_of_lengths(tokenizer, texts, wanted, repeats, seed)
    for model in (target, drafter):
        if model is not None:
            model.eval()
    if drafter is not None:
        drafter.bind_target(target)

    arguments = {
        "target": public_name(target, target_name),
        "drafter": public_name(drafter, drafter_name),
        "methods": [method.name for method in by_length],
        "lengths": lengths,
        "windows": windows,
        "window_length": window_length if windows else None,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "seed": seed,
        "dtype": dtype_name(target.dtype),
    }
    environment = describe_environment(target.device)
    identity = {
        **arguments,
        "machine": [environment["device_name"], environment["cpu"], environment["torch_threads"]],
        "versions": environment["versions"],
        "prompts_hash": content_hash([sorted(prompt.items()) for prompt in prompts]),
        "target_hash": fingerprint(target),
        "drafter_hash": fingerprint(drafter),
        "drafter_settings": settings_hash(drafter),
    }
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    log = RecordLog(output_dir / "growth_records.jsonl", identity)
    pad = padding_token(tokenizer)
    sweep = _Sweep(target, drafter, assistant, prompts, new_tokens, pad, log)
    sweep.run([("length", length, by_length) for length in lengths], [("window", window_length, by_window)], progress)

    rows = growth_rows(log.records)
    results = {
        "environment": environment,
        "arguments": arguments,
        "drafter_hash": identity["drafter_hash"],
        "parameters": {
            "target": parameter_bytes(target),
            "drafter": None if drafter is None else parameter_bytes(drafter),
        },
        "rows": rows,
        "exponents": growth_exponents(rows),
    }
    write_json_whole(output_dir / "growth.json", results)
    from .growth_report import write_growth_report

    write_growth_report(results, output_dir, plots=plots)
    return results


class _Sweep:
    """Runs what is not in the log yet."""

    def __init__(self, target, drafter, assistant, prompts, new_tokens, pad, log):
        self.models = (target, drafter, assistant)
        self.prompts: list[dict[int, list[int]]] = prompts
        self.new_tokens: int = new_tokens
        self.pad: int | None = pad
        self.log: RecordLog = log

    def run(self, by_length: list[tuple], by_window: list[tuple], progress: bool) -> None:
        parts = [part for part in (*by_length, *by_window) if part[2]]
        # Repeat after repeat, so that an early look at an unfinished run shows every length.
        jobs = [("time", repeat, *part) for repeat in range(len(self.prompts)) for part in parts]
        jobs += [("memory", 0, *part) for part in parts]
        done = {(r["kind"], r["repeat"], r["part"], r["length"]) for r in self.log.records}
        todo = [(index, job) for index, job in enumerate(jobs) if job[:4] not in done]
        if not todo:
            return
        calls = sum(len(job[4]) for job in jobs)
        left = sum(len(job[4]) for _, job in todo)
        with tqdm(total=calls, initial=calls - left, desc="growth", unit="call", disable=not progress) as bar:
            methods = list({method.name: method for part in parts for method in part[2]}.values())
            shortest = min(self.prompts[0])
            for method in methods:  # kernels, caches, and the cost model where none is stored
                self._call(measure_call, method, 0, shortest)
            for index, (kind, repeat, part, length, methods) in todo:
                bar.set_postfix_str(f"{kind}, {length} tokens, {part}", refresh=True)
                start = index % len(methods)
                found: dict[str, Any] = {}
                for method in methods[start:] + methods[:start]:
                    call = measure_call if kind == "time" else measure_memory
                    found[method.name] = self._call(call, method, repeat, length)
                    bar.update()
                self.log.append({"kind": kind, "repeat": repeat, "part": part, "length": length, "methods": found})

    def _call(self, measure, method: Method, repeat: int, length: int) -> dict[str, Any]:
        input_ids = torch.tensor([self.prompts[repeat][length]], device=self.models[0].device)
        return measure(method, *self.models, input_ids, self.new_tokens, self.pad)


def _whole_numbers(name: str, values: Sequence[int], least: int) -> list[int]:
    values = list(values)
    if len(values) < least or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(f"`{name}` must be whole numbers >= 1{', at least one' if least else ''}; got {values!r}.")
    return sorted(set(values))


def _check_positions(target, lengths, windows, window_length, new_tokens) -> None:
    positions = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    named = [("lengths", max(lengths))] + ([("window_length", window_length)] if windows else [])
    for name, length in named:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"`{name}` must be a whole number >= 1, got {length!r}.")
        if positions is not None and length + new_tokens > positions:
            raise ValueError(
                f"`{name}` asks for a prompt of {length} tokens: with {new_tokens} new ones that is more than the "
                f"target's {positions} positions. Give at most {positions - new_tokens}."
            )
