# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Stopwatches on the parts of a cycle: which function counts as what."""

from __future__ import annotations

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, StoppingCriteriaList

from ..drafters import DrafterModel, Eagle3Drafter, eagle3_step
from ..drafters.growing_cache import GrowingCache
from ..generation import DraftSampler, LookupProposer, PPOWCandidateGenerator
from ..generation import candidate_generator as generator_module
from ..generation import chain_decoding as chains_module
from ..generation import draft_tree as tree_module
from ..generation import lookup_graft as graft_module
from ..generation import tree_decoding as decoding_module
from ..generation.text_end import TextEnd
from ..generation.tree_decoding import TreeDecoding
from ..generation.tree_policy import CostAwareTreePolicy, FixedTreePolicy, TreePolicy
from ..generation.tree_verification import TreeVerifier
from ..generation.window_inputs import WindowInputs

DRAFT, VERIFY, OURS, THEIRS, LOOP = "draft", "verify", "other: ours", "other: transformers", "other"
REST = "Python, dispatch and the rest"
# Module names of a drafter, by the end of their path, and what part of a draft step they are.
_ROLES = {
    "fc": "fc",
    "lm_head": "lm_head",
    "embed_tokens": "embedding",
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "o_proj": "attention",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}


class Stopwatch:
    """
    Time spent in functions, without that of timed functions they call: each part's own.

    Args:
        device (`torch.device`): On a GPU every part is waited for, which slows the whole but says where time goes.
    """

    def __init__(self, device: torch.device):
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._synchronise = torch.cuda.synchronize if device.type == "cuda" else None
        self._open: list[tuple[str, str]] = []
        self._since = 0.0

    def _switch(self) -> None:
        if self._synchronise is not None:
            self._synchronise()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def start(self, phase: str, part: str) -> None:
        """Begins a part; the one that was running waits."""
        self._switch()
        self._open.append((phase, part))

    def stop(self) -> None:
        """Ends the part begun last."""
        self._switch()
        self._open.pop()

    @contextmanager
    def timing(self, phase: str, part: str) -> Iterator[None]:
        """A part as a `with` block."""
        self.start(phase, part)
        try:
            yield
        finally:
            self.stop()

    def watch(self, stack: ExitStack, owner: Any, name: str, phase: str, part: str | Callable[..., str]) -> None:
        """
        Times calls of `owner.name` until `stack` is closed.

        Args:
            stack (`ExitStack`): Puts the function back.
            owner: A class, module or object.
            name (`str`): Of its function.
            phase (`str`), part (`str` or `Callable`): What the time counts as, or a function of its arguments.
        """
        original = getattr(owner, name)
        own = inspect.getattr_static(owner, name) if name in vars(owner) else None

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timing(phase, part if isinstance(part, str) else part(*args)):
                return original(*args, **kwargs)

        setattr(owner, name, timed)
        stack.callback(setattr, owner, name, own) if own is not None else stack.callback(delattr, owner, name)


def watch_chains(stack: ExitStack, watch: Stopwatch, target: PreTrainedModel) -> None:
    """
    Stopwatches on everything but the drafter's insides, where windows are chains.

    Args:
        stack (`ExitStack`): Takes them off.
        watch ([`Stopwatch`]): Adds up their time.
        target ([`~transformers.PreTrainedModel`]): The target.
    """
    _watch_target(stack, watch, target)
    generator = PPOWCandidateGenerator
    for owner, name, part in (
        (generator, "get_candidates", "candidate generator"),
        (generator, "_take_in", "taking in tokens and features"),
        (generator, "update_candidate_strategy", "learning from verification"),
        (generator_module, "draft_window", "window policy and estimates"),
        (generator_module, "window_divergence", "divergence of drafter and target"),
        (DraftSampler, "favourite", "drawing draft tokens"),
        (DraftSampler, "scores", "drawing draft tokens"),
        (DraftSampler, "draw", "drawing draft tokens"),
        (chains_module, "verify_favourites", "choosing the target's tokens"),
        (WindowInputs, "of", "preparing inputs"),
        (WindowInputs, "commit", "preparing inputs"),
    ):
        watch.watch(stack, owner, name, OURS, part)


