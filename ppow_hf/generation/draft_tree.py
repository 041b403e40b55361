# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Growing a draft tree: level by level, one drafter pass for all nodes of a level that are gone on from.

Greedy decoding chooses among the most probable children of all nodes; the tree that is verified is cut from what was
looked at (EAGLE-2, arXiv 2406.16858). Sampling draws the children of a node from the draft distribution, one after
another without replacement, and how many of them is decided before they are drawn: a token that is drawn is verified,
whatever it turned out to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .acceptance import AcceptanceEstimator, DraftStats, acceptance_features
from .draws import distribution, draw_in_turn
from .sibling_estimate import SiblingEstimate
from .tree_policy import TreePolicy
from .window_loop import DraftSampler

if TYPE_CHECKING:
    from ..drafters import DrafterModel
    from ..drafters.modeling_drafter import DrafterState

TEXT = -1  # stands for the committed text where a node's index is expected


@dataclass(slots=True)
class DraftNode:
    """
    A draft token in its place.

    Args:
        token (`int`): Target id.
        parent (`int`): Index of the node it follows; `TEXT` for the first level.
        level (`int`): Nodes above it.
        rank (`int`): Its place among its parent's children, from 0: by probability, or as drawn.
        gain (`float`): Estimated chance that it is accepted together with all nodes above it.
        estimate (`float`, *optional*): Acceptance estimate given its parent; `None` unless its rank is 0.
        column (`int`, *optional*): Its column in the drafter's cache, behind the text's, if it was gone on from.
    """

    token: int
    parent: int
    level: int
    rank: int
    gain: float
    estimate: float | None
    column: int | None = None


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
    """

    level: int
    row: int
    estimate: float
    confidence: float
    features: tuple[float, ...]
    shares: list[float]


@dataclass
class DraftTree:
    """
    A draft tree, as it is verified.

    Args:
        nodes (`list[DraftNode]`): Every node behind its parent, the children of a node in order of their rank, and
            the path of first children in front.
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

    def draft_scores(self, node: int) -> torch.Tensor:
        """Processed draft logits behind a node that the drafter was asked about, `(1, width)`."""
        expansion = self.expansions[node]
        return self.scores[expansion.level][expansion.row : expansion.row + 1]


def grow_tree(
    drafter: DrafterModel,
    state: DrafterState,
    logits: torch.Tensor,
    *,
    sampler: DraftSampler,
    policy: TreePolicy,
    estimator: AcceptanceEstimator,
    siblings: SiblingEstimate,
    max_depth: int,
    context_ids: torch.LongTensor | None = None,
    divergence: float = 0.0,
    eos_token_ids: frozenset[int] = frozenset(),
    step: Callable[[DrafterState, torch.LongTensor, Sequence[int]], torch.Tensor] | None = None,
) -> DraftTree:
    """
    Drafts one tree.

    Args:
        drafter ([`DrafterModel`]): The drafter.
        state ([`DrafterState`]): Its state, just extended; changed in place.
        logits (`torch.Tensor` of shape `(1, draft_vocab_size)`): What `drafter.extend` returned.
        sampler ([`DraftSampler`]): Processes logits, and says whether to draw.
        policy ([`TreePolicy`]): Chooses the nodes.
        estimator ([`AcceptanceEstimator`]), siblings ([`SiblingEstimate`]): Acceptance of first and later children.
        max_depth (`int`): Most levels.
        context_ids (`torch.LongTensor` of shape `(1, length)`, *optional*): The text so far, for the processors.
        divergence (`float`, *optional*, defaults to 0.0): Running total variation, a feature of the estimate.
        eos_token_ids (`frozenset[int]`, *optional*): Tokens after which nothing is drafted.
        step (`Callable`, *optional*): Called in place of `drafter.step_tree` (to time it).

    Returns:
        [`DraftTree`].
    """
    step = step or drafter.step_tree
    tree = DraftTree(steps=[1])
    nodes, branching = tree.nodes, policy.tree.branching
    frontier, columns = [TEXT], 0
    kept: list[int] = []
    for level in range(max_depth):
        scores = _process(sampler, logits, context_ids, [_path_tokens(nodes, node) for node in frontier])
        tree.scores.append(scores)
        choices = _choices(sampler, scores, branching)
        slots: list[DraftNode] = []
        for row, (parent, choice) in enumerate(zip(frontier, choices, strict=True)):
            if choice is None:
                tree.stop = "no_support"
                continue
            stats, tokens, probabilities = choice
            features = acceptance_features(stats, level, divergence)
            estimate = estimator.predict(features)
            if level:
                policy.observe(estimate)
            shares = siblings.shares(probabilities, len(tokens) - 1)
            tree.expansions[parent] = Expansion(level, row, estimate, stats.top1, features, shares)
            gain = reach = 1.0 if parent == TEXT else nodes[parent].gain
            for rank, token in enumerate(tokens):
                chance = estimate if rank == 0 else (1.0 - estimate) * shares[rank - 1]
                gain = min(gain, reach * chance)  # a later child is never preferred to an earlier one
                slots.append(DraftNode(token, parent, level, rank, gain, estimate if rank == 0 else None))
        if not slots:
            break
        if sampler.do_sample:
            # What is drawn stays, so what to draw is settled by gains alone, before a token is looked at.
            slots.sort(key=lambda slot: -slot.gain)
            room = policy.room(len(nodes), max_depth - level)
            slots = slots[: policy.take([slot.gain for slot in slots], len(nodes), room)]
            newest = list(range(len(nodes), len(nodes) + len(slots)))
            nodes += slots
            kept += newest
        else:
            first = len(nodes)
            nodes += slots
            order = sorted(range(len(nodes)), key=lambda i: (-nodes[i].gain, i))
            kept = order[: policy.take([nodes[i].gain for i in order])]
            newest = [i for i in kept if i >= first]
        if not newest:
            tree.stop = "policy"
            break
        open_ = [i for i in newest if nodes[i].token not in eos_token_ids]
        if not open_:
            tree.stop = "eos"
            break
        if level + 1 == max_depth:
            break
        rows = policy.go_on_from(
            [nodes[i].gain for i in open_], [nodes[i].estimate for i in open_], len(kept), level + 1
        )
        if rows == 0:
            tree.stop = "policy" if len(kept) < policy.tree.max_nodes else "limit"
            break
        places = {node: place for place, node in enumerate(frontier)}
        frontier = open_[:rows]
        parents = [places[nodes[node].parent] for node in frontier]
        for node in frontier:
            nodes[node].column = columns
            columns += 1
        token_ids = torch.tensor([nodes[node].token for node in frontier], device=logits.device)
        logits = step(state, token_ids, parents)
        tree.steps.append(len(frontier))
    return _cut(tree, kept)


