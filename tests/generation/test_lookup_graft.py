# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Looked-up tokens in a tree: where they stand, what they are judged to be worth, and that drawing stays exact."""

import itertools

import pytest
import torch

from ppow_hf import CostModel, WindowConfig
from ppow_hf.generation import LookupAcceptance, LookupIndex, draft_tree
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


class Script:
    """A text's index and its estimates in one: what follows each path, and how likely."""

    def __init__(self, tokens, predicted, behind=()):
        self.behind, self.tokens, self.predicted = tuple(behind), list(tokens), list(predicted)

    def match_behind(self, path=()):
        """How many of the tokens the path has; no match on another path, or at the end."""
        path, known = tuple(path), len(self.behind)
        count = len(path) - known
        same = path == (*self.behind, *self.tokens)[: len(path)]
        return count if same and 0 <= count < len(self.tokens) else None

    def follow(self, match, max_tokens, path=()):
        return self.tokens[match : match + max_tokens]

    def predict(self, match, position):
        return self.predicted[match + position]


class Everywhere:
    """What follows depends on the path, and so does how likely it is."""

    def match_behind(self, path=()):
        return tuple(path)

    def follow(self, match, max_tokens, path=()):
        assert match == tuple(path)
        return [(3 * sum(path) + len(path) + 1) % 6, 5, 5][:max_tokens]

    def predict(self, match, position):
        return (0.2 + 0.15 * (match[-1] % 5 if match else 2)) ** (1 + position)


def lookup_of(tokens, predicted, *, behind=(), depth=24, **kwargs):
    """A graft that knows one path, or how one path (`behind`) goes on."""
    script = Script(tokens, predicted, behind)
    return LookupGraft(script, script, depth=depth, **kwargs)


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
def test_each_of_the_two_counts(sampling):
    assert joint_estimate(0.7, 0.8, sampling) > joint_estimate(0.7, 0.1, sampling)
    assert joint_estimate(0.9, 0.5, sampling) > joint_estimate(0.4, 0.5, sampling)
    assert joint_estimate(0.7, 0.001, sampling) < 0.7
    assert 0.0 < joint_estimate(0.0, 0.0, sampling) < joint_estimate(1.0, 1.0, sampling) < 1.0
    assert joint_estimate(0.7, 0.8, sampling) > 0.7 and joint_estimate(0.7, 1e-9, sampling) == joint_estimate(
        0.7, 0.0, sampling
    )


def test_what_lookup_leaves_to_the_drafters_children():
    """By hand: chances given that the looked-up token is wrong, times the chance that it is."""
    graft = LookupGraft()
    joint = joint_estimate(0.6, 0.3)
    chance, chances = graft.weigh(LookedUp(7, 0.6, 7), [3, 7, 5], [0.5, 0.2, 0.1], 0.3)
    assert chance == joint
    assert chances == pytest.approx([0.5 / 0.8 * (1 - joint), 0.2 / 0.8 * (1 - joint), 0.1 / 0.8 * (1 - joint)])
    _, chances = graft.weigh(LookedUp(7, 0.6, None), [3, 4], [0.5, 0.2], 0.0)
    assert chances == pytest.approx([0.5 * (1 - joint_estimate(0.6, 0.0)), 0.2 * (1 - joint_estimate(0.6, 0.0))])


def test_what_is_looked_up_behind_a_node():
    nodes = [DraftNode(7, TEXT, 0, 0, 0.5, 0.5), DraftNode(4, 0, 1, 0, 0.2, 0.4), DraftNode(8, 0, 1, 1, 0.1, None)]
    graft = lookup_of([7, 8, 9], [0.6, 0.5, 0.4])
    assert graft.behind(nodes, TEXT) == LookedUp(7, 0.6, 7) and graft.behind(nodes, 0) == LookedUp(8, 0.5, 8)
    assert graft.behind(nodes, 1) is None and graft.behind(nodes, 2) == LookedUp(9, 0.4, 9)
    # What the drafter's children can add there.
    assert [graft.open_gain(nodes, node) for node in range(3)] == pytest.approx([0.5 * 0.75, 0.2, 0.1 * 0.84])
    known = lookup_of([7, 8], [0.6, 0.5], columns={7: 2})
    assert known.behind(nodes, TEXT) == LookedUp(7, 0.6, 2) and known.behind(nodes, 0) == LookedUp(8, 0.5, None)
    assert LookupGraft().behind(nodes, TEXT) is None and LookupGraft().open_gain(nodes, 0) == 0.5


def test_the_index_is_asked_about_text_and_path():
    index, acceptance = LookupIndex(), LookupAcceptance()
    index.extend([1, 2, 3, 4, 5, 1, 2])
    graft = LookupGraft(index, acceptance, depth=24)
    nodes = [DraftNode(3, TEXT, 0, 0, 0.5, 0.5), DraftNode(9, TEXT, 0, 1, 0.1, None)]
    assert graft.behind(nodes, TEXT).token == 3 and graft.behind(nodes, 0).token == 4
    assert graft.behind(nodes, 0).estimate == acceptance.predict(index.match_behind([3]), 0)
    assert graft.behind(nodes, 1) is None
    # Behind a node that the drafter was not asked about they go on, and are likelier than the other node.
    assert [nodes[i].token for i in graft.add_rest(nodes, [0, 1], {TEXT}, fixed(6))] == [3, 4, 5, 1, 2, 3]
    assert [node.parent for node in nodes[2:6]] == [0, 2, 3, 4]
    assert nodes[2].gain == pytest.approx(0.5 * acceptance.predict(index.match_behind([3]), 0))
    del nodes[2:]
    assert graft.add_rest(nodes, [0, 1], {TEXT, 0, 1}, fixed(6)) == [0, 1]


