# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`WindowConfig`: how many tokens the drafter proposes before the target verifies them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from transformers.utils import logging

from .acceptance import DEFAULT_WEIGHTS, check_weights
from .tree_config import TREE_POLICIES, TreeConfig

logger = logging.get_logger(__name__)

WINDOW_POLICIES = ("cost_aware", "divergence", "confidence", "heuristic", "fixed")
WINDOW_PROPOSALS = ("drafter", "lookup", "mixed")
DIVERGENCE_METRICS = ("tv", "kl")
# The policies that read a field, of those that not all read.
_READ_BY = {
    "size": ("fixed", "heuristic", "divergence"),
    "min_size": ("cost_aware", "divergence", "confidence", "heuristic"),
    "max_size": ("cost_aware", "divergence", "confidence", "heuristic"),
    "threshold": ("confidence",),
    "grow": ("heuristic",),
    "shrink": ("heuristic",),
    "stretch": ("divergence",),
    "initial_rate": ("cost_aware",),
    "rate_memory": ("cost_aware",),
}
# What the short text form may name besides a policy.
_PROPOSAL_FORMS, _TREE_FORMS = ("lookup", "mixed"), ("tree", "mixed_tree")


def _integer(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"`{name}` of the window must be an integer of at least {low}, got {value!r}.")
    return value


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    valid = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not valid or value < low or value > high or (open_low and value == low):
        interval = f"{'(' if open_low else '['}{low}, {high}]"
        raise ValueError(f"`{name}` of the window must be a number in {interval}, got {value!r}.")
    return float(value)