def watch_trees(stack: ExitStack, watch: Stopwatch, target: PreTrainedModel) -> None:
    """Stopwatches on everything but the drafter's insides, where windows are trees; see [`watch_chains`]."""
    _watch_target(stack, watch, target)
    for owner, name, part in (
        (TreeDecoding, "_remember_prompt", "taking in tokens and features"),
        (TreeDecoding, "_take_in", "taking in tokens and features"),
        (TreeDecoding, "_commit", "committing tokens"),
        (TreeDecoding, "_learn", "learning from verification"),
        (decoding_module, "window_divergence", "divergence of drafter and target"),
        (decoding_module, "grow_tree", "growing the tree"),
        (decoding_module, "tree_inputs", "mask and positions"),
        (decoding_module, "keep_columns", "keeping the accepted path"),
        (decoding_module, "record_tree", "trace"),
        (tree_module, "_choices", "drawing draft tokens"),
        (tree_module, "likeliest", "choosing nodes"),
        (graft_module, "likeliest", "choosing nodes"),
        (TreePolicy, "take", "choosing nodes"),
        (CostAwareTreePolicy, "go_on_from", "choosing nodes"),
        (FixedTreePolicy, "go_on_from", "choosing nodes"),
        (DraftSampler, "scores", "drawing draft tokens"),
        (TreeVerifier, "accept", "choosing the target's tokens"),
    ):
        watch.watch(stack, owner, name, OURS, part)


def _watch_target(stack: ExitStack, watch: Stopwatch, target: PreTrainedModel) -> None:
    """The target's passes, and what both ways of decoding have in common."""

    def before(module: Any, args: Any, kwargs: Any) -> None:
        past = kwargs.get("past_key_values")
        first = past is None or past.get_seq_length() == 0
        watch.start("prefill" if first else VERIFY, "target")

    def after(module: Any, args: Any, output: Any) -> None:
        watch.stop()

    stack.callback(target.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove)
    stack.callback(target.register_forward_hook(after).remove)
    for name in ("propose", "learn"):
        watch.watch(stack, LookupProposer, name, OURS, "lookup")
    watch.watch(stack, TextEnd, "extend", OURS, "end of the text")

    def defines(name: str) -> type:
        # Where it is inherited from: a class with a method of its own is decoded another way.
        return next(kind for kind in type(target).__mro__ if name in vars(kind))

    prepares, updates = "prepare_inputs_for_generation", "_update_model_kwargs_for_generation"
    for owner, name, part in (
        (defines(prepares), prepares, "preparing inputs"),
        (defines(updates), updates, "preparing inputs"),
        (DynamicCache, "crop", "cropping the cache"),
        (StoppingCriteriaList, "__call__", "stopping criteria"),
    ):
        watch.watch(stack, owner, name, THEIRS, part)


def watch_drafter(stack: ExitStack, watch: Stopwatch, drafter: DrafterModel) -> None:
    """
    Stopwatches on the parts of a draft step.

    Args:
        stack (`ExitStack`): Takes them off.
        watch ([`Stopwatch`]): Adds up their time.
        drafter ([`DrafterModel`]): The drafter.
    """
    for name in ("extend", "step", "step_tree"):
        watch.watch(stack, drafter, name, DRAFT, REST)
    watch.watch(stack, drafter, "keep_path", OURS, "keeping the accepted path")
    for name in ("update", "crop"):
        watch.watch(stack, GrowingCache, name, DRAFT, "cache")
    roles = {}
    for path, module in drafter.named_modules():
        role = _ROLES.get(path.rpartition(".")[2])
        if role is None and "norm" in path.rpartition(".")[2].lower():
            role = "norm"
        if role is not None:
            roles[module] = role
    if isinstance(drafter, Eagle3Drafter) and eagle3_step.single_sequence_step(drafter) is not None:
        step = eagle3_step.Eagle3Step
        watch.watch(stack, eagle3_step, "_product", DRAFT, lambda linear, *_: roles[linear])
        watch.watch(stack, drafter, "project_features", DRAFT, "fc")
        for name, part in (("_embed", "embedding"), ("_norm", "norm"), ("_attend", "attention")):
            watch.watch(stack, step, name, DRAFT, part)
        for name in ("_rotate", "_angles"):
            watch.watch(stack, step, name, DRAFT, "rotary embedding")
        # Levels of several nodes take the long way. A hook on a module would close the short one.
        watch.watch(stack, drafter, "_decode", DRAFT, "layer, several nodes")
        watch.watch(stack, drafter, "_head", DRAFT, "lm_head, several nodes")
        return
    # Modules are called as they are: hooks see them all.
    for module, role in roles.items():
        stack.callback(
            module.register_forward_pre_hook(lambda *_, role=role: watch.start(DRAFT, role), prepend=True).remove
        )
        stack.callback(module.register_forward_hook(lambda *_: watch.stop()).remove)
