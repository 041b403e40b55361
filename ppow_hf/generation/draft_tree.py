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
from typing import TYPE_CHECKING, NamedTuple

import torch

from .acceptance import AcceptanceEstimator, DraftStats, acceptance_features
from .draws import distribution, draw_in_turn
from .host_rows import on_host, rows_of, summarise
from .lookup_graft import LookedUp, LookupGraft, likeliest
from .sibling_estimate import SiblingEstimate
from .tree_nodes import LOOKED_UP, TEXT, DraftNode, DraftTree, Expansion, path_tokens
from .tree_policy import TreePolicy
from .window_loop import DraftSampler

if TYPE_CHECKING:
    from ..drafters import DrafterModel
    from ..drafters.drafter_state import DrafterState


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
    graft: LookupGraft | None = None,
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
        max_depth (`int`): Most levels of the drafter.
        context_ids (`torch.LongTensor` of shape `(1, length)`, *optional*): The text so far, for the processors.
        divergence (`float`, *optional*, defaults to 0.0): Running total variation, a feature of the estimate.
        eos_token_ids (`frozenset[int]`, *optional*): Tokens after which nothing is drafted.
        graft ([`LookupGraft`], *optional*): What lookup adds.
        step (`Callable`, *optional*): Called in place of `drafter.step_tree` (to time it).

    Returns:
        [`DraftTree`].
    """
    step = step or drafter.step_tree
    graft = graft or LookupGraft()
    tree = DraftTree(steps=[1])
    nodes, branching = tree.nodes, policy.tree.branching
    frontier, columns = [TEXT], 0
    kept: list[int] = []
    for level in range(max_depth):
        scores = _process(sampler, logits, context_ids, [path_tokens(nodes, node) for node in frontier])
        tree.scores.append(scores)
        looked_up = [graft.behind(nodes, node) for node in frontier]
        choices = _choices(sampler, scores, branching, looked_up)
        slots: list[DraftNode] = []
        for row, (parent, found, choice) in enumerate(zip(frontier, looked_up, choices, strict=True)):
            if choice is None:
                tree.stop = "no_support"
                continue
            features = acceptance_features(choice.stats, level, divergence)
            estimate = estimator.predict(features)
            if level:
                policy.observe(estimate)
            shares = siblings.shares(choice.probabilities, len(choice.tokens) - 1)
            said = tree.expansions[parent] = Expansion(level, row, estimate, choice.stats.top1, features, shares)
            chances = [estimate, *((1.0 - estimate) * share for share in shares)][: len(choice.tokens)]
            gain = reach = 1.0 if parent == TEXT else nodes[parent].gain
            merged = found is None
            if found is not None:
                chance, chances = graft.weigh(found, choice.tokens, chances, choice.looked_up)
                said.excluded = found.token if sampler.do_sample else None
            for rank, (token, drafted) in enumerate(zip(choice.tokens, chances, strict=True)):
                if found is not None and token == found.token:
                    merged = True
                    slots.append(DraftNode(token, parent, level, rank, reach * chance, chance, looked_up=True))
                    continue
                gain = min(gain, reach * drafted)  # a later child is never preferred to an earlier one
                slots.append(DraftNode(token, parent, level, rank, gain, drafted if rank == 0 else None))
            if not merged:
                slots.append(DraftNode(found.token, parent, level, LOOKED_UP, reach * chance, chance, looked_up=True))
        if not slots:
            break
        # What the tree may still grow by: a node may pay together with those expected behind it.
        ahead = {"follow": max(slot.gain for slot in slots), "levels": max_depth - level - 1}
        if sampler.do_sample:
            # What is drawn stays, so what to draw is settled by gains alone, before a token is looked at.
            slots.sort(key=lambda slot: -slot.gain)
            room = policy.room(len(nodes), max_depth - level)
            slots = slots[: policy.take([slot.gain for slot in slots], len(nodes), room, **ahead)]
            newest = list(range(len(nodes), len(nodes) + len(slots)))
            nodes += slots
            kept += newest
        else:
            first = len(nodes)
            nodes += slots
            kept = likeliest(nodes, policy, **ahead)
            newest = [i for i in kept if i >= first]
        if not newest:
            tree.stop = "policy"
            break
        places = {node: place for place, node in enumerate(frontier)}
        open_ = [i for i in newest if nodes[i].token not in eos_token_ids]
        if not open_:
            tree.stop = "eos"
            break
        if level + 1 == max_depth:
            break
        gains = {i: graft.open_gain(nodes, i) for i in open_}
        open_.sort(key=lambda i: -gains[i])
        rows = policy.go_on_from([gains[i] for i in open_], [nodes[i].estimate for i in open_], len(kept), level + 1)
        if rows == 0:
            tree.stop = "policy" if len(kept) < policy.tree.max_nodes else "limit"
            break
        frontier = open_[:rows]
        parents = [places[nodes[node].parent] for node in frontier]
        for node in frontier:
            nodes[node].column = columns
            columns += 1
        token_ids = torch.tensor([nodes[node].token for node in frontier], device=logits.device)
        logits = step(state, token_ids, parents)
        tree.steps.append(len(frontier))
    return _cut(tree, graft.add_rest(nodes, kept, tree.expansions, policy))


class Choice(NamedTuple):
    """
    Possible children behind one row.

    Args:
        stats ([`DraftStats`]): Of the row's distribution.
        tokens (`list[int]`): Their target ids.
        probabilities (`list[float]`): Of the most probable tokens, highest first.
        looked_up (`float`): Draft probability of the looked-up token, in the row that was asked for it.
    """

    stats: DraftStats
    tokens: list[int]
    probabilities: list[float]
    looked_up: float = 0.0


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
    sampler: DraftSampler, scores: torch.Tensor, branching: int, looked_up: Sequence[LookedUp | None] = ()
) -> list[Choice | None]:
    """
    Possible children behind every row, `branching` of them or fewer where no more are possible. `None` where there is
    no possible token. Drawn children do not include the row's looked-up token.
    """
    columns = [found.column if found is not None else None for found in looked_up or [None] * len(scores)]
    if not (sampler.do_sample or sampler.processors) and on_host(scores):
        return _likely_choices(sampler, scores, branching, columns)
    probs, entropy = distribution(scores)
    width = probs.shape[-1]
    top = probs.topk(min(max(2, branching), width), dim=-1)
    count = min(branching, width)
    known = [(row, column) for row, column in enumerate(columns) if column is not None]
    rows = torch.tensor([row for row, _ in known], dtype=torch.long, device=probs.device)
    places = torch.tensor([column for _, column in known], dtype=torch.long, device=probs.device)
    of_lookup = probs.new_zeros(len(columns), 1)
    of_lookup[rows, 0] = probs[rows, places]
    if sampler.do_sample:
        left = probs.index_put((rows, places), probs.new_zeros(())) if known else probs
        drawn = draw_in_turn(left, count, sampler.generator)
        possible = (left > 0).sum(dim=-1, keepdim=True)
    else:
        drawn = top.indices[:, :count]
        possible = (top.values[:, :count] > 0).sum(dim=-1, keepdim=True)
    token_ids = sampler.draft_token_ids[drawn] if sampler.mapped else drawn
    # One transfer to the host; float64 holds every token id.
    packed = torch.cat([p.double() for p in (top.values, entropy, possible, of_lookup, token_ids)], dim=-1).tolist()
    shown = top.values.shape[-1]
    choices = []
    for values in packed:
        if values[0] != values[0]:  # NaN: the processors forbid everything the drafter knows
            choices.append(None)
            continue
        stats = DraftStats(values[0], values[1] if shown > 1 else 0.0, values[shown])
        tokens = [int(token) for token in values[shown + 3 :][: int(values[shown + 1])]]
        choices.append(Choice(stats, tokens, values[:shown], values[shown + 2]))
    return choices


def _likely_choices(
    sampler: DraftSampler, scores: torch.Tensor, branching: int, columns: Sequence[int | None]
) -> list[Choice | None]:
    """[`_choices`] of greedy decoding on a CPU and without processors: the same up to rounding, in less time."""
    width = scores.shape[-1]
    choices: list[Choice | None] = []
    for values, column in zip(rows_of(scores), columns, strict=True):
        said = summarise(values, min(max(2, branching), width))
        highest = said.probabilities[0]
        if highest != highest:  # NaN
            choices.append(None)
            continue
        likely = [c for c, p in zip(said.columns[:branching], said.probabilities, strict=False) if p > 0]
        tokens = sampler.draft_token_ids.numpy()[likely].tolist() if sampler.mapped else likely
        stats = DraftStats(highest, said.probabilities[1] if width > 1 else 0.0, said.entropy)
        chance = float(said.weights[column]) / said.total if column is not None else 0.0
        choices.append(Choice(stats, tokens, said.probabilities, chance))
    return choices


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
