# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Looked-up tokens in a draft tree (ours): at every node what followed the last time the text read like the path to it.

Where the drafter was asked about a node, the two are judged together: a token both propose is one node, likelier than
either says alone, and whatever the one thinks likely leaves less to the other. Behind a node the drafter was not asked
about, looked-up tokens go on alone as far as they pay: they cost nothing but their verification.

Sampling stays lossless: a looked-up token is the first of its siblings to be tried, and the drafter's are drawn from
what it leaves of the draft distribution. Whether it is in the tree is settled before its siblings are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from .lookup import LookupIndex
from .lookup_acceptance import LookupAcceptance
from .tree_nodes import LOOKED_UP, TEXT, DraftNode, path_tokens
from .tree_policy import TreePolicy

# Log-odds of a looked-up token about which the drafter was asked: constant, weight of the log-odds of lookup's own
# estimate, and weight of the log-odds of its draft probability. Greedy: fitted to 1,456 looked-up tokens in responses
# of a 135M instruction-tuned model, on prompts outside the benchmarks, with a one-layer EAGLE-3 drafter: their log
# loss is 0.39, that of lookup's own estimates 0.63, and that of the drafter's 0.42.
_GREEDY = (0.25, 0.40, 0.54)
_SAMPLING = (0.3, 0.6, 0.4)
_SMALLEST = 1e-4
_LEAST_SHARE = 0.01  # below it, how little the drafter thinks of a token says nothing more
_LEAST_GAIN = 0.02  # less is hardly worth verifying anywhere, and growing it takes time, too


class LookedUp(NamedTuple):
    """
    A looked-up token.

    Args:
        token (`int`): Target id.
        estimate (`float`): Lookup's estimate that it is right.
        column (`int`, *optional*): Its column in the draft distributions; `None` if the drafter does not know it.
    """

    token: int
    estimate: float
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
    What lookup adds to one growing tree.

    Args:
        index ([`LookupIndex`], *optional*): Of the text; without one nothing is looked up.
        acceptance ([`LookupAcceptance`], *optional*): How likely looked-up tokens are right; needed with an index.
        sampling (`bool`, *optional*, defaults to `False`): Whether the target samples.
        columns (`Mapping[int, int]`, *optional*): Column of the draft distributions by target id, of the tokens the
            drafter knows; by default they are the same.
        depth (`int`, *optional*, defaults to 0): Levels that the length of the text leaves room for.
        size (`int`, *optional*, defaults to 24): Most tokens behind a node that the drafter was not asked about.
        eos_token_ids (`Container[int]`, *optional*): Tokens behind which nothing is looked up.
    """

    def __init__(
        self,
        index: LookupIndex | None = None,
        acceptance: LookupAcceptance | None = None,
        *,
        sampling: bool = False,
        columns: Mapping[int, int] | None = None,
        depth: int = 0,
        size: int = 24,
        eos_token_ids: Container[int] = (),
    ):
        self.index, self.acceptance = index, acceptance
        self.sampling = sampling
        self.depth, self.size = depth, size
        self._columns, self._eos_token_ids = columns, eos_token_ids
        self._found: dict[int, LookedUp | None] = {}

    def behind(self, nodes: Sequence[DraftNode], node: int) -> LookedUp | None:
        """The token that followed the last time, behind a node of the tree or `TEXT`; `None` if there was no time."""
        if self.index is None:
            return None
        if node not in self._found:
            self._found[node] = self._look_up(path_tokens(nodes, node))
        return self._found[node]

    def _look_up(self, path: list[int]) -> LookedUp | None:
        match = self.index.match_behind(path)
        if match is None:
            return None
        (token,) = self.index.follow(match, 1, path)
        column = token if self._columns is None else self._columns.get(token)
        return LookedUp(token, self.acceptance.predict(match, 0), column)

    def weigh(
        self, looked_up: LookedUp, tokens: Sequence[int], chances: Sequence[float], share: float
    ) -> tuple[float, list[float]]:
        """
        A looked-up token among the drafter's children of the same node.

        Args:
            looked_up ([`LookedUp`]): The token.
            tokens (`Sequence[int]`), chances (`Sequence[float]`): These children, and of each its estimated chance to
                be accepted, if lookup knew nothing.
            share (`float`): Draft probability of the looked-up token.

        Returns:
            `(chance, chances)`: that of the looked-up token, and of every child what is left to it.
        """
        joint = joint_estimate(looked_up.estimate, share, self.sampling)
        known = next((c for token, c in zip(tokens, chances, strict=True) if token == looked_up.token), 0.0)
        scale = (1.0 - joint) / max(1.0 - known, _SMALLEST)
        return joint, [min(scale * chance, 1.0) for chance in chances]

    def open_gain(self, nodes: Sequence[DraftNode], node: int) -> float:
        """
        Gain of a node as far as the drafter's children can add to it: a looked-up one needs no drafter.

        Only a likely one takes much away, hence the square: an unlikely one may be left out of the tree, and ends the
        path where it is wrong.
        """
        looked_up = self.behind(nodes, node)
        return nodes[node].gain * (1.0 - looked_up.estimate**2) if looked_up is not None else nodes[node].gain

    def add_rest(
        self, nodes: list[DraftNode], kept: list[int], asked: Container[int], policy: TreePolicy
    ) -> list[int]:
        """
        Lets looked-up tokens go on where the drafter was not asked, and leaves out what pays only together with more.

        Args:
            nodes (`list[DraftNode]`): Of the tree; more are added to it.
            kept (`list[int]`): Those that are to be verified.
            asked (`Container[int]`): Nodes, perhaps `TEXT`, that the drafter was asked about.
            policy ([`TreePolicy`]): Chooses.

        Returns:
            `list[int]`: All that are to be verified, siblings in the order in which they are tried.
        """
        first = len(nodes)
        if self.index is not None:
            for node in (TEXT, *kept):
                if node not in asked:
                    self._go_on(nodes, node)
        if not self.sampling:
            return likeliest(nodes, policy)
        # What was drawn stays, and of the rest as much as pays.
        order = sorted(range(first, len(nodes)), key=lambda i: (-nodes[i].gain, i))
        rest = order[: policy.take([nodes[i].gain for i in order], len(kept))]
        return sorted([*kept, *rest], key=lambda i: nodes[i].rank != LOOKED_UP)

    def _go_on(self, nodes: list[DraftNode], node: int) -> None:
        """Adds the looked-up tokens behind a node, as far as they may pay."""
        level, gain = (nodes[node].level, nodes[node].gain) if node != TEXT else (-1, 1.0)
        if node != TEXT and nodes[node].token in self._eos_token_ids:
            return
        path = path_tokens(nodes, node)
        match = self.index.match_behind(path)
        if match is None:
            return
        for position, token in enumerate(self.index.follow(match, min(self.size, self.depth - 1 - level), path)):
            estimate = self.acceptance.predict(match, position)
            gain *= estimate
            if gain < _LEAST_GAIN:
                return
            level += 1
            nodes.append(DraftNode(token, node, level, LOOKED_UP, gain, estimate, looked_up=True))
            node = len(nodes) - 1
            if token in self._eos_token_ids:
                return


def likeliest(nodes: Sequence[DraftNode], policy: TreePolicy, follow: float = 0.0, levels: int = 0) -> list[int]:
    """The nodes of highest gain, as many as the policy takes, see [`TreePolicy.take`]."""
    order = sorted(range(len(nodes)), key=lambda i: (-nodes[i].gain, i))
    return order[: policy.take([nodes[i].gain for i in order], follow=follow, levels=levels)]
