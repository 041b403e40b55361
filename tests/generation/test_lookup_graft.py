# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Looked-up tokens in a tree: where they stand, what they are judged to be worth, and that drawing stays exact."""

import itertools

import pytest
import torch

from ppow_hf import CostModel, WindowConfig
from ppow_hf.generation import draft_tree
from ppow_hf.generation.lookup_graft import LookedUp, LookupGraft, joint_estimate
from ppow_hf.generation.tree_config import TreeConfig
from ppow_hf.generation.tree_nodes import LOOKED_UP, TEXT, DraftNode, DraftTree, Expansion
from ppow_hf.generation.tree_policy import FixedTreePolicy, make_tree_policy
from ppow_hf.generation.tree_verification import TreeVerifier
from ppow_hf.generation.window_loop import DraftSampler
from tests.generation.test_tree_policy import Drafter, grow, paths_of
from tests.generation.test_tree_sampling import P, Q, with_source


def fixed(nodes=12, depth=3, branching=2):
    return FixedTreePolicy(WindowConfig(policy="fixed", tree=TreeConfig(nodes, depth, branching)))


def cost_aware(slope=0.02, gamma=0.05, **limits):
    config = WindowConfig(tree=TreeConfig(**limits), min_size=0)
    return make_tree_policy(config, CostModel(gamma, [1.0 + slope * n for n in range(40)]))


def path_of_lookup(tree):
    """Tokens of the looked-up path, and its nodes."""
    node, tokens, found = TEXT, [], []
    while below := [i for i in tree.children.get(node, []) if tree.nodes[i].looked_up]:
        (node,) = below
        tokens.append(tree.nodes[node].token)
        found.append(node)
    assert len(found) == sum(node.looked_up for node in tree.nodes)
    return tokens, found


# ---- what it is worth ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [False, True])
def test_two_that_agree_are_surer_than_either(sampling):
    assert joint_estimate(0.7, 0.8, sampling) > joint_estimate(0.7, 0.1, sampling)
    assert joint_estimate(0.9, 0.5, sampling) > joint_estimate(0.4, 0.5, sampling)
    assert joint_estimate(0.7, 0.001, sampling) < 0.7
    assert 0.0 < joint_estimate(0.0, 0.0, sampling) < joint_estimate(1.0, 1.0, sampling) < 1.0
    assert joint_estimate(0.7, 0.8) > 0.8 and joint_estimate(0.7, 1e-9, sampling) == joint_estimate(0.7, 0.0, sampling)


def test_what_lookup_leaves_to_the_drafters_children():
    """By hand: chances given that the looked-up token is wrong, times the chance that it is."""
    graft = LookupGraft([7, 8], [0.6, 0.5])
    joint = joint_estimate(0.6, 0.3)
    chance, chances = graft.weigh([3, 7, 5], [0.5, 0.2, 0.1], 0.3)
    assert chance == joint
    assert chances == pytest.approx([0.5 / 0.8 * (1 - joint), 0.2 / 0.8 * (1 - joint), 0.1 / 0.8 * (1 - joint)])
    _, chances = graft.weigh([3, 4], [0.5, 0.2], 0.0)
    assert chances == pytest.approx([0.5 * (1 - joint_estimate(0.6, 0.0)), 0.2 * (1 - joint_estimate(0.6, 0.0))])
    graft.advance(0)
    assert (graft.token, graft.estimate, graft.tip) == (8, 0.5, 0)
    graft.advance(4)
    assert (graft.token, graft.estimate, graft.tip) == (None, 0.0, 4) and graft.place([4]) is None
    ended = LookupGraft([7, 8], [0.6, 0.5])
    ended.advance(None)
    assert ended.token is None


