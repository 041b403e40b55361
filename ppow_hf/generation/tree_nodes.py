# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a draft tree consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

TEXT = -1  # stands for the committed text where a node's index is expected
LOOKED_UP = -1  # rank of a child that is not the drafter's


@dataclass(slots=True)
class DraftNode:
    """
    A draft token in its place.

    Args:
        token (`int`): Target id.
        parent (`int`): Index of the node it follows; `TEXT` for the first level.
        level (`int`): Nodes above it.
        rank (`int`): Its place among the drafter's children of its parent, from 0: by probability, or as drawn;
            `LOOKED_UP` for a token that lookup alone proposes.
        gain (`float`): Estimated chance that it is accepted together with all nodes above it.
        estimate (`float`, *optional*): Acceptance estimate given its parent; `None` for later children.
        looked_up (`bool`, *optional*, defaults to `False`): Whether lookup proposes it, alone or with the drafter.
        column (`int`, *optional*): Its column in the drafter's cache, behind the text's, if it was gone on from.
    """

    token: int
    parent: int
    level: int
    rank: int
    gain: float
    estimate: float | None
    looked_up: bool = False
    column: int | None = None


def path_tokens(nodes: Sequence[DraftNode], node: int) -> list[int]:
    """Tokens from the text to a node, itself included."""
    path = []
    while node != TEXT:
        path.append(nodes[node].token)
        node = nodes[node].parent
    return path[::-1]


@dataclass(slots=True)
class Expansion:
    """
    What the drafter said behind one node (or the text).

    Args:
        level (`int`), row (`int`): Where its draft distribution is in [`DraftTree.scores`].
        estimate (`float`): Estimated chance that its most probable (or first drawn) child is accepted.
        confidence (`float`): Draft probability of the most probable child.
        features (`tuple[float, ...]`): What the estimate was made from.
        shares (`list[float]`): Of each later child, its estimated chance where the ones before it are rejected.
        excluded (`int`, *optional*): A looked-up token that the children were drawn without.
    """

    level: int
    row: int
    estimate: float
    confidence: float
    features: tuple[float, ...]
    shares: list[float]
    excluded: int | None = None


@dataclass
class DraftTree:
    """
    A draft tree, as it is verified.

    Args:
        nodes (`list[DraftNode]`): Every node behind its parent, the children of a node in the order in which they are
            tried, and the path of first children in front.
        expansions (`dict[int, Expansion]`): By node (`TEXT`: the committed text), where the drafter was asked.
        children (`dict[int, list[int]]`): By node, those that have any.
        scores (`list[torch.Tensor]`): Processed draft logits of every level, each `(rows, width)`.
        steps (`list[int]`): Nodes fed to each of the drafter's passes; that of `extend` counts as one.
        stop (`str`): Why the tree ends: `"limit"`, `"policy"`, `"eos"`, `"no_support"`, `"length"`.
    """

    nodes: list[DraftNode] = field(default_factory=list)
    expansions: dict[int, Expansion] = field(default_factory=dict)
    children: dict[int, list[int]] = field(default_factory=dict)
    scores: list[torch.Tensor] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    stop: str = "limit"

    @property
    def tokens(self) -> list[int]:
        """Target ids of all nodes."""
        return [node.token for node in self.nodes]

    @property
    def depth(self) -> int:
        """Nodes of the longest path."""
        return max((node.level + 1 for node in self.nodes), default=0)

    def drafted_below(self, node: int) -> int:
        """Children of a node that are the drafter's first, second, and so on, without a gap."""
        ranks = {self.nodes[child].rank for child in self.children.get(node, ())}
        return next(rank for rank in range(len(ranks) + 1) if rank not in ranks)

    def draft_scores(self, node: int) -> torch.Tensor:
        """Processed draft logits behind a node that the drafter was asked about, `(1, width)`."""
        expansion = self.expansions[node]
        return self.scores[expansion.level][expansion.row : expansion.row + 1]

    @classmethod
    def chain(cls, tokens: Sequence[int], predicted: Sequence[float]) -> DraftTree:
        """
        A tree of looked-up tokens alone, one behind the other.

        Args:
            tokens (`Sequence[int]`): Target ids.
            predicted (`Sequence[float]`): Of each, its estimated acceptance, given that those before it are accepted.
        """
        tree, gain = cls(), 1.0
        for level, (token, estimate) in enumerate(zip(tokens, predicted, strict=True)):
            gain *= estimate
            tree.nodes.append(DraftNode(token, level - 1, level, LOOKED_UP, gain, estimate, looked_up=True))
        tree.children = {level - 1: [level] for level in range(len(tree.nodes))}
        return tree
