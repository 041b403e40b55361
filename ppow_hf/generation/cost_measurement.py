# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Measuring a [`CostModel`] on the real models and device."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import Cache, GenerationConfig
from transformers.utils import logging

from ..drafters.growing_cache import grow_in_place
from ..drafters.learned_positions import learned_positions
from ..drafters.target_features import gather_features
from .changing_rope import changing_ropes
from .cost_model import CostModel, is_plausible, isotonic
from .drafter_window import stored_window
from .key_sharing import shared_keys
from .stored_costs import cost_model_key
from .tree_checks import drafts_trees
from .tree_policy import MOST_ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..drafters import DrafterModel

logger = logging.get_logger(__name__)

# Verification is measured at these windows and interpolated between them.
_WINDOWS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# Largest window that is measured by default: the nodes of a tree of default size, and on a GPU, where a large pass
# costs little more than a small one, twice as many.
_LARGEST, _LARGEST_ON_GPU = 32, 64
# Most times that a curve is measured which another load on the machine has spoilt.
_ATTEMPTS = 3
# Tokens of the generation that tells the work around models.
_GENERATED = 12
# Draft steps that are timed one after another.
_STEPS = 4
# Numbers of nodes at which a draft step for a tree's level is measured.
_LEVELS = (2, MOST_ROWS)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def measure_cost_model(
    target: PreTrainedModel,
    drafter: DrafterModel,
    *,
    max_window: int | None = None,
    repetitions: int = 7,
    context_length: int = 128,
) -> CostModel:
    """
    Times the real models on their device and dtype: a plain target step, verification of several windows with a warm
    cache and the drafter's features captured, a draft step for one token, and for several if the drafter drafts trees,
    and the work around them in a short generation. Repetitions are interleaved and medians taken, so that a passing
    load on the machine falls on all alike.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
        max_window (`int`, *optional*): Largest verified window. By default 32, on a GPU 64, or as many nodes as the
            drafter's own tree may have if that is more.
        repetitions (`int`, *optional*, defaults to 7): Timings of each kind.
        context_length (`int`, *optional*, defaults to 128): Tokens in the cache.

    Returns:
        [`CostModel`], with its `key`. Where verifying `n` tokens seems to cost more than the `n + 1` plain steps that
        do the same, something else kept the machine busy: all is measured anew, up to twice, and the least taken. If
        that does not help, those costs are cut to `n + 1`, a warning says so, and there is no `key`.

    Raises:
        ValueError: If an argument is out of range, or drafter and target do not fit.
    """
    for name, value in (("max_window", max_window), ("repetitions", repetitions)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    positions = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    if max_window is None:
        max_window = _largest_window(target, drafter)
        if positions:
            max_window = max(1, min(max_window, positions // 2))
    if positions:
        context_length = min(context_length, positions - max_window - 2)
    if context_length < 2:
        raise ValueError(
            f"`max_window` ({max_window}) leaves no room for a context of the target's {positions} tokens."
        )
    if (end := getattr(drafter, "max_positions", None)) is not None:
        context_length = min(context_length, end - 1 - _STEPS)
        if context_length < 2:
            raise ValueError(f"`drafter` has {end} positions, too few to measure it. Use one with more.")
    drafter.bind_target(target)
    timings = None
    for attempt in range(_ATTEMPTS):
        # Where the usual repetition was disturbed, one that was not will do.
        summary = min if attempt else statistics.median
        with shared_keys(target.device):
            timed = _time_forwards(target, drafter, max_window, repetitions, context_length, summary)
        timings = timed if timings is None else _least(timings, timed)
        verify, plain, draft, levels = timings
        windows = sorted(verify)
        smooth = isotonic([verify[n] for n in windows])
        unit = smooth[0]
        curve = _interpolated(windows, [value / unit for value in smooth])
        if plausible := is_plausible(curve):
            break
    if not plausible:
        curve = [min(value, n + 1.0) for n, value in enumerate(curve)]
        logger.warning(
            "Something else kept this machine busy while costs were measured: verifying n tokens seemed to cost more "
            "than n + 1 plain target steps, which is what is assumed now. Measure again with `ppow calibrate` on an "
            "idle machine."
        )
    overhead = _measure_overhead(target, drafter, context_length) if target.can_generate() else 0.0
    return CostModel(
        gamma=draft / unit,
        verify_curve=curve,
        overhead=overhead / unit,
        target_step_seconds=plain,
        key=cost_model_key(target, drafter) if plausible else None,
        level_costs=_level_costs(draft, levels) if levels else None,
    )


# Seconds of verification per window, of a plain target step, of a draft step, and of one per level.
_Timings = tuple[dict[int, float], float, float, dict[int, float]]


def _least(timings: _Timings, others: _Timings) -> _Timings:
    """The lower of two measurements of everything: what else the machine does only adds to it."""
    (verify, plain, draft, levels), (verify2, plain2, draft2, levels2) = timings, others
    return (
        {n: min(seconds, verify2[n]) for n, seconds in verify.items()},
        min(plain, plain2),
        min(draft, draft2),
        {n: min(seconds, levels2[n]) for n, seconds in levels.items()},
    )


def _largest_window(target: PreTrainedModel, drafter: DrafterModel) -> int:
    """Most tokens that decoding with this drafter verifies at once, unless a call asks for more."""
    tree = stored_window(drafter).tree
    usual = _LARGEST if target.device.type == "cpu" else _LARGEST_ON_GPU
    return max(usual, tree.max_nodes if tree is not None else 0)


def _level_costs(draft: float, levels: dict[int, float]) -> list[float]:
    """`level_costs` of a [`CostModel`], of the seconds of a draft step for one node and for several."""
    (few, for_few), (many, for_many) = sorted(levels.items())
    each = max(for_many - for_few, 0.0) / (many - few) / draft
    return [max(for_few / draft - 1.0 - each * (few - 1), 0.0), each]


def _time_forwards(
    target: PreTrainedModel,
    drafter: DrafterModel,
    max_window: int,
    repetitions: int,
    context_length: int,
    summary: Callable[[list[float]], float],
) -> _Timings:
    """What `summary` makes of the repetitions."""
    device = target.device
    layer_ids = list(drafter.feature_layer_ids)
    generator = torch.Generator().manual_seed(0)
    vocab_size = target.config.get_text_config().vocab_size
    ids = torch.randint(vocab_size, (1, context_length + max_window + 2), generator=generator).to(device)
    capture = {"output_hidden_states": layer_ids} if layer_ids else {}
    keep = {"logits_to_keep": max_window + 1} if target._supports_logits_to_keep() else {}

    output = target(ids[:, :context_length], use_cache=True, **capture, **keep)
    cache = output.past_key_values
    plain_cache = copy.deepcopy(cache)
    grow_in_place(cache)
    for own in (cache, plain_cache):
        own.activate_past_recording()
        own.crop(0)
    state = drafter.new_state()
    features = gather_features(output.hidden_states, layer_ids).to(drafter.device) if layer_ids else None
    draft_ids = ids.to(drafter.device)
    drafter.extend(state, draft_ids[:, : context_length + 1], features)
    hidden = state.hidden

    def timed(work) -> float:
        _synchronise(device)
        start = time.perf_counter()
        work()
        _synchronise(device)
        return time.perf_counter() - start

    def run_target(n: int, cache: Cache, **kwargs) -> None:
        position_ids = torch.arange(context_length, context_length + n, device=device)[None]
        inputs = ids[:, context_length : context_length + n]
        target(inputs, position_ids=position_ids, past_key_values=cache, use_cache=True, **kwargs, **keep)

    windows = sorted({n for n in _WINDOWS if n < max_window} | {max_window})
    verify: dict[int, list[float]] = {n: [] for n in windows}
    plain, draft = [], []
    levels: dict[int, list[float]] = {n: [] for n in _LEVELS if drafts_trees(drafter)}
    # The extra repetition warms up: kernels, caches, the frequency of the processor.
    for repetition in range(repetitions + 1):
        for n in windows:
            seconds = timed(lambda n=n: run_target(n + 1, cache, **capture))
            cache.crop(-(n + 1))
            if repetition:
                verify[n].append(seconds)
        seconds = timed(lambda: run_target(1, plain_cache))
        plain_cache.crop(-1)
        if repetition:
            plain.append(seconds)
        for i in range(_STEPS):
            token = draft_ids[:, context_length + i]
            seconds = timed(lambda token=token: drafter.step(state, token))
            if repetition:
                draft.append(seconds)
        state.drop_draft()
        for n, timings in levels.items():
            # The state that the first level of a tree goes on from is that of the text alone, as `extend` leaves it.
            state.hidden = hidden
            tokens = draft_ids[0, :1].expand(n)
            seconds = timed(lambda tokens=tokens: drafter.step_tree(state, tokens, [0] * len(tokens)))
            state.drop_draft()
            if repetition:
                timings.append(seconds)
        state.hidden = hidden
    by_window, by_level = ({n: summary(v) for n, v in timings.items()} for timings in (verify, levels))
    return by_window, summary(plain), summary(draft), by_level


def _measure_overhead(target: PreTrainedModel, drafter: DrafterModel, context_length: int) -> float:
    """Median seconds per cycle that are neither draft nor verification, from a short generation."""
    from .hook import attached

    # Within the positions of both, and where the target's frequencies stay as they are.
    tables = (learned_positions(target), getattr(drafter, "max_positions", None))
    ends = [end for end in tables if end is not None] + [limit for _, limit in changing_ropes(target)]
    context_length = max(1, min(context_length, 32, *(end - _GENERATED for end in ends)))
    generator = torch.Generator().manual_seed(1)
    vocab_size = target.config.get_text_config().vocab_size
    ids = torch.randint(vocab_size, (1, context_length), generator=generator).to(target.device)
    previous, defaults = drafter.last_trace, target.generation_config
    # Greedy, and nothing of what the target's own defaults ask for: a call may have taken that back.
    target.generation_config = GenerationConfig(do_sample=False, max_new_tokens=_GENERATED, pad_token_id=0)
    try:
        with attached(target):
            target.generate(ids, assistant_model=drafter, window="fixed:3")
        others = [cycle.seconds["other"] for cycle in drafter.last_trace.cycles[1:]]
    finally:
        drafter.last_trace, target.generation_config = previous, defaults
    return statistics.median(others) if others else 0.0


def _interpolated(windows: list[int], values: list[float]) -> list[float]:
    curve = []
    for low, high, a, b in zip(windows, windows[1:], values, values[1:], strict=False):
        curve += [a + (b - a) * (n - low) / (high - low) for n in range(low, high)]
    return [*curve, values[-1]]
