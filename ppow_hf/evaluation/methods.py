# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The decoding methods a benchmark compares, and what each asks of `generate`."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from ..drafters import AutoDrafter, CausalLMDrafter
from ..generation import WindowConfig
from ..generation.drafter_window import stored_window

PLAIN = "target"
ADAPTIVE_WINDOWS = ("heuristic", "confidence", "divergence", "cost_aware")
# Windows that lookup fills, alone or taking turns with the drafter, under the cost-aware policy.
LOOKUP_WINDOWS = ("lookup", "mixed")
# Draft trees: the drafter's alone, and with looked-up tokens in them.
TREE = "tree"
MIXED_TREE = "mixed_tree"
TREES = (TREE, MIXED_TREE)
METHOD_NAMES = (
    PLAIN,
    "prompt_lookup",
    "prompt_lookup:N",
    "hf_dynamic",
    "hf_heuristic",
    "hf_constant",
    "fixed:K",
    *ADAPTIVE_WINDOWS,
    *LOOKUP_WINDOWS,
    TREE,
    f"{TREE}:N",
    MIXED_TREE,
    f"{MIXED_TREE}:N",
)
# `METHOD@NAME`: a window of another drafter of the benchmark, the one of that name.
AT = "@"
DRAFTER_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
DEFAULT_METHODS = (PLAIN, "prompt_lookup", "fixed:3", "fixed:5", "fixed:8", "cost_aware")

# transformers' own assisted generation. `hf_dynamic` is its default (stop drafting below 40% confidence), the other
# two switch that threshold off. "heuristic_transient" is the "heuristic" rule started afresh for every prompt: with
# the persistent form a prompt's result would depend on the prompts before it, and so on where a run was interrupted.
ASSISTANT_OPTIONS: dict[str, dict[str, Any]] = {
    "hf_dynamic": {
        "num_assistant_tokens": 20,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.4,
    },
    "hf_heuristic": {
        "num_assistant_tokens": 5,
        "num_assistant_tokens_schedule": "heuristic_transient",
        "assistant_confidence_threshold": 0.0,
    },
    "hf_constant": {
        "num_assistant_tokens": 5,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    },
}
PROMPT_LOOKUP_OPTIONS = {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 2}


class MethodError(ValueError):
    """A method is unknown, or cannot run with the given drafter or assistant."""


@dataclass(frozen=True)
class Method:
    """
    One decoding method.

    Args:
        name (`str`): As written on the command line, for example `"fixed:5"` or `"fixed:5@cst"`.
        kind (`"plain"`, `"prompt_lookup"`, `"assistant"` or `"window"`):
            Plain `generate`; n-gram lookup in the prompt; transformers' assisted generation with an ordinary causal
            LM; our generator with one of the window policies, or with lookup.
        options (`dict`): Generation settings of the assistant or of the lookup.
        drafter (`str`, *optional*): Which of the benchmark's other drafters it is the window of; None for its own one.
    """

    name: str
    kind: Literal["plain", "prompt_lookup", "assistant", "window"]
    options: dict[str, Any] = field(default_factory=dict)
    drafter: str | None = None

    @contextmanager
    def generate_kwargs(self, drafter: nn.Module | None, assistant: nn.Module | None) -> Iterator[dict[str, Any]]:
        """
        Keyword arguments of `target.generate` for this method. Settings that transformers reads from the assistant's
        generation config are put there for the duration of the context and taken back afterwards.
        """
        if self.kind == "plain":
            yield {}
        elif self.kind == "prompt_lookup":
            yield dict(self.options)
        elif self.kind == "window":
            yield {"assistant_model": drafter, "window": self._window(drafter)}
        else:
            config = assistant.generation_config
            saved = {name: getattr(config, name) for name in self.options}
            try:
                for name, value in self.options.items():
                    setattr(config, name, value)
                yield {"assistant_model": assistant}
            finally:
                for name, value in saved.items():
                    setattr(config, name, value)

    @property
    def is_chain(self) -> bool:
        """Whether every cycle drafts one window, token by token: what a cost model's window curve speaks of."""
        return self.kind == "window" and self.base not in LOOKUP_WINDOWS and not self.base.startswith(TREES)

    @property
    def base(self) -> str:
        """The name without that of the drafter."""
        return self.name.partition(AT)[0]

    def _window(self, drafter: nn.Module) -> WindowConfig:
        # The drafter's own window (its limits, its calibrated estimate) with another policy, not a default one.
        own = stored_window(drafter)
        # Nothing of a prompt before: the order of prompts must not matter.
        own = replace(own, carry_over=False, proposals="drafter")
        if self.base.startswith(TREES):
            return WindowConfig.parse(self.base, own)
        own = replace(own, tree=None)
        if self.base in LOOKUP_WINDOWS:
            return replace(own, policy="cost_aware", proposals=self.base)
        policy, _, size = self.base.partition(":")
        return replace(own, policy=policy, **({"size": int(size)} if size else {}))


