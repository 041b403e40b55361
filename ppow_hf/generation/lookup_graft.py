# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Looked-up tokens in a draft tree (ours): one path of it, which drafted tokens branch off from and go on behind.

Level by level the path's next token becomes a child of the node it has reached. Where the drafter was asked about that
node, the two are judged together: a token both propose is one node, likelier than either says alone, and whatever the
one thinks likely leaves less to the other. When the drafter is asked no more, the path goes on as far as it pays: it
costs nothing but its verification.

Sampling stays lossless: a looked-up token is the first of its siblings to be tried, and the drafter's are drawn from
what it leaves of the draft distribution. Whether it is in the tree is settled before its siblings are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .tree_nodes import LOOKED_UP, TEXT, DraftNode
from .tree_policy import TreePolicy

# Log-odds of a looked-up token about which the drafter was asked: constant, weight of the log-odds of lookup's own
# estimate, and weight of the log-odds of its draft probability. Fitted to 785 looked-up tokens in responses of a 135M
# instruction-tuned model, on prompts outside the benchmarks, with a one-layer EAGLE-3 drafter: their log loss is 0.41,
# that of lookup's own estimates 0.53, and that of the larger of the two estimates 0.45.
_GREEDY = (0.78, 0.73, 0.44)
_SAMPLING = (0.3, 0.6, 0.4)
_SMALLEST = 1e-4
_LEAST_SHARE = 0.01  # below it, how little the drafter thinks of a token says nothing more


class LookedUp(NamedTuple):
    """Where the path's next token stands: a row of the draft distributions, and a column if the drafter knows it."""

    row: int
    column: int | None


def joint_estimate(estimate: float, share: float, sampling: bool = False) -> float:
    """
    Args:
        estimate (`float`): Lookup's estimate of the acceptance of a token.
        share (`float`): The token's draft probability.
        sampling (`bool`, *optional*, defaults to `False`): Whether the target samples.

    Returns:
        `float`: Estimated chance that the token is accepted, given both.
    """
    constant, own, other = _SAMPLING if sampling else _GREEDY
    z = constant + own * _log_odds(estimate) + other * _log_odds(max(share, _LEAST_SHARE))
    return 1.0 / (1.0 + math.exp(-z))


def _log_odds(probability: float) -> float:
    probability = min(max(probability, _SMALLEST), 1.0 - _SMALLEST)
    return math.log(probability / (1.0 - probability))


class LookupGraft:
    """
    The looked-up path of one growing tree.

    Args:
        tokens (`Sequence[int]`, *optional*): Looked-up tokens, as target ids; nothing behind an end of text.
        predicted (`Sequence[float]`, *optional*): Of each, lookup's estimate, given that those before it are accepted.
        sampling (`bool`, *optional*, defaults to `False`): Whether the target samples.
        columns (`Mapping[int, int]`, *optional*): Column of the draft distributions by target id, of the tokens the
            drafter knows; by default they are the same.
    """

    def __init__(
        self,
        tokens: Sequence[int] = (),
        predicted: Sequence[float] = (),
        *,
        sampling: bool = False,
        columns: Mapping[int, int] | None = None,
    ):
        self.tokens, self.predicted = tokens, predicted
        self.sampling = sampling
        self.tip = TEXT  # the node the path has reached
        self._columns = columns
        self._length = 0  # tokens of the path in the tree

    @property
    def token(self) -> int | None:
        """`int`: The path's next token; `None` at its end."""
        return self.tokens[self._length] if self._length < len(self.tokens) else None

    @property
    def estimate(self) -> float:
        """`float`: Lookup's estimate of that token; 0 at the end."""
        return self.predicted[self._length] if self._length < len(self.tokens) else 0.0

    def advance(self, node: int | None) -> None:
        """The next token is this node of the tree now; with `None` it is not in the tree, and the path ends."""
        if node is None:
            self.tokens = self.tokens[: self._length]
        else:
            self.tip, self._length = node, self._length + 1

    def place(self, frontier: Sequence[int]) -> LookedUp | None:
        """Where the drafter's opinion of the next token is found, if it is asked behind the path."""
        token = self.token
        if token is None or self.tip not in frontier:
            return None
        return LookedUp(frontier.index(self.tip), token if self._columns is None else self._columns.get(token))

    def weigh(self, tokens: Sequence[int], chances: Sequence[float], share: float) -> tuple[float, list[float]]:
        """
        Lookup's next token among the drafter's children of the same node.

        Args:
            tokens (`Sequence[int]`), chances (`Sequence[float]`): These children, and of each its estimated chance to
                be accepted, if lookup knew nothing.
            share (`float`): Draft probability of the looked-up token.

        Returns:
            `(chance, chances)`: that of the looked-up token, and of every child what is left to it.
        """
        joint = joint_estimate(self.estimate, share, self.sampling)
        known = next((c for token, c in zip(tokens, chances, strict=True) if token == self.token), 0.0)
        scale = (1.0 - joint) / max(1.0 - known, _SMALLEST)
        return joint, [min(scale * chance, 1.0) for chance in chances]

    def node(self, nodes: Sequence[DraftNode], chance: float) -> DraftNode:
        """The next token as a child that lookup alone proposes."""
        above = nodes[self.tip] if self.tip != TEXT else None
        gain = chance * (above.gain if above is not None else 1.0)
        level = above.level + 1 if above is not None else 0
        return DraftNode(self.token, self.tip, level, LOOKED_UP, gain, chance, looked_up=True)

    def open_gain(self, index: int, node: DraftNode) -> float:
        """Gain of a node as far as the drafter's children can add to it: the path's next token needs no drafter."""
        return node.gain * (1.0 - self.estimate) if index == self.tip else node.gain

    def add_rest(self, nodes: list[DraftNode], kept: list[int], policy: TreePolicy) -> list[int]:
        """
        Lets the path go on where the drafter was asked no more, and leaves out what pays only together with more.

        Args:
            nodes (`list[DraftNode]`): Of the tree; more are added to it.
            kept (`list[int]`): Those that are to be verified.
            policy ([`TreePolicy`]): Chooses.

        Returns:
            `list[int]`: All that are to be verified, siblings in the order in which they are tried.
        """
        first = len(nodes)
        while self.token is not None:
            nodes.append(self.node(nodes, self.estimate))
            self.advance(len(nodes) - 1)
        if not self.sampling:
            return likeliest(nodes, policy)
        # What was drawn stays, and of the rest of the path as much as pays.
        rest = policy.take([node.gain for node in nodes[first:]], len(kept))
        del nodes[first + rest :]
        return sorted([*kept, *range(first, first + rest)], key=lambda i: nodes[i].rank != LOOKED_UP)


def likeliest(nodes: Sequence[DraftNode], policy: TreePolicy, follow: float = 0.0, levels: int = 0) -> list[int]:
    """The nodes of highest gain, as many as the policy takes, see [`TreePolicy.take`]."""
    order = sorted(range(len(nodes)), key=lambda i: (-nodes[i].gain, i))
    return order[: policy.take([nodes[i].gain for i in order], follow=follow, levels=levels)]