def test_where_the_drafter_knows_the_token():
    assert LookupGraft([7], [0.5]).place([TEXT]) == LookedUp(0, 7)
    assert LookupGraft([7], [0.5], columns={7: 2}).place([TEXT]) == LookedUp(0, 2)
    assert LookupGraft([7], [0.5], columns={6: 2}).place([TEXT]) == LookedUp(0, None)
    assert LookupGraft([7], [0.5]).place([3, 5]) is None and LookupGraft().place([TEXT]) is None
    scores = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, -torch.inf]])
    for do_sample in (False, True):
        sampler = DraftSampler(None, vocab_size=3, do_sample=do_sample)
        first, second = draft_tree._choices(sampler, scores, 3, LookedUp(1, 0))
        assert first.looked_up == 0.0 and second.looked_up == pytest.approx(float(scores[1].softmax(-1)[0]))
        assert sorted(first.tokens) == [0, 1, 2] and sorted(second.tokens) == ([1] if do_sample else [0, 1])
        assert second.stats.top1 == pytest.approx(float(scores[1].softmax(-1)[0]))
        unknown = draft_tree._choices(sampler, scores, 3, LookedUp(1, None))[1]
        assert unknown.looked_up == 0.0 and sorted(unknown.tokens) == [0, 1]
    sure = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert draft_tree._choices(DraftSampler(None, 3, do_sample=True), sure, 2, LookedUp(0, 1))[0].tokens == []


# ---- where it stands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("policy", [fixed(30), cost_aware()], ids=["fixed", "cost_aware"])
def test_the_path_is_in_the_tree(policy, do_sample):
    torch.manual_seed(0)
    for seed in range(8):
        drafter = Drafter(seed=seed)
        tokens = [int(drafter.logits(()).argmax()), 2, 5, 1, 0, 3, 4]
        graft = LookupGraft(tokens, [0.95] * 7, sampling=do_sample)
        tree = grow(policy, drafter, do_sample, depth=3, graft=graft)
        paths = paths_of(tree)
        found, nodes = path_of_lookup(tree)
        # Deeper than the drafter's levels, as a chain; every token once below its parent.
        assert found == tokens and tree.depth == 7 and len(tree.nodes) <= policy.tree.max_nodes
        assert len(set(paths.values())) == len(paths) and len(tree.steps) <= 3
        assert all(node.level < 3 or node.looked_up for node in tree.nodes)
        assert any(not node.looked_up for node in tree.nodes) or not isinstance(policy, FixedTreePolicy)
        first = tree.nodes[nodes[0]]
        # The drafter's own favourite, too: one node. Drawn children do not include it.
        assert first.rank == (LOOKED_UP if do_sample else 0)
        gain = 1.0
        for i in nodes:
            gain *= tree.nodes[i].estimate
            assert tree.nodes[i].gain == pytest.approx(gain)
        for parent, below in tree.children.items():
            ranks = [tree.nodes[i].rank for i in below]
            if do_sample:
                assert ranks == sorted(ranks) and [r for r in ranks if r >= 0] == list(
                    range(tree.drafted_below(parent))
                )
                if below[0] in nodes and tree.drafted_below(parent):
                    assert tree.expansions[parent].excluded == tree.nodes[below[0]].token
            else:
                gains = [tree.nodes[i].gain for i in below]
                assert gains == sorted(gains, reverse=True)
        for node, said in tree.expansions.items():
            torch.testing.assert_close(tree.draft_scores(node)[0], drafter.logits(paths[node]))
            assert said.level == len(paths[node])


