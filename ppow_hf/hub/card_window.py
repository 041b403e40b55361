# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A drafter's own window on its card: in words, and under the names by which a benchmark knows it."""

from __future__ import annotations

from ..evaluation.methods import MIXED_TREE, TREE
from ..generation import WindowConfig


def benchmark_methods(window: WindowConfig) -> tuple[str, ...]:
    """
    What a benchmark of a drafter calls decoding with the drafter's own window. A benchmark keeps that window's limits
    and changes its kind, so that most names say all; it begins every prompt afresh, whatever `carry_over` says.

    Args:
        window ([`WindowConfig`]): The drafter's own.

    Returns:
        `tuple[str, ...]`: Names of one and the same method; none if no method of a benchmark decodes like this.
    """
    # A benchmark's trees and its lookup are cost-aware, all of them.
    if window.policy != "cost_aware" and (window.tree is not None or window.proposals != "drafter"):
        return ()
    if window.tree is not None:
        name = MIXED_TREE if window.proposals == "mixed" else TREE
        return name, f"{name}:{window.tree.max_nodes}"
    if window.proposals != "drafter":
        return (window.proposals,)
    return (f"fixed:{window.size}" if window.policy == "fixed" else window.policy,)


def describe_window(window: WindowConfig) -> str:
    """
    What the window can be, for a reader.

    Args:
        window ([`WindowConfig`]): The drafter's own.
    """
    if window.tree is not None:
        text = _tree(window)
    elif window.proposals == "lookup":
        size = f"always {window.size}" if window.policy == "fixed" else f"up to {window.lookup_size}"
        name = f"lookup:{window.size}" if window.policy == "fixed" else "lookup"
        text = f"`{name}`: {size} looked-up tokens, none of the drafter's"
    elif window.proposals == "mixed":
        name = "`mixed`" if window.policy == "cost_aware" else f"`mixed` with the policy `{window.policy}`"
        text = (
            f"{name}: {_chain(window)} draft tokens, up to {window.lookup_size} looked-up tokens, or both, whichever "
            "is expected to pay most"
        )
    elif window.policy == "fixed":
        text = f"`fixed:{window.size}`: always {window.size} draft tokens"
    else:
        text = f"`{window.policy}`: {_chain(window)} draft tokens"
    if window.carry_over:
        text += "; what a call learns of the text is kept for the next"
    return text


def _chain(window: WindowConfig) -> str:
    """Sizes of a chain of the drafter's own tokens."""
    if window.policy == "fixed":
        return str(window.size)
    # Only the cost-aware policy can leave drafting out for a cycle.
    low = window.min_size if window.policy == "cost_aware" else max(window.min_size, 1)
    return f"{low} to {window.max_size}" if low < window.max_size else str(window.max_size)


def _tree(window: WindowConfig) -> str:
    tree, mixed = window.tree, window.proposals == "mixed"
    name = MIXED_TREE if mixed else TREE
    limits = f"at most {tree.max_depth} deep, {tree.branching} children a node"
    if window.policy == "fixed":
        text = f"`{name}` with the policy `fixed`: always the {tree.max_nodes} likeliest nodes of a draft tree"
    else:
        text = f"`{name}`: a draft tree of up to {tree.max_nodes} nodes"
    if not mixed:
        return f"{text} ({limits})"
    return (
        f"{text}, looked-up tokens among them (the drafter's own {limits}), or up to {window.lookup_size} looked-up "
        "tokens alone"
    )