@dataclass
class WindowConfig:
    r"""
    Policy and limits of the speculative window.

    It lives in the drafter's generation config (`drafter.generation_config.window`, saved in `generation_config.json`)
    and can be replaced for one call: `target.generate(**inputs, assistant_model=drafter, window="fixed:5")`.

    Args:
        policy (`str`, *optional*, defaults to `"cost_aware"`):
            - `"cost_aware"`: draw and verify a token only while its chance of being accepted pays for its measured
              cost, at the running rate of tokens per unit cost.
            - `"divergence"`: the running divergence between drafter and target shrinks and stretches the window.
            - `"confidence"`: stop after keeping a token to which the drafter gave less than `threshold`.
            - `"heuristic"`: `grow` more tokens after a fully accepted window, `shrink` fewer otherwise.
            - `"fixed"`: always `size` tokens.
        size (`int`, *optional*, defaults to 5):
            The window of `"fixed"`, and the first window of `"heuristic"` and `"divergence"`.
        min_size (`int`, *optional*, defaults to 1):
            Smallest window. `0` lets `"cost_aware"` skip drafting for a cycle; the other adaptive policies draft at
            least one token, and `"fixed"` ignores it.
        max_size (`int`, *optional*, defaults to 12):
            Largest window of the adaptive policies. `"fixed"` ignores it.
        threshold (`float`, *optional*, defaults to 0.4):
            Draft probability below which `"confidence"` stops.
        grow (`int`, *optional*, defaults to 2), shrink (`int`, *optional*, defaults to 1):
            Steps of `"heuristic"`.
        divergence_metric (`str`, *optional*, defaults to `"tv"`):
            `"tv"` (total variation) or `"kl"` (KL divergence of the drafter from the target), for the running value.
        divergence_decay (`float`, *optional*, defaults to 0.8):
            Weight of the past in the running divergence, per verified position. In [0, 1).
        stretch (`float`, *optional*, defaults to 1.5):
            Window of `"divergence"` relative to the expected run of accepted tokens.
        online_calibration (`bool`, *optional*, defaults to `True`):
            Whether the acceptance estimate learns from this call's verification outcomes.
        calibration (`dict`, *optional*):
            Prior weights of the acceptance estimate, from [`fit_calibration`]; `None` for the built-in ones.
        initial_rate (`float`, *optional*, defaults to 1.4):
            Committed tokens per unit cost that `"cost_aware"` assumes before it has seen any.
        rate_memory (`float`, *optional*, defaults to 40.0):
            Cost, in plain target steps, over which the running rate of `"cost_aware"` is averaged.
        tree ([`TreeConfig`] or `dict` or `bool`, *optional*):
            Draft a tree instead of a chain, within these limits (`True`: the default ones), which then replace `size`
            and `max_size`. With `"cost_aware"` or `"fixed"`.
        proposals (`str`, *optional*, defaults to `"drafter"`):
            - `"drafter"`: the drafter proposes.
            - `"lookup"`: what followed the last time the text read like this; no drafter runs. With `policy="fixed"`
              always `size` tokens, otherwise as many as pay.
            - `"mixed"`: per cycle whichever is expected to commit most tokens per unit of cost: the drafter, lookup,
              or lookup and the drafter behind it. With a `tree`, lookup (a chain of up to `lookup_size` tokens, which
              may be more than the tree's `max_nodes`), or the drafter's tree with looked-up tokens in it.
        lookup_size (`int`, *optional*, defaults to 24):
            Most looked-up tokens in a window.
        carry_over (`bool`, *optional*, defaults to `False`):
            Whether what a call learns of the text (acceptance, rates, divergence) is where the next call with this
            window, drafter and target begins. `drafter.reset_adaptation()` forgets it.
    """

    policy: str = "cost_aware"
    size: int = 5
    min_size: int = 1
    max_size: int = 12
    threshold: float = 0.4
    grow: int = 2
    shrink: int = 1
    divergence_metric: str = "tv"
    divergence_decay: float = 0.8
    stretch: float = 1.5
    online_calibration: bool = True
    calibration: dict | None = None
    initial_rate: float = 1.4
    rate_memory: float = 40.0
    tree: TreeConfig | None = None
    proposals: str = "drafter"
    lookup_size: int = 24
    carry_over: bool = False

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Checks every field. Raises `ValueError` naming the field, what was given and what is accepted."""
        if self.policy not in WINDOW_POLICIES:
            raise ValueError(
                f"Unknown window policy {self.policy!r}. Choose one of: {', '.join(WINDOW_POLICIES)} "
                '(for a fixed window of 5 tokens write "fixed:5").'
            )
        self.size = _integer("size", self.size, 1)
        self.min_size = _integer("min_size", self.min_size, 0)
        self.max_size = _integer("max_size", self.max_size, 1)
        if self.policy != "fixed" and not self.min_size <= self.max_size:
            raise ValueError(
                f"`min_size` of the window ({self.min_size}) must not exceed `max_size` ({self.max_size}). "
                "Lower `min_size` or raise `max_size`."
            )
        self.threshold = _number("threshold", self.threshold, 0.0, 1.0)
        self.grow = _integer("grow", self.grow, 0)
        self.shrink = _integer("shrink", self.shrink, 0)
        if self.divergence_metric not in DIVERGENCE_METRICS:
            raise ValueError(
                f"`divergence_metric` of the window must be one of {', '.join(DIVERGENCE_METRICS)}, got "
                f"{self.divergence_metric!r}."
            )
        self.divergence_decay = _number("divergence_decay", self.divergence_decay, 0.0, 0.999)
        self.stretch = _number("stretch", self.stretch, 0.0, 100.0, open_low=True)
        if not isinstance(self.online_calibration, bool):
            raise ValueError(f"`online_calibration` of the window must be a bool, got {self.online_calibration!r}.")
        self._check_calibration()
        self.initial_rate = _number("initial_rate", self.initial_rate, 0.0, 1000.0, open_low=True)
        self.rate_memory = _number("rate_memory", self.rate_memory, 0.0, 1e9, open_low=True)
        self.tree = TreeConfig.coerce(self.tree)
        if self.tree is not None and self.policy not in TREE_POLICIES:
            raise ValueError(
                f"`tree` of the window works with the policies {' and '.join(TREE_POLICIES)}, got {self.policy!r}. "
                "Choose one of them, or leave `tree` out."
            )
        if self.proposals not in WINDOW_PROPOSALS:
            raise ValueError(
                f"`proposals` of the window must be one of {', '.join(WINDOW_PROPOSALS)}, got {self.proposals!r}."
            )
        if self.tree is not None and self.proposals == "lookup":
            raise ValueError(
                "`tree` of the window needs `proposals='drafter'` or `'mixed'`, got 'lookup': lookup alone proposes "
                "chains. Leave one of them out."
            )
        self.lookup_size = _integer("lookup_size", self.lookup_size, 1)
        if not isinstance(self.carry_over, bool):
            raise ValueError(f"`carry_over` of the window must be a bool, got {self.carry_over!r}.")

    def _check_calibration(self) -> None:
        calibration = self.calibration
        if calibration is None:
            return
        if not isinstance(calibration, dict) or calibration.keys() - DEFAULT_WEIGHTS.keys():
            raise ValueError(
                "`calibration` of the window must be None or a dict with weights from `fit_calibration` under "
                f"{' or '.join(map(repr, DEFAULT_WEIGHTS))}, got {calibration!r}."
            )
        for mode, weights in calibration.items():
            check_weights(weights, mode)

    @property
    def limit(self) -> int:
        """`int`: The largest window this configuration can ask for."""
        return self.size if self.policy == "fixed" else self.max_size

    @property
    def needs_costs(self) -> bool:
        """`bool`: Whether a [`CostModel`] is needed: to stop where drafting no longer pays, or to choose proposals."""
        if self.policy == "cost_aware" or self.proposals == "mixed":
            return True
        return self.proposals == "lookup" and self.policy != "fixed"

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-serialisable dict with every field (transformers calls this for `generation_config.json`)."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"tree": self.tree.to_dict() if self.tree is not None else None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WindowConfig:
        """
        Rebuilds a configuration from [`WindowConfig.to_dict`].

        Raises:
            ValueError: On an unknown field or an invalid value.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"Unknown window field(s): {', '.join(unknown)}. Known fields: {', '.join(known)}.")
        return cls(**values)

    def _warn_of_unread(self, given: Mapping[str, Any]) -> None:
        """Warns, once, of fields that were given to say something, and say nothing under this policy."""
        unread = [name for name, read_by in _READ_BY.items() if name in given and self.policy not in read_by]
        if self.tree is not None:
            unread = list(dict.fromkeys([*unread, *({"size", "max_size"} & set(given))]))
        # All fields together come from `to_dict`: nobody means every one of them.
        if unread and len(given) < len(fields(self)):
            kind = "a tree" if self.tree is not None else f"the policy {self.policy!r}"
            logger.warning_once(
                f"`window` sets {', '.join(f'`{name}`' for name in sorted(unread))}, which {kind} does not read. Name "
                'the policy that does beside it, as in {"policy": "fixed", "size": 3} (or "fixed:3").'
            )

    @classmethod
    def parse(cls, text: str, base: WindowConfig | None = None) -> WindowConfig:
        """
        Reads the short form used on command lines.

        Args:
            text (`str`): A policy name, or `"fixed:K"` / `"heuristic:K"` / `"divergence:K"` (K = `size`), or
                `"confidence:T"` (T = `threshold`), or `"cost_aware:K"` (K = `max_size`): chains, all of them. `"tree"`
                or `"tree:N"` (N = `max_nodes`) for a tree, `"mixed_tree"` or `"mixed_tree:N"` for one with looked-up
                tokens; where lookup alone proposes in place of such a tree, it is a chain of up to `lookup_size`
                tokens, whatever N. `"mixed"` for mixed proposals with the policy of `base`, `"lookup"` for lookup
                alone, `"lookup:K"` for always K looked-up tokens.
            base ([`WindowConfig`], *optional*): Where the other fields come from. Defaults to the default values.

        Returns:
            [`WindowConfig`]: Where the text names a policy, with the drafter's own proposals.

        Raises:
            ValueError: If the text is not of that form.
        """
        base = base if base is not None else cls()
        policy, colon, argument = text.strip().partition(":")
        if policy in _PROPOSAL_FORMS:
            return cls._parse_proposals(text, base)
        # Naming a policy asks for the drafter under that policy.
        if policy in _TREE_FORMS:
            proposals = "mixed" if policy == "mixed_tree" else "drafter"
            tree = TreeConfig.parse(text, base.tree)
            return replace(base, policy="cost_aware", tree=tree, proposals=proposals)
        base = replace(base, tree=None, proposals="drafter")
        if policy not in WINDOW_POLICIES:
            known = ", ".join((*WINDOW_POLICIES, *_PROPOSAL_FORMS, *_TREE_FORMS))
            raise ValueError(
                f'Unknown window policy {policy!r}. Write one of: {known} (for a fixed window of 5 tokens "fixed:5").'
            )
        if not colon:
            return replace(base, policy=policy)
        name = {"confidence": "threshold", "cost_aware": "max_size"}.get(policy, "size")
        try:
            value = float(argument) if name == "threshold" else int(argument)
        except ValueError:
            kind, example = ("a number", "confidence:0.4") if name == "threshold" else ("an integer", f"{policy}:5")
            raise ValueError(f"Window {text!r}: expected {kind} after the colon, as in {example!r}.") from None
        changes: dict[str, Any] = {"policy": policy, name: value}
        if name == "max_size":
            changes["min_size"] = min(base.min_size, max(value, 0))
        elif name == "size":
            changes["max_size"] = max(base.max_size, value)
        return replace(base, **changes)

    @classmethod
    def _parse_proposals(cls, text: str, base: WindowConfig) -> WindowConfig:
        proposals, colon, argument = text.strip().partition(":")
        if proposals == "mixed" and not colon:
            return replace(base, proposals="mixed", tree=None)
        if proposals == "lookup" and not colon:
            return replace(base, proposals="lookup", policy="cost_aware", tree=None)
        if proposals == "lookup" and argument.isascii() and argument.isdigit():
            return replace(base, proposals="lookup", policy="fixed", size=int(argument), tree=None)
        raise ValueError(f"Window {text!r}: expected 'mixed', 'lookup', or an integer as in 'lookup:10'.")

    @classmethod
    def coerce(
        cls, value: WindowConfig | Mapping[str, Any] | str | None, base: WindowConfig | None = None
    ) -> WindowConfig:
        """
        Accepts everything that `window=` accepts.

        Args:
            value: A `WindowConfig`, a dict of its fields, its short text form, or `None`.
            base ([`WindowConfig`], *optional*): What `None` stands for, and where a short text form takes its other
                fields from, and a dict that names no `policy`: `{"carry_over": True}` is this window with that field.
                A dict with a `policy` begins with the default values, as a `WindowConfig` does; without a
                `calibration` both take that of `base`.

        Raises:
            ValueError: If the value is of another type, or invalid.
        """
        if value is None:
            return base if base is not None else cls()
        if isinstance(value, str):
            return cls.parse(value, base)
        if isinstance(value, Mapping):
            amended = base is not None and "policy" not in value
            given, value = value, cls.from_dict({**(base.to_dict() if amended else {}), **value})
            if base is not None:
                value._warn_of_unread(given)
        if not isinstance(value, cls):
            raise ValueError(
                "`window` must be a WindowConfig, a dict of its fields, a text such as 'fixed:5', or None, got "
                f"{value!r}."
            )
        value.validate()  # fields may have been assigned since construction
        if value.calibration is None and base is not None and base.calibration is not None:
            value = replace(value, calibration=base.calibration)
        return value