def test_agreement_lifts_the_path_and_disagreement_lowers_it():
    drafter = Drafter(seed=1)
    order = drafter.logits(()).argsort(descending=True).tolist()
    gains = {}
    for token in (order[0], order[-1]):
        tree = grow(fixed(30), drafter, graft=LookupGraft([token], [0.5]))
        gains[token] = next(node.gain for node in tree.nodes if node.looked_up)
        rival = max(node.gain for node in tree.nodes if node.level == 0 and not node.looked_up)
        assert gains[token] + rival < 1.0
    assert gains[order[0]] > 0.5 > gains[order[-1]]


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_path_that_does_not_pay_stays_out(do_sample):
    torch.manual_seed(1)
    policy = cost_aware(slope=0.2)
    for seed in range(6):
        # A token the drafter thinks impossible, and lookup unlikely.
        drafter = Drafter(seed=seed)
        token = int(drafter.logits(()).argmin())
        graft = LookupGraft([token, 1, 2], [0.05, 0.9, 0.9], sampling=do_sample)
        assert not any(node.looked_up for node in grow(policy, drafter, do_sample, graft=graft).nodes)
    # And one ends where it stops paying.
    graft = LookupGraft([1] * 6, [0.99, 0.99, 0.99, 0.99, 0.1, 0.99], sampling=do_sample)
    assert len(path_of_lookup(grow(policy, Drafter(width=4), do_sample, depth=1, graft=graft))[0]) < 5


def test_without_a_path_nothing_changes():
    for do_sample in (False, True):
        for seed in range(4):
            trees = []
            for graft in (None, LookupGraft(sampling=do_sample)):
                torch.manual_seed(seed)
                trees.append(grow(cost_aware(), Drafter(seed=seed), do_sample, graft=graft))
            assert trees[0].nodes == trees[1].nodes and trees[0].steps == trees[1].steps


def test_no_more_nodes_than_allowed():
    for do_sample in (False, True):
        graft = LookupGraft([1] * 24, [0.99] * 24, sampling=do_sample)
        tree = grow(fixed(nodes=9, depth=2), Drafter(), do_sample, depth=2, graft=graft)
        assert len(tree.nodes) == 9


def test_the_drafter_goes_on_behind_looked_up_tokens():
    """Behind a token it would not have proposed itself, from its distribution there."""
    drafter = Drafter(seed=3)
    token = int(drafter.logits(()).argmin())
    tree = grow(fixed(20, depth=3, branching=2), drafter, graft=LookupGraft([token], [0.97]))
    node = next(i for i, n in enumerate(tree.nodes) if n.looked_up)
    assert tree.nodes[node].rank == LOOKED_UP and tree.nodes[node].column is not None
    torch.testing.assert_close(tree.draft_scores(node)[0], drafter.logits((token,)))
    best = drafter.logits((token,)).topk(2).indices.tolist()
    assert [tree.nodes[i].token for i in tree.children[node]] == best


def test_how_many_are_drawn_does_not_depend_on_what_is_drawn():
    for seed in range(6):
        sizes = set()
        for draw in range(12):
            torch.manual_seed(draw)
            graft = LookupGraft([2, 3], [0.6, 0.7], sampling=True)
            tree = grow(cost_aware(slope=0.05), Drafter(seed=seed), do_sample=True, graft=graft)
            sizes.add((tree.drafted_below(TEXT), any(n.looked_up for n in tree.nodes)))
        assert len(sizes) == 1


# ---- exact verification --------------------------------------------------------------------------------------------


def with_lookup(looked_up, order, kept=True):
    """A tree of one level: a looked-up child, if kept, and children drawn from `Q` without it."""
    tree = DraftTree(scores=[Q.float().log()[None]])
    if kept:
        tree.nodes = [DraftNode(looked_up, TEXT, 0, LOOKED_UP, 0.5, 0.5, looked_up=True)]
    tree.nodes += [DraftNode(token, TEXT, 0, rank, 0.5, None) for rank, token in enumerate(order)]
    tree.children = {TEXT: list(range(len(tree.nodes)))}
    tree.expansions = {TEXT: Expansion(0, 0, 0.5, 0.5, (), [], excluded=looked_up)}
    return tree


def orders(looked_up, count):
    """All orders in which the drafter's children can be drawn from what the looked-up token leaves."""
    for order in itertools.permutations([token for token in range(5) if token != looked_up], count):
        weight, rest = 1.0, Q.clone()
        rest[looked_up] = 0
        for token in order:
            weight *= float(rest[token] / rest.sum())
            rest[token] = 0
        yield order, weight