def parse_method(name: str) -> Method:
    """A [`Method`] from its name; raises [`MethodError`] naming the valid ones."""
    if isinstance(name, str) and AT in name:
        base, _, drafter = name.partition(AT)
        method = parse_method(base)
        if method.kind != "window":
            raise MethodError(f"Method {name!r}: {base!r} is no window of a drafter; leave out `@{drafter}`.")
        if not DRAFTER_NAME.fullmatch(drafter):
            raise MethodError(f"Method {name!r}: after `@` comes the name of a drafter, for example `{base}@cst`.")
        return replace(method, name=name, drafter=drafter)
    if name == PLAIN:
        return Method(name, "plain")
    if name == "prompt_lookup":
        return Method(name, "prompt_lookup", dict(PROMPT_LOOKUP_OPTIONS))
    if name in ASSISTANT_OPTIONS:
        return Method(name, "assistant", dict(ASSISTANT_OPTIONS[name]))
    if name in ADAPTIVE_WINDOWS or name in LOOKUP_WINDOWS or name in TREES:
        return Method(name, "window")
    kind, colon, size = name.partition(":") if isinstance(name, str) else ("", "", "")
    if colon and kind in ("fixed", "prompt_lookup", *TREES):
        if size.isascii() and size.isdigit() and int(size) >= 1 and str(int(size)) == size:
            if kind == "prompt_lookup":
                return Method(name, kind, {**PROMPT_LOOKUP_OPTIONS, "prompt_lookup_num_tokens": int(size)})
            return Method(name, "window")
        number = "K in `fixed:K`" if kind == "fixed" else f"N in `{kind}:N`"
        raise MethodError(f"Method {name!r}: {number} must be a whole number >= 1, for example `{kind}:5`.")
    raise MethodError(f"Unknown method {name!r}. Pass any of {', '.join(METHOD_NAMES)} (K, N whole numbers).")


def is_own_fixed(name: str) -> bool:
    """Whether a method is a fixed window of the benchmark's own drafter."""
    return name.startswith("fixed:") and AT not in name


def parse_methods(names: Sequence[str]) -> list[Method]:
    """The methods of a benchmark: plain `generate` first (every speedup is relative to it), no method twice."""
    if isinstance(names, str):
        names = names.split(",")
    if not names:
        raise MethodError(f"`methods` is empty. Pass any of {', '.join(METHOD_NAMES)} (K a whole number).")
    methods = [parse_method(PLAIN)]
    for name in names:
        method = parse_method(name.strip() if isinstance(name, str) else name)
        if method not in methods:
            methods.append(method)
    return methods


