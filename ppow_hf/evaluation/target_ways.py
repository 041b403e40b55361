# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What prepacking or compiling the target is worth: the same texts with the target as it is and changed, in turns."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..drafters import DrafterModel, prepack_weights
from ..generation import CostModel
from .markdown import environment_list, table, times
from .measure import Generation, measure_generation
from .methods import Method, check_methods, parse_methods


def prepacked_copy(target: PreTrainedModel) -> PreTrainedModel:
    """
    A copy of a target with prepacked weights.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target; left as it is.

    Raises:
        ValueError: If there is nothing to prepack.
    """
    own = copy.deepcopy(target)
    if not prepack_weights(own):
        raise ValueError(
            f"No layer of `{type(target).__name__}` in {str(target.dtype).removeprefix('torch.')} on "
            f"{target.device.type} can be prepacked: that takes bfloat16 on a CPU that computes in it."
        )
    return own


def compiled_copy(target: PreTrainedModel, backend: str | Callable = "inductor") -> PreTrainedModel:
    """
    A copy of a target whose forward pass is compiled for any length: the cache grows with every pass.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target; left as it is.
        backend (`str` or `Callable`, *optional*, defaults to `"inductor"`): Of `torch.compile`.
    """
    own = copy.deepcopy(target)
    own.forward = torch.compile(own.forward, dynamic=True, backend=backend)
    return own


WAYS: dict[str, Callable[[PreTrainedModel], PreTrainedModel]] = {"prepack": prepacked_copy, "compile": compiled_copy}


@dataclass
class WayOfMethod:
    """
    One decoding method with the target as it is and changed.

    Args:
        method (`str`): As for `ppow bench`.
        way (`str`): How the target was changed.
        prompts (`int`), tokens (`int`): What was decoded, either way.
        as_is (`float`), changed (`float`): Tokens per second, medians over prompts.
        ratio (`float`): Median over prompts of changed over as it is.
        first_seconds (`float`): What the first text took longer than the second time it was decoded, costs measured.
        identical (`int`): Prompts whose text is the same.
    """

    method: str
    way: str
    prompts: int
    tokens: int
    as_is: float
    changed: float
    ratio: float
    first_seconds: float
    identical: int


def compare_ways(
    target: PreTrainedModel,
    drafter: DrafterModel,
    prompts: Sequence[torch.LongTensor],
    methods: Sequence[str],
    ways: dict[str, Callable[[PreTrainedModel], PreTrainedModel]] = WAYS,
    *,
    max_new_tokens: int = 64,
    pad_token_id: int | None = None,
) -> list[WayOfMethod]:
    """
    Decodes prompts greedily with a target and with changed copies of it, in turns, after a first text for each.

    Args:
        target ([`~transformers.PreTrainedModel`]), drafter ([`DrafterModel`]): The models.
        prompts (`Sequence[torch.LongTensor]`): Prompts, each `(1, length)`.
        methods (`Sequence[str]`): As for `ppow bench`; plain decoding is always one.
        ways (`dict[str, Callable]`, *optional*): What gives a changed copy of the target, by name. Default: prepacked
            and compiled.
        max_new_tokens (`int`, *optional*, defaults to 64): New tokens per prompt.
        pad_token_id (`int`, *optional*): Handed to `generate`.

    Returns:
        `list[WayOfMethod]`: One for every way and method.

    Raises:
        ValueError: If there is no prompt, a method cannot run, or there is nothing to prepack.
        RuntimeError: If the first text with a changed target fails.
    """
    if not prompts:
        raise ValueError("`prompts` is empty: give at least one.")
    chosen = parse_methods(methods)
    check_methods(chosen, target, drafter, None)
    models = {"": target, **{name: change(target) for name, change in ways.items()}}

    def decode(model: PreTrainedModel, method: Method, input_ids: torch.LongTensor) -> Generation:
        return measure_generation(
            method, model, drafter, None, input_ids, max_new_tokens=max_new_tokens, pad_token_id=pad_token_id
        )

    first: dict[tuple[str, str], float] = {}
    for way, model in tqdm(models.items(), desc="first texts", unit="way"):
        for method in chosen:
            if method.kind == "window":
                CostModel.for_models(model, drafter)  # not part of a text
            try:
                seconds = decode(model, method, prompts[0]).seconds
            except Exception as error:
                raise RuntimeError(
                    f"Decoding `{method.name}` with `{way or 'as it is'}` failed with {type(error).__name__}: "
                    f"{error}. To compile, torch needs a C++ compiler (on a GPU, Triton)."
                ) from error
            first[way, method.name] = seconds - decode(model, method, prompts[0]).seconds
    runs: dict[tuple[str, str], list[Generation]] = {key: [] for key in first}
    names = list(models)
    for turn, input_ids in enumerate(tqdm(prompts, desc="decoding", unit="prompt")):
        for method in chosen:
            for i in range(len(names)):
                way = names[(turn + i) % len(names)]
                runs[way, method.name].append(decode(models[way], method, input_ids))
    return [
        _summary(method.name, way, runs["", method.name], runs[way, method.name], first[way, method.name])
        for way in ways
        for method in chosen
    ]