@pytest.mark.parametrize("looked_up", range(5))
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_the_scheme_gives_the_distribution_of_the_target(looked_up, count):
    """Summed up over everything that can happen, in float64."""
    found = torch.zeros(5, dtype=torch.float64)
    for order, weight in orders(looked_up, count):
        found[looked_up] += weight * P[looked_up]
        reach = 1.0 - float(P[looked_up])
        residual, rest = P.clone(), Q.clone()
        residual[looked_up] = rest[looked_up] = 0
        residual = residual / residual.sum()
        for token in order:
            rest = rest / rest.sum()
            accept = min(1.0, float(residual[token] / rest[token]))
            found[token] += weight * reach * accept
            reach *= 1 - accept
            residual = (residual - rest).clamp(min=0)
            residual = residual / residual.sum() if residual.sum() > 0 else residual
            rest[token] = 0
        found += weight * reach * residual
    torch.testing.assert_close(found, P, rtol=0, atol=1e-12)


def verified_error(looked_up, count, samples=400, kept=lambda order: True):
    """How far the verified token's distribution is from the target's; `kept`: whether lookup's is in the tree."""
    sampler = DraftSampler(None, vocab_size=5, do_sample=True, generator=torch.Generator().manual_seed(1))
    verifier = TreeVerifier(sampler, [], frozenset())
    logits, context = P.log().float()[None].expand(count + 2, -1), torch.tensor([[0]])
    found = torch.zeros(5, dtype=torch.float64)
    for order, weight in orders(looked_up, count):
        tree = with_lookup(looked_up, order, kept(order))
        for _ in range(samples):
            found[verifier.accept(tree, logits, context).tokens(tree)[0]] += weight / samples
    return float((found - P).abs().max())


@pytest.mark.parametrize("looked_up", [0, 1, 3])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kept", [True, False])
def test_one_verification_is_exact(looked_up, count, kept):
    assert verified_error(looked_up, count, kept=lambda order: kept) < 0.025


def test_a_looked_up_token_alone_is_exact():
    tree = DraftTree.chain([1], [0.5])
    sampler = DraftSampler(None, vocab_size=5, do_sample=True, generator=torch.Generator().manual_seed(2))
    verifier, logits = TreeVerifier(sampler, [], frozenset()), P.log().float()[None].expand(2, -1)
    counts = torch.zeros(5, dtype=torch.float64)
    for _ in range(8000):
        counts[verifier.accept(tree, logits, torch.tensor([[0]])).tokens(tree)[0]] += 1 / 8000
    assert float((counts - P).abs().max()) < 0.02


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("certain = tree.nodes[child].rank == LOOKED_UP", "certain = False"),  # judged as if drawn
        ("1.0 if certain else float(q[token])", "float(q[token])"),
        (", 0.0) if certain else p - q", ", 0.0) if False else p - q"),  # the drafter's residual
    ],
)
def test_one_verification_detects_wrong_schemes(old, new, monkeypatch):
    with_source(monkeypatch, old, new)
    assert verified_error(0, 1) > 0.04


def test_one_verification_detects_a_token_left_out_for_what_was_drawn():
    """Whether a looked-up token is in the tree must not depend on the siblings' tokens."""
    assert verified_error(1, 1, kept=lambda order: order != (0,)) > 0.1


def test_one_verification_detects_an_exclusion_forgotten(monkeypatch):
    """Children drawn without the looked-up token, judged as drawn from all."""
    draft = TreeVerifier._draft_distribution

    def whole(self, tree, node, p):
        tree.expansions[node].excluded = None
        return draft(self, tree, node, p)

    monkeypatch.setattr(TreeVerifier, "_draft_distribution", whole)
    assert verified_error(0, 1, kept=lambda order: False) > 0.04
