# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Drafters compared on the same texts of their target: acceptance length with bootstrap intervals (ours)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from transformers import PreTrainedModel

from ..drafters import DrafterModel
from .replay import replay_texts

MEAN = "mean"


@dataclass
class PromptOutcome:
    """Cycles of one prompt, all its turns together; when sampling, their expected number."""

    suite: str
    committed: int
    verifications: float


@dataclass
class AcceptanceFigure:
    """
    Acceptance length of a drafter on a suite.

    Args:
        suite (`str`): Its name, or `"mean"` for the mean over suites.
        prompts (`int`): Number of prompts.
        acceptance_length (`float`): tau, bonus token included: committed tokens over verifications, all prompts.
        low, high (`float`): 95% bootstrap interval over prompts.
        difference (`float`, *optional*): tau minus the baseline's on the same prompts; `None` for the baseline.
        difference_low, difference_high (`float`, *optional*): Its 95% interval, prompts resampled in pairs.
    """

    suite: str
    prompts: int
    acceptance_length: float
    low: float
    high: float
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None

    def to_dict(self) -> dict:
        """Returns a JSON-serialisable dict."""
        return asdict(self)


def responses_of(row: Mapping) -> list[tuple[list[int], int]]:
    """
    The target's responses in a row written by [`~ppow_hf.data.generate_responses`].

    Args:
        row (`Mapping`): With `input_ids` and `loss_mask` (1 on the target's own tokens).

    Returns:
        `list[tuple[list[int], int]]`: For each turn the token ids up to its end, and where its response begins.
    """
    ids, mask = list(row["input_ids"]), [0, *row["loss_mask"], 0]
    begins = [i for i in range(1, len(mask)) if mask[i] and not mask[i - 1]]
    ends = [i for i in range(1, len(mask)) if mask[i - 1] and not mask[i]]
    return [(ids[: end - 1], begin - 1) for begin, end in zip(begins, ends, strict=True)]


def measure_acceptance(
    target: PreTrainedModel,
    drafters: Mapping[str, DrafterModel],
    rows: Iterable[Mapping],
    window_sizes: Sequence[int],
    temperature: float = 0.0,
    progress: bool = False,
) -> dict[str, dict[int, list[PromptOutcome]]]:
    """
    Replays drafters on rows of responses.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target that wrote them.
        drafters (`Mapping[str, DrafterModel]`): The drafters by name.
        rows (`Iterable[Mapping]`): With `input_ids`, `loss_mask` and `source`, the suite.
        window_sizes (`Sequence[int]`): Draft tokens per window.
        temperature (`float`, *optional*, defaults to 0.0): The responses were drawn at: 0 for greedy ones, else
            without top-k or top-p.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

    Returns:
        `dict[str, dict[int, list[PromptOutcome]]]`: By drafter and window size, one per row.
    """
    rows = list(rows)
    parts = [responses_of(row) for row in rows]
    texts = [text for part in parts for text in part]
    replayed = replay_texts(target, drafters, texts, window_sizes, temperature, progress)
    outcomes: dict[str, dict[int, list[PromptOutcome]]] = {}
    for name, by_size in replayed.items():
        outcomes[name] = {}
        for size, cycles in by_size.items():
            rest = iter(cycles)
            of_prompts = ([next(rest) for _ in part] for part in parts)
            outcomes[name][size] = [
                PromptOutcome(row["source"], sum(t.committed for t in turns), sum(t.verifications for t in turns))
                for row, turns in zip(rows, of_prompts, strict=True)
            ]
    return outcomes


def acceptance_figures(
    outcomes: Mapping[str, Sequence[PromptOutcome]],
    baseline: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, list[AcceptanceFigure]]:
    """
    Acceptance lengths with 95% percentile bootstrap intervals, and differences to a baseline.

    Args:
        outcomes (`Mapping[str, Sequence[PromptOutcome]]`): Per drafter, the same prompts in the same order.
        baseline (`str`, *optional*): Drafter to compare the others with.
        resamples (`int`, *optional*, defaults to 10000): Bootstrap resamples. The same prompts are drawn for every
            drafter, so that differences are paired.
        seed (`int`, *optional*, defaults to 0): Of the resampling.

    Returns:
        `dict[str, list[AcceptanceFigure]]`: Per drafter, one figure per suite and, for several, their mean.

    Raises:
        ValueError: If drafters saw different prompts, a suite has no cycles, or the baseline is unknown.
    """
    if baseline is not None and baseline not in outcomes:
        raise ValueError(f"`baseline` is {baseline!r}, but there are outcomes of {sorted(outcomes)} only.")
    orders = {tuple(o.suite for o in part) for part in outcomes.values()}
    if len(orders) != 1 or not next(iter(orders)):
        raise ValueError(
            "`outcomes` must hold the same prompts, in the same order and at least one, for all drafters."
        )
    order = np.array(next(iter(orders)))
    suites = list(dict.fromkeys(order.tolist()))
    rng = np.random.default_rng(seed)
    draws = {s: rng.integers(0, n, (resamples, n)) for s in suites for n in [int((order == s).sum())]}

    points: dict[str, dict[str, float]] = {}
    samples: dict[str, dict[str, np.ndarray]] = {}
    for name, part in outcomes.items():
        points[name], samples[name] = {}, {}
        for suite in suites:
            table = np.array([(o.committed, o.verifications) for o in part if o.suite == suite], dtype=float)
            if table[:, 1].sum() == 0:
                raise ValueError(f"No cycle of {name!r} on {suite!r}: its responses are too short to draft for.")
            points[name][suite] = table[:, 0].sum() / table[:, 1].sum()
            drawn = table[draws[suite]].sum(axis=1)
            samples[name][suite] = drawn[:, 0] / np.maximum(drawn[:, 1], 1)
        if len(suites) > 1:
            points[name][MEAN] = float(np.mean([points[name][s] for s in suites]))
            samples[name][MEAN] = np.mean([samples[name][s] for s in suites], axis=0)

    figures: dict[str, list[AcceptanceFigure]] = {}
    for name in outcomes:
        figures[name] = []
        for suite, point in points[name].items():
            low, high = np.percentile(samples[name][suite], [2.5, 97.5])
            count = len(order) if suite == MEAN else int((order == suite).sum())
            figure = AcceptanceFigure(suite, count, float(point), float(low), float(high))
            if baseline is not None and name != baseline:
                gap = samples[name][suite] - samples[baseline][suite]
                figure.difference = float(point - points[baseline][suite])
                figure.difference_low, figure.difference_high = map(float, np.percentile(gap, [2.5, 97.5]))
            figures[name].append(figure)
    return figures