def load_assistant(path: str | os.PathLike, target: PreTrainedModel) -> PreTrainedModel:
    """
    The causal LM of the hf_* methods, from a folder or the Hub: a causal LM's own, or a [`CausalLMDrafter`]'s.

    Args:
        path (`str` or `os.PathLike`): Where it is.
        target ([`~transformers.PreTrainedModel`]): Whose dtype and device it gets.

    Raises:
        OSError: If there is none, or its weights are missing or cannot be read.
        ValueError: If its weights do not fit, or it is a drafter without a causal LM.
    """
    try:
        drafter = AutoDrafter.from_pretrained(path, dtype=target.dtype)
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"`assistant` is {os.fspath(path)!r}, which cannot be loaded. {error}") from error
    if not isinstance(drafter, CausalLMDrafter):
        raise ValueError(
            f"`assistant` is {os.fspath(path)!r}, a {type(drafter).__name__}, which is no causal LM: transformers' "
            "own assisted generation cannot draft with it. Give a causal LM or a CausalLMDrafter, or leave out the "
            "hf_* methods."
        )
    return drafter.model.to(target.device)


def resolve_assistant(drafter: nn.Module | None, assistant: nn.Module | None) -> nn.Module | None:
    """
    The ordinary causal LM that transformers' own assisted generation can use: the given `assistant`, or the causal LM
    inside a [`CausalLMDrafter`]; None when there is none.
    """
    if assistant is not None:
        return assistant
    inner = getattr(drafter, "model", None)
    return inner if _is_causal_lm(inner) else None


def check_methods(
    methods: Sequence[Method],
    target: nn.Module,
    drafter: nn.Module | None,
    assistant: nn.Module | None,
    others: Mapping[str, nn.Module] | None = None,
) -> None:
    """Raise [`MethodError`] for the first method that cannot run with what was given, saying what to pass."""
    others = others or {}
    for name in others:
        if not DRAFTER_NAME.fullmatch(name):
            raise MethodError(
                f"`other_drafters` has the name {name!r}. Use letters, digits, `_`, `-` and `.`, for example `cst`."
            )
    for method in methods:
        if method.drafter is not None:
            if method.drafter not in others:
                known = f" Known: {', '.join(others)}." if others else ""
                raise MethodError(
                    f"Method {method.name!r} is a window of the drafter {method.drafter!r}, which was not given: pass "
                    f"it in `other_drafters` (`--drafter {method.drafter}=PATH_OR_REPO`).{known}"
                )
            check_methods([replace(method, name=method.base, drafter=None)], target, others[method.drafter], None)
        elif method.kind == "window":
            if drafter is None:
                raise MethodError(
                    f"Method {method.name!r} needs a drafter: pass `drafter` (`--drafter PATH_OR_REPO`)."
                )
            if not hasattr(drafter, "make_candidate_generator"):
                raise MethodError(
                    f"Method {method.name!r} needs a ppow-hf drafter, got {type(drafter).__name__}. Wrap a causal LM "
                    "in a CausalLMDrafter, or pass it as `assistant` and use the hf_* methods."
                )
        elif method.kind == "assistant":
            if assistant is None:
                raise MethodError(
                    f"Method {method.name!r} is transformers' own assisted generation and needs an ordinary causal "
                    f"LM; {'no drafter' if drafter is None else type(drafter).__name__} is none. Pass a small causal "
                    "LM with the target's tokenizer as `assistant` (`--assistant PATH_OR_REPO`), or a "
                    "CausalLMDrafter as `drafter`, or leave the method out."
                )
            if not _is_causal_lm(assistant):
                raise MethodError(
                    f"Method {method.name!r}: `assistant` must be a causal LM that can generate, got "
                    f"{type(assistant).__name__}."
                )
            theirs = assistant.config.get_text_config().vocab_size
            ours = target.config.get_text_config().vocab_size
            if theirs != ours:
                raise MethodError(
                    f"Method {method.name!r}: `assistant` has {theirs} token ids and the target {ours}. Pass an "
                    "assistant with the target's tokenizer."
                )


def _is_causal_lm(model: Any) -> bool:
    return (
        isinstance(model, nn.Module)
        and callable(getattr(model, "can_generate", None))
        and model.can_generate()
        and getattr(model, "generation_config", None) is not None
    )
