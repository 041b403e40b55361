# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A draft tree in the trace."""

from __future__ import annotations

from collections.abc import Sequence

from .trace import Cycle
from .tree_nodes import TEXT, DraftTree


def record_tree(cycle: Cycle, tree: DraftTree, path: Sequence[int], judged: Sequence[int]) -> None:
    """
    Writes a tree into the trace: the accepted path first, so that the accepted tokens stand in front as in a chain.

    Args:
        cycle ([`Cycle`]): The record.
        tree ([`DraftTree`]): What was verified.
        path (`Sequence[int]`): Accepted nodes.
        judged (`Sequence[int]`): Nodes (`TEXT`: the text) one of whose children was accepted or all rejected.
    """
    accepted = set(path)
    order = [*path, *(i for i in range(len(tree.nodes)) if i not in accepted)]
    looked_up = [tree.nodes[i].estimate for i in order if tree.nodes[i].looked_up]
    places = {TEXT: TEXT} | {node: place for place, node in enumerate(order)}
    cycle.drafted, cycle.accepted, cycle.depth, cycle.stop = len(order), len(path), tree.depth, cycle.stop or tree.stop
    cycle.looked_up = len(looked_up)
    if looked_up:
        cycle.source = "mixed" if tree.expansions else "lookup"
    cycle.tokens = [tree.nodes[node].token for node in order]
    cycle.parents = [places[tree.nodes[node].parent] for node in order]
    first = set(judged)
    asked = [*judged, *(node for node in tree.expansions if node in tree.children and node not in first)]
    said = [tree.expansions[node] for node in asked]
    cycle.predicted = [*looked_up, *(expansion.estimate for expansion in said)]
    cycle.confidence = [expansion.confidence for expansion in said]
    cycle.features = [expansion.features for expansion in said]