def _summary(
    method: str, way: str, as_is: Sequence[Generation], changed: Sequence[Generation], first_seconds: float
) -> WayOfMethod:
    speeds = [[len(run.tokens) / run.seconds for run in runs] for runs in (as_is, changed)]
    return WayOfMethod(
        method=method,
        way=way,
        prompts=len(as_is),
        tokens=sum(len(run.tokens) for run in as_is),
        as_is=statistics.median(speeds[0]),
        changed=statistics.median(speeds[1]),
        ratio=statistics.median(new / old for old, new in zip(*speeds, strict=True)),
        first_seconds=first_seconds,
        identical=sum(a.tokens == b.tokens for a, b in zip(as_is, changed, strict=True)),
    )


def render_ways(content: dict[str, Any]) -> str:
    """
    The report.

    Args:
        content (`dict`): `environment`, `arguments` (`prompts`, `num_prompts`, `max_new_tokens`, `dtype`) and `rows`,
            of [`ways_rows`].

    Returns:
        `str`: Markdown.
    """
    arguments = content["arguments"]
    text = (
        "prepack: `ppow_hf.prepack_weights(target)`. compile: `torch.compile` on its forward pass, for any length. In "
        f"turns on {arguments['num_prompts']} prompts of {', '.join(arguments['prompts'])}, "
        f"{arguments['max_new_tokens']} new tokens, temperature 0, {arguments['dtype']}; medians over prompts. "
        "EAGLE-3 drafters prepack themselves in any case. Windows follow the costs of the target, so that in a narrow "
        "dtype near-ties between two tokens can fall otherwise with another window: plain decoding shows whether the "
        "numbers are the same."
    )
    rows = [WayOfMethod(**row) for row in content["rows"]]
    parts = ["# The target as it is, prepacked, compiled", text, ways_table(rows)]
    return "\n\n".join([*parts, environment_list(content["environment"])]) + "\n"


def ways_table(rows: Sequence[WayOfMethod]) -> str:
    """The result as a table."""
    header = ["target", "method", "tok/s as it is", "tok/s so", "so over as it is", "first text, extra s", "same text"]
    lines = [
        [
            row.way,
            f"`{row.method}`",
            f"{row.as_is:.1f}",
            f"{row.changed:.1f}",
            times(row.ratio),
            f"{row.first_seconds:.1f}",
            f"{row.identical} of {row.prompts}",
        ]
        for row in rows
    ]
    return table(header, lines)


def ways_rows(rows: Sequence[WayOfMethod]) -> list[dict[str, Any]]:
    """The result as JSON-serialisable values."""
    return [asdict(row) for row in rows]