def _process(
    sampler: DraftSampler, logits: torch.Tensor, context_ids: torch.LongTensor | None, paths: list[list[int]]
) -> torch.Tensor:
    """Processed draft logits; processors that look at the text get each row behind its own path."""
    if sampler.reduced or not sampler.processors:
        return sampler.scores(logits, context_ids)
    rows = []
    for row, path in zip(logits.split(1), paths, strict=True):
        own = torch.tensor([path], dtype=torch.long, device=context_ids.device)
        rows.append(sampler.scores(row, torch.cat([context_ids, own], dim=-1)))
    return torch.cat(rows)


def _choices(
    sampler: DraftSampler, scores: torch.Tensor, branching: int
) -> list[tuple[DraftStats, list[int], list[float]] | None]:
    """
    Possible children behind every row: the statistics of its distribution, `branching` tokens (fewer where no more are
    possible), and the probabilities of the most probable tokens. `None` where there is no possible token.
    """
    probs, entropy = distribution(scores)
    width = probs.shape[-1]
    top = probs.topk(min(max(2, branching), width), dim=-1)
    count = min(branching, width)
    if sampler.do_sample:
        columns = draw_in_turn(probs, count, sampler.generator)
        possible = (probs > 0).sum(dim=-1, keepdim=True)
    else:
        columns = top.indices[:, :count]
        possible = (top.values[:, :count] > 0).sum(dim=-1, keepdim=True)
    token_ids = sampler.draft_token_ids[columns] if sampler.mapped else columns
    # One transfer to the host; float64 holds every token id.
    packed = torch.cat([part.double() for part in (top.values, entropy, possible, token_ids)], dim=-1).tolist()
    shown = top.values.shape[-1]
    choices = []
    for values in packed:
        if values[0] != values[0]:  # NaN: the processors forbid everything the drafter knows
            choices.append(None)
            continue
        stats = DraftStats(values[0], values[1] if shown > 1 else 0.0, values[shown])
        tokens = [int(token) for token in values[shown + 2 :][: int(values[shown + 1])]]
        choices.append((stats, tokens, values[:shown]))
    return choices


def _path_tokens(nodes: list[DraftNode], node: int) -> list[int]:
    """Tokens from the text to a node, itself included."""
    path = []
    while node != TEXT:
        path.append(nodes[node].token)
        node = nodes[node].parent
    return path[::-1]


def _cut(tree: DraftTree, kept: Sequence[int]) -> DraftTree:
    """Leaves the kept nodes, each behind its parent, first children first: the likeliest path comes out in front."""
    below: dict[int, list[int]] = {}
    for i in kept:  # in order of gain, and so siblings in order of rank
        below.setdefault(tree.nodes[i].parent, []).append(i)
    places, open_ = {TEXT: TEXT}, below.get(TEXT, [])[::-1]
    nodes: list[DraftNode] = []
    while open_:
        i = open_.pop()
        places[i] = len(nodes)
        node = tree.nodes[i]
        node.parent = places[node.parent]
        nodes.append(node)
        open_ += below.get(i, [])[::-1]
    tree.nodes = nodes
    tree.expansions = {places[i]: said for i, said in tree.expansions.items() if i in places}
    tree.children = {places[parent]: [places[i] for i in children] for parent, children in below.items()}
    return tree
