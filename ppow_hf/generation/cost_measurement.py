# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Measuring a [`CostModel`] on the real models and device, and finding a stored one."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import Cache, GenerationConfig
from transformers.utils import logging

from ..drafters.growing_cache import grow_in_place
from ..drafters.learned_positions import learned_positions
from ..drafters.prepacking import is_prepacked
from ..drafters.target_features import gather_features
from ..whole_files import write_text_whole
from .changing_rope import changing_ropes
from .cost_model import COST_MODEL_FILE, CostModel, is_plausible, isotonic
from .drafter_window import stored_window
from .key_sharing import shared_keys
from .tree_checks import drafts_trees
from .tree_policy import MOST_ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..drafters import DrafterModel

logger = logging.get_logger(__name__)

# Part of what names a stored cost model: raise it whenever drafting or the work around it becomes cheaper or dearer.
_REVISION = 4
# Verification is measured at these windows and interpolated between them.
_WINDOWS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# Largest window that is measured by default: the nodes of a tree of default size, and on a GPU, where a large pass
# costs little more than a small one, twice as many.
_LARGEST, _LARGEST_ON_GPU = 32, 64
# Folder within a drafter's for what decoding keeps there, as the Hub's own downloads have one.
_OWN_CACHE = ".cache/ppow_hf"
# Most times that a curve is measured which another load on the machine has spoilt.
_ATTEMPTS = 3
# Tokens of the generation that tells the work around models.
_GENERATED = 12
# Draft steps that are timed one after another.
_STEPS = 4
# Numbers of nodes at which a draft step for a tree's level is measured.
_LEVELS = (2, MOST_ROWS)


@lru_cache
def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _identity(target: PreTrainedModel, drafter: DrafterModel) -> str:
    """Short hash of what determines the costs: our own code, both architectures and their sizes, not their weights."""
    text_config = target.config.get_text_config()
    names = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    facts = [getattr(text_config, name, None) for name in names]
    facts.append(_REVISION)
    facts += [type(drafter).__name__, sum(p.numel() for p in drafter.parameters()), list(drafter.feature_layer_ids)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _is_compiled(model: PreTrainedModel) -> bool:
    """Whether `torch.compile` has been there, on the module or on its forward pass. Private marks of torch's."""
    return model._compiled_call_impl is not None or hasattr(model.forward, "_torchdynamo_orig_callable")


def cost_model_key(target: PreTrainedModel, drafter: DrafterModel) -> str:
    """
    Names the circumstances a cost model is valid in: device, dtypes, library versions, and the sizes of both models.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.
    """
    device = target.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} {_cpu_name()} x{torch.get_num_threads()}"
    dtypes = f"{str(target.dtype).removeprefix('torch.')}/{str(drafter.dtype).removeprefix('torch.')}"
    if is_prepacked(target):
        dtypes += ", target prepacked"
    if _is_compiled(target):
        dtypes += ", target compiled"
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    return " | ".join((name, dtypes, versions, _identity(target, drafter)))


def _folder(drafter: DrafterModel) -> Path | None:
    """The folder that a drafter was loaded from."""
    source = getattr(drafter, "name_or_path", None) or drafter.config._name_or_path
    return Path(source) if source and os.path.isdir(source) else None


def _in_cache() -> Path:
    from ..targets import cache_dir

    return cache_dir() / COST_MODEL_FILE


def find_cost_model(target: PreTrainedModel, drafter: DrafterModel) -> CostModel:
    """
    The cost model of these models on this machine: remembered, stored beside the drafter or in the user's cache, or
    measured now (about a second for a small model) and stored in both for the next time.

    Beside a drafter they lie in `.cache/ppow_hf/`, which tells Git to leave it out and is not published. Its
    `cost_model.json` itself, which is published and stated on its card, is written only for who asks for it, with
    `ppow calibrate --drafter FOLDER` or [`CostModel.save`], and goes before all others. The user's cache knows costs
    by the sizes of the models and not by a path, so that the drafters a training writes one after another, and copies
    of them, are measured once, all together; the folder knows them where the cache is gone, as in a container.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter.

    Returns:
        [`CostModel`].
    """
    key = cost_model_key(target, drafter)
    remembered = drafter.__dict__.setdefault("_cost_models", {})
    if key in remembered:
        return remembered[key]
    found = stored_cost_model(target, drafter)
    if found is None:
        found = measure_cost_model(target, drafter)
        kept = _store(found, drafter) if found.key else "Not stored: they are measured again in the next process."
        logger.warning(
            f"Measured the costs of this drafter on this machine: draft step {found.gamma:.3f}, verification of 4 "
            f"tokens {found.verify(4):.3f}, overhead {found.overhead:.3f} of a target step of "
            f"{1000 * found.target_step_seconds:.1f} ms. {kept}"
        )
    remembered[key] = found
    return found


def stored_cost_model(target: PreTrainedModel, drafter: DrafterModel) -> CostModel | None:
    """
    The cost model of these models on this machine, if one is stored beside the drafter or in the user's cache. A file
    that cannot be read is passed over with a warning, and so are costs that cannot be; nothing is measured.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter, in the dtype that it decodes in.
    """
    key = cost_model_key(target, drafter)
    folder, places = _folder(drafter), [_in_cache()]
    if folder is not None:
        places = [folder / COST_MODEL_FILE, *places, folder / _OWN_CACHE / COST_MODEL_FILE]
    for place in places:
        try:
            found = CostModel.load(place, key)
        except (ValueError, OSError) as error:
            logger.warning(f"Ignoring a stored cost model: {error}")
            continue
        if found is not None and is_plausible(found.verify_curve):
            return found
        if found is not None:
            logger.warning(
                f"Ignoring the cost model stored in `{place}`: it was measured while something else kept the machine "
                "busy, so that verifying n tokens seems to cost more than n + 1 plain target steps."
            )
    return None


def _store(cost_model: CostModel, drafter: DrafterModel) -> str:
    """Stores costs in the user's cache and, for a drafter from a folder, beside it. Returns in words where."""
    folder, stored = _folder(drafter), []
    try:
        stored.append(f"`{cost_model.save(_in_cache())}`")
    except OSError:
        pass
    if folder is not None:
        try:
            stored.append(f"`{cost_model.save(folder / _OWN_CACHE)}`")
            write_text_whole(folder / _OWN_CACHE / ".gitignore", "*\n")
        except OSError:
            pass
    if not stored:
        return "They could not be stored; set PPOW_HF_CACHE to a writable folder."
    return f"Stored in {' and '.join(stored)}."


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
