# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`TreeConfig`: how large a draft tree may grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

TREE_POLICIES = ("cost_aware", "fixed")


@dataclass
class TreeConfig:
    """
    Limits of a draft tree, in `WindowConfig(tree=...)`. They take the place of the window's `size` and `max_size`.

    Under the `"cost_aware"` policy a tree grows only where it pays; under `"fixed"` it always has the `max_nodes`
    likeliest nodes of `max_depth` levels (EAGLE-2, arXiv 2406.16858).

    Args:
        max_nodes (`int`, *optional*, defaults to 32): Most draft tokens of a tree, looked-up ones in it included, to
            verify in one target pass. With mixed proposals, a pass in which lookup alone proposes verifies a chain of
            up to `lookup_size` tokens of the window instead.
        max_depth (`int`, *optional*, defaults to 8): Most of the drafter's tokens on one path. Looked-up ones may go
            deeper.
        branching (`int`, *optional*, defaults to 4): Most children of a node. With 1 the tree is a chain.
    """

    max_nodes: int = 32
    max_depth: int = 8
    branching: int = 4

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Checks every field. Raises `ValueError` naming the field, what was given and what is accepted."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{field.name}` of the tree must be an integer of at least 1, got {value!r}.")

    def to_dict(self) -> dict[str, int]:
        """Returns a JSON-serialisable dict with every field."""
        return asdict(self)

    @classmethod
    def parse(cls, text: str, base: TreeConfig | None = None) -> TreeConfig:
        """
        Reads the short form, `"tree"` or `"tree:N"` (N = `max_nodes`), or `"mixed_tree"` in place of `"tree"`.

        Args:
            text (`str`): The short form.
            base ([`TreeConfig`], *optional*): Where the other fields come from. Defaults to the default values.

        Raises:
            ValueError: If the text is not of that form.
        """
        base = base if base is not None else cls()
        _, colon, argument = text.strip().partition(":")
        try:
            return replace(base, max_nodes=int(argument)) if colon else base
        except ValueError:
            raise ValueError(
                f"Window {text!r}: expected an integer of at least 1 after the colon, as in 'tree:16'."
            ) from None

    @classmethod
    def coerce(cls, value: TreeConfig | Mapping[str, Any] | bool | None) -> TreeConfig | None:
        """
        Accepts everything that `WindowConfig(tree=...)` accepts.

        Args:
            value: A `TreeConfig`, a dict of its fields, `True` for the default limits, `None` or `False` for a chain.

        Raises:
            ValueError: If the value is of another type, or invalid.
        """
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if isinstance(value, Mapping):
            known = [field.name for field in fields(cls)]
            unknown = sorted(set(value) - set(known))
            if unknown:
                raise ValueError(f"Unknown tree field(s): {', '.join(unknown)}. Known fields: {', '.join(known)}.")
            return cls(**value)
        if not isinstance(value, cls):
            raise ValueError(
                f"`tree` of the window must be a TreeConfig, a dict of its fields, True, or None, got {value!r}."
            )
        value.validate()  # fields may have been assigned since construction
        return value