def test_where_the_drafter_knows_the_token():
    scores = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, -torch.inf]])
    for do_sample in (False, True):
        sampler = DraftSampler(None, vocab_size=3, do_sample=do_sample)
        first, second = draft_tree._choices(sampler, scores, 3, [None, LookedUp(0, 0.5, 0)])
        assert first.looked_up == 0.0 and second.looked_up == pytest.approx(float(scores[1].softmax(-1)[0]))
        assert sorted(first.tokens) == [0, 1, 2] and sorted(second.tokens) == ([1] if do_sample else [0, 1])
        assert second.stats.top1 == pytest.approx(float(scores[1].softmax(-1)[0]))
        both = draft_tree._choices(sampler, scores, 3, [LookedUp(2, 0.5, 2), LookedUp(0, 0.5, 0)])
        assert both[0].looked_up == pytest.approx(float(scores[0].softmax(-1)[2])) and both[1].looked_up > 0.8
        assert sorted(both[0].tokens) == ([0, 1] if do_sample else [0, 1, 2]) and both[1].tokens == second.tokens
        unknown = draft_tree._choices(sampler, scores, 3, [None, LookedUp(9, 0.5, None)])[1]
        assert unknown.looked_up == 0.0 and sorted(unknown.tokens) == [0, 1]
    sure = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert draft_tree._choices(DraftSampler(None, 3, do_sample=True), sure, 2, [LookedUp(1, 0.5, 1)])[0].tokens == []


# ---- where it stands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("policy", [fixed(30), cost_aware()], ids=["fixed", "cost_aware"])
def test_the_path_is_in_the_tree(policy, do_sample):
    torch.manual_seed(0)
    for seed in range(8):
        drafter = Drafter(seed=seed)
        tokens = [int(drafter.logits(()).argmax()), 2, 5, 1, 0, 3, 4]
        graft = lookup_of(tokens, [0.95] * 7, sampling=do_sample)
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
        tree = grow(fixed(30), drafter, graft=lookup_of([token], [0.5]))
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
        graft = lookup_of([token, 1, 2], [0.05, 0.9, 0.9], sampling=do_sample)
        assert not any(node.looked_up for node in grow(policy, drafter, do_sample, graft=graft).nodes)
    # And one ends where it stops paying.
    graft = lookup_of([1] * 6, [0.99, 0.99, 0.99, 0.99, 0.1, 0.99], sampling=do_sample)
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
        graft = lookup_of([1] * 24, [0.99] * 24, sampling=do_sample)
        tree = grow(fixed(nodes=9, depth=2), Drafter(), do_sample, depth=2, graft=graft)
        assert len(tree.nodes) == 9


def test_the_drafter_goes_on_behind_looked_up_tokens():
    """Behind a token it would not have proposed itself, from its distribution there."""
    drafter = Drafter(seed=3)
    token = int(drafter.logits(()).argmin())
    tree = grow(fixed(20, depth=3, branching=2), drafter, graft=lookup_of([token], [0.97]))
    node = next(i for i, n in enumerate(tree.nodes) if n.looked_up)
    assert tree.nodes[node].rank == LOOKED_UP and tree.nodes[node].column is not None
    torch.testing.assert_close(tree.draft_scores(node)[0], drafter.logits((token,)))
    best = drafter.logits((token,)).topk(2).indices.tolist()
    assert [tree.nodes[i].token for i in tree.children[node]] == best


@pytest.mark.parametrize("do_sample", [False, True])
def test_behind_every_node(do_sample):
    """Whatever the drafter was asked about has the looked-up token below it, and the others go on with theirs."""
    torch.manual_seed(2)
    script, more = Everywhere(), 0
    for seed in range(4):
        graft = LookupGraft(script, script, sampling=do_sample, depth=6)
        drafter = Drafter(seed=seed)
        tree = grow(fixed(60, depth=2, branching=2), drafter, do_sample, depth=2, graft=graft)
        paths = {TEXT: ()} | paths_of(tree)
        for node, path in paths.items():
            (expected, *_), below = script.follow(path, 1, path), tree.children.get(node, [])
            found = [i for i in below if tree.nodes[i].token == expected and tree.nodes[i].looked_up]
            if node in tree.expansions:
                (child,) = found
                share = float(drafter.logits(path).softmax(-1)[expected])
                reach = tree.nodes[node].gain if node != TEXT else 1.0
                joint = joint_estimate(script.predict(path, 0), share, do_sample)
                assert tree.nodes[child].gain == pytest.approx(reach * joint, rel=1e-4)
            elif not tree.nodes[node].looked_up:
                assert below == found and all(tree.nodes[i].rank == LOOKED_UP for i in below)
                more += len(below)
    assert more > 8


def test_how_many_are_drawn_does_not_depend_on_what_is_drawn():
    for seed in range(6):
        sizes = set()
        for draw in range(12):
            torch.manual_seed(draw)
            trees = []
            for graft in (
                lookup_of([2, 3], [0.6, 0.7], sampling=True),
                LookupGraft(Everywhere(), Everywhere(), sampling=True, depth=9),
            ):
                trees.append(grow(cost_aware(slope=0.05), Drafter(seed=seed), do_sample=True, graft=graft))
            sizes.add(
                tuple((t.drafted_below(TEXT), any(n.looked_up and n.level == 0 for n in t.nodes)) for t in trees)
            )
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
