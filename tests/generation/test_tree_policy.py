# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Which trees are grown: the rules against sums done by hand and against an exhaustive search."""

import itertools
import random

import pytest
import torch

from ppow_hf import CostModel, WindowConfig
from ppow_hf.generation import AcceptanceEstimator, DraftSampler
from ppow_hf.generation.draft_tree import TEXT, grow_tree
from ppow_hf.generation.policies import CostAwarePolicy, Outcome
from ppow_hf.generation.sibling_estimate import SiblingEstimate
from ppow_hf.generation.tree_config import TreeConfig
from ppow_hf.generation.tree_policy import CostAwareTreePolicy, FixedTreePolicy, make_tree_policy


def cost_aware(curve=(1.0,), gamma=0.05, rate=2.0, **limits):
    config = WindowConfig(tree=TreeConfig(**limits), initial_rate=rate, min_size=0)
    return CostAwareTreePolicy(config, CostModel(gamma, list(curve)))


def test_nodes_are_added_while_they_pay():
    curve = [1.0, 1.1, 1.2, 1.3, 1.6, 1.9]
    policy = cost_aware(curve, rate=2.0)
    # At 2 tokens per unit cost, the first three nodes must gain more than 0.2 each, the next more than 0.6.
    assert policy.take([0.9, 0.7, 0.3, 0.5]) == 3
    assert policy.take([0.9, 0.19, 0.19]) == 1
    assert policy.take([0.9, 0.8, 0.7, 0.61]) == 4
    assert policy.take([0.61], count=3) == 1 and policy.take([0.59], count=3) == 0
    assert policy.take([0.9] * 9, room=2) == 2
    assert cost_aware(rate=2.0, max_nodes=4).take([0.1] * 9) == 4
    policy.min_size = 2
    assert policy.take([0.01, 0.001, 0.0001]) == 2


def test_adding_while_it_pays_is_the_best_there_is():
    """For a convex curve and the rate it achieves, no other number of the same nodes commits more per unit cost."""
    curve = [1 + 0.02 * n + 0.004 * n * n for n in range(12)]
    gains = [0.8, 0.55, 0.4, 0.22, 0.15, 0.14, 0.1, 0.06, 0.03, 0.01]
    model = CostModel(0.05, curve)
    best = max((1 + sum(gains[:n])) / (model.verify(n) + 0.1) for n in range(len(gains) + 1))
    policy = cost_aware(curve, rate=best)
    count = policy.take(gains)
    assert (1 + sum(gains[:count])) / (model.verify(count) + 0.1) == pytest.approx(best)


def test_as_many_nodes_as_are_worth_most_whatever_the_curve():
    """Against every number there is, on curves with jumps as machines have them."""
    generator = random.Random(0)
    behind_a_loss = 0
    for _ in range(300):
        steps = [generator.choice([0.0, 0.02, 0.05, 0.3, 0.6]) for _ in range(12)]
        curve = [1.0 + sum(steps[:n]) for n in range(13)]
        gains = sorted((generator.random() for _ in range(generator.randint(0, 14))), reverse=True)
        rate, count = generator.uniform(0.5, 3.0), generator.randint(0, 6)
        policy = cost_aware(curve, rate=rate, max_nodes=12)
        policy.min_size = generator.randint(0, 3)
        most = min(len(gains), 12 - count)
        least = min(max(policy.min_size - count, 0), most)
        worth = {n: sum(gains[:n]) - rate * curve[count + n] for n in range(least, most + 1)}
        taken = policy.take(gains, count)
        assert worth[taken] == pytest.approx(max(worth.values()), abs=1e-9)
        alone = (n for n in range(least, most) if gains[n] <= rate * (curve[count + n + 1] - curve[count + n]))
        behind_a_loss += taken > next(alone, most)
    assert behind_a_loss > 20  # where the first node that does not pay for itself would have ended the tree


def test_a_node_pays_together_with_those_expected_behind_it():
    """Against every choice of nodes at hand and of nodes on one path behind the likeliest of them."""
    generator = random.Random(1)
    for _ in range(200):
        steps = [generator.choice([0.0, 0.05, 0.4]) for _ in range(10)]
        curve = [1.0 + sum(steps[:n]) for n in range(11)]
        gains = sorted((generator.random() for _ in range(generator.randint(1, 6))), reverse=True)
        rate, levels, typical = generator.uniform(0.5, 3.0), generator.randint(1, 5), generator.uniform(0.3, 0.95)
        policy = cost_aware(curve, gamma=0.05, rate=rate, max_nodes=10)
        policy._typical = typical
        worth = {}
        for n in range(len(gains) + 1):
            for more in range(min(levels, 10 - n) + 1 if n else 1):
                path = [gains[0] * typical**k for k in range(1, more + 1)]
                total = sum(gains[:n]) + sum(path) - rate * (0.05 * more + curve[n + more])
                worth[n] = max(worth.get(n, total), total)
        alone = policy.take(gains)
        taken = policy.take(gains, follow=gains[0], levels=levels)
        assert taken >= alone
        assert worth[taken] == pytest.approx(max(worth.values()), abs=1e-9) or taken == alone


def test_a_level_behind_a_jump_is_paid_for_by_what_is_expected_behind_it():
    curve = [1.0, 1.05, 1.6, 1.62, 1.64, 1.66, 1.68, 1.7]
    policy = cost_aware(curve, gamma=0.02, rate=2.0, max_nodes=7)
    policy._typical = 0.9
    # Alone the next node costs 2 * 0.55 and gains 0.81 at most.
    assert policy.go_on_from([0.9], [0.9], 1, 1) == 1
    assert policy.go_on_from([0.3], [0.9], 1, 1) == 0
    policy.tree.max_depth = 2
    assert policy.go_on_from([0.9], [0.9], 1, 1) == 0  # there is no room for more levels


@pytest.mark.parametrize("do_sample", [False, True])
def test_hopeless_nodes_behind_a_flat_end_of_the_curve_are_left_out(do_sample):
    """Smoothing left the measured curve flat at its end, which is not to say that what lies beyond is free."""
    model = CostModel(0.05, [1.0 + 0.1 * min(n, 12) for n in range(17)])
    policy = make_tree_policy(WindowConfig(tree=TreeConfig(max_nodes=64), min_size=0, initial_rate=2.0), model)
    assert policy.take([0.9] * 16 + [0.001] * 48) == 16
    tree = grow(policy, Drafter(), do_sample, depth=6)
    assert len(tree.nodes) <= 16


def test_greedy_trees_are_cut_to_what_is_worth_most():
    """Whatever they were grown for: no fewer of their nodes are worth more."""
    generator = random.Random(2)
    for seed in range(20):
        steps = [generator.choice([0.0, 0.02, 0.3]) for _ in range(16)]
        curve = [1.0 + sum(steps[:n]) for n in range(17)]
        policy = cost_aware(curve, gamma=0.02, rate=2.0, max_nodes=16, branching=3)
        tree = grow(policy, Drafter(seed=seed), depth=5)
        gains = sorted((node.gain for node in tree.nodes), reverse=True)
        worth = [sum(gains[:n]) - 2.0 * curve[n] for n in range(len(gains) + 1)]
        assert worth[-1] == pytest.approx(max(worth), abs=1e-9)


def test_a_level_is_paid_for_by_all_its_nodes():
    policy = cost_aware([1.0 + 0.1 * n for n in range(9)], gamma=0.2, rate=2.0)
    policy._typical = 0.5
    # A node of gain 0.9 whose own estimate is 0.9: its child gains 0.9 * 0.7, less 0.2 for its verification. 0.43 pays
    # for the step (0.4); at a gain of 0.8 it is 0.36, which alone does not, but does with a second of the kind.
    assert policy.go_on_from([0.9], [0.9], 1, 1) == 1
    assert policy.go_on_from([0.8], [0.9], 1, 1) == 0
    assert policy.go_on_from([0.8, 0.75], [0.9, 0.9], 2, 1) == 2
    assert policy.go_on_from([0.8, 0.3], [0.9, 0.9], 2, 1) == 0  # a second that does not pay for both
    assert policy.go_on_from([0.9, 0.3], [0.9, None], 2, 1) == 1
    policy.min_size = 3
    assert policy.go_on_from([0.1], [0.1], 1, 1) == 1 and policy.go_on_from([0.1], [0.1], 3, 3) == 0
    assert cost_aware(max_nodes=2).go_on_from([0.9], [0.9], 2, 1) == 0


def test_the_rate_is_that_of_chains():
    model = CostModel(0.05, [1.0, 1.1, 1.3], 0.02)
    config = WindowConfig(tree=True)
    tree, chain = CostAwareTreePolicy(config, model), CostAwarePolicy(WindowConfig(), model)
    for nodes, committed in [(3, 2), (1, 1), (5, 5), (0, 1)] * 20:
        tree.update(nodes, committed, [1] * nodes)
        chain.update(Outcome(nodes, committed - 1, committed, nodes))
        assert tree.rate == pytest.approx(chain.rate, abs=1e-12)
    # A step for five nodes costs more than one for a single node, and less than two.
    assert model.level_cost(1) == 1.0 and model.level_cost(5) == pytest.approx(1.19)
    model.level_costs = [0.5, 0.02]
    assert model.level_cost(1) == 1.0 and model.level_cost(5) == pytest.approx(1.58)
    rates = []
    for steps in ([1, 1], [1, 5], [1, 1, 1]):
        tree = CostAwareTreePolicy(config, model)
        tree.update(4, 3, steps)
        rates.append(tree.rate)
    assert rates[0] > rates[1] > rates[2]


class Drafter:
    """Draft distributions by path: independent of the models, so that trees can be checked by hand."""

    def __init__(self, width=6, seed=0):
        self.width, self.seed = width, seed

    def logits(self, path):
        generator = torch.Generator().manual_seed(hash((self.seed, *path)) % 2**31)
        return 2.0 * torch.randn(self.width, generator=generator)

    def begin(self):
        self.paths = [()]
        return self.logits(())[None]

    def step(self, state, token_ids, parents):
        tokens = token_ids.tolist()
        self.paths = [(*self.paths[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        return torch.stack([self.logits(path) for path in self.paths])


def grow(policy, drafter, do_sample=False, depth=3, **kwargs):
    sampler = DraftSampler(None, vocab_size=drafter.width, do_sample=do_sample)
    return grow_tree(
        None,
        None,
        drafter.begin(),
        sampler=sampler,
        policy=policy,
        estimator=AcceptanceEstimator(sampling=do_sample),
        siblings=SiblingEstimate(do_sample),
        max_depth=depth,
        step=drafter.step,
        **kwargs,
    )


def paths_of(tree):
    paths = {TEXT: ()}
    for i, node in enumerate(tree.nodes):
        assert node.parent < i and node.level == len(paths[node.parent])
        paths[i] = (*paths[node.parent], node.token)
    return paths


@pytest.mark.parametrize("nodes", [3, 8, 15])
def test_a_fixed_greedy_tree_has_the_nodes_of_highest_gain(nodes):
    """Against all paths there are: with enough rows per level, none of higher gain is missing."""
    for seed in range(5):
        drafter = Drafter(width=4, seed=seed)
        config = WindowConfig(policy="fixed", tree=TreeConfig(max_nodes=nodes, max_depth=3, branching=4))
        policy = FixedTreePolicy(config)
        policy.go_on_from = lambda gains, *rest: len(gains)
        tree = grow(policy, drafter)
        estimator, siblings = AcceptanceEstimator(), SiblingEstimate(False)
        from ppow_hf.generation.acceptance import DraftStats, acceptance_features

        gains = {(): 1.0}
        for length in (1, 2, 3):
            for path in itertools.product(range(4), repeat=length):
                probs = drafter.logits(path[:-1]).softmax(-1)
                order = probs.argsort(descending=True).tolist()
                top = probs[order].tolist()
                stats = DraftStats(top[0], top[1], float(torch.special.entr(probs).sum()))
                estimate = estimator.predict(acceptance_features(stats, length - 1, 0.0))
                chances = [estimate] + [(1 - estimate) * share for share in siblings.shares(top, 3)]
                rank, parent = order.index(path[-1]), gains[path[:-1]]
                gains[path] = parent * min(chances[: rank + 1])
        best = sorted((gain for path, gain in gains.items() if path), reverse=True)[:nodes]
        found = paths_of(tree)
        assert len(tree.nodes) == nodes
        assert sorted((node.gain for node in tree.nodes), reverse=True) == pytest.approx(best, abs=1e-6)
        for i, node in enumerate(tree.nodes):
            assert node.gain == pytest.approx(gains[found[i]], abs=1e-6)


@pytest.mark.parametrize("do_sample", [False, True])
def test_trees_are_in_order(do_sample):
    torch.manual_seed(0)
    for seed in range(8):
        policy = make_tree_policy(
            WindowConfig(tree=TreeConfig(max_nodes=12, branching=3), min_size=0),
            CostModel(0.02, [1.0 + 0.02 * n for n in range(14)]),
        )
        drafter = Drafter(seed=seed)
        tree = grow(policy, drafter, do_sample, depth=4)
        paths = paths_of(tree)
        assert len(set(paths.values())) == len(paths) and len(tree.nodes) <= 12 and tree.depth <= 4
        for parent, below in tree.children.items():
            assert [tree.nodes[i].rank for i in below] == list(range(len(below)))
            assert all(tree.nodes[i].parent == parent for i in below) and parent in tree.expansions
        for node, said in tree.expansions.items():
            wanted = drafter.logits(paths[node])
            torch.testing.assert_close(tree.draft_scores(node)[0], wanted)
            assert said.level == len(paths[node])
        # The path of first children stands in front.
        first, node = [], TEXT
        while node in tree.children:
            node = tree.children[node][0]
            first.append(node)
        assert first == list(range(len(first)))
        columns = [node.column for node in tree.nodes if node.column is not None]
        assert len(set(columns)) == len(columns) and 1 <= len(tree.steps) <= 4 and tree.steps[0] == 1


def test_nothing_is_drafted_behind_the_end_of_text():
    policy = FixedTreePolicy(WindowConfig(policy="fixed", tree=TreeConfig(max_nodes=20, max_depth=3, branching=3)))
    ends = frozenset([0, 3])
    found = 0
    for seed in range(6):
        tree = grow(policy, Drafter(seed=seed), eos_token_ids=ends)
        found += sum(node.token in ends for node in tree.nodes)
        assert all(node.parent == TEXT or tree.nodes[node.parent].token not in ends for node in tree.nodes)
    assert found > 0
    assert grow(policy, Drafter(), eos_token_ids=frozenset(range(6))).stop == "eos"


def test_how_many_are_drawn_does_not_depend_on_what_is_drawn():
    """Two draws from the same distributions give first levels of one size (deeper ones hang on what was drawn)."""
    model = CostModel(0.05, [1.0 + 0.05 * n for n in range(34)])
    for seed in range(6):
        sizes = set()
        for draw in range(12):
            torch.manual_seed(draw)
            policy = make_tree_policy(WindowConfig(tree=True, min_size=0), model)
            sizes.add(sum(node.level == 0 for node in grow(policy, Drafter(seed=seed), do_sample=True).nodes))
        assert len(sizes) == 1


def test_room_of_fixed_sampled_trees():
    policy = FixedTreePolicy(WindowConfig(policy="fixed", tree=TreeConfig(max_nodes=8, max_depth=3, branching=4)))
    assert policy.room(0, 3) == 3 and policy.room(3, 2) == 3 and policy.room(6, 1) == 2
    tree = grow(policy, Drafter(), do_sample=True)
    assert tree.depth == 3 and len(tree.nodes) == 8


def test_sibling_shares():
    greedy = SiblingEstimate(False)
    assert greedy.factor == pytest.approx(1.2)
    assert greedy.shares([0.5, 0.25, 0.1], 2) == pytest.approx([0.6, 0.24])
    assert greedy.shares([1.0, 0.0], 1) == [0.0]
    # Of rejected first children, the second is right as often as the drafter says: the factor tends to 1.
    for i in range(400):
        greedy.update([greedy.factor * 0.5], 1 if i % 2 else None, 2)
    assert greedy.factor == pytest.approx(1.0, abs=0.05)
    for _ in range(400):
        greedy.update([greedy.factor * 0.5], None, 2)
    assert greedy.factor < 0.05
    before = greedy.factor
    greedy.update([0.3], 0, 2)  # the first child was accepted: nothing is learnt of the others
    greedy.update([0.3], None, 1)  # there were no others
    assert greedy.factor == before


def test_sibling_shares_when_sampling():
    sampled = SiblingEstimate(True)
    assert sampled.shares([0.9, 0.1], 3) == pytest.approx([0.3, 0.3 * 0.7, 0.3 * 0.49])
    for _ in range(500):  # three later children, and the second of them is accepted: half of those that were tried
        sampled.update([], 2, 4)
    assert sampled.factor == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("field", ["max_nodes", "max_depth", "branching"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_limits_are_checked(field, value):
    with pytest.raises(ValueError, match=f"`{field}` of the tree must be an integer of at least 1"):
        TreeConfig(**{field: value})


def test_tree_of_a_window():
    assert WindowConfig().tree is None and WindowConfig(tree=False).tree is None
    assert WindowConfig(tree=True).tree == TreeConfig()
    assert WindowConfig(tree={"max_nodes": 5}).tree == TreeConfig(max_nodes=5)
    config = WindowConfig(policy="fixed", tree=TreeConfig(9, 3, 2))
    assert WindowConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["tree"] == {"max_nodes": 9, "max_depth": 3, "branching": 2}
    assert WindowConfig.parse("tree").tree == TreeConfig()
    assert WindowConfig.parse("tree:7", config) == WindowConfig(tree=TreeConfig(7, 3, 2))
    assert WindowConfig.parse("cost_aware", config).tree is None
    for wrong in ("tree:0", "tree:x", "tree:"):
        with pytest.raises(ValueError, match="expected an integer of at least 1"):
            WindowConfig.parse(wrong)
    with pytest.raises(ValueError, match="Unknown tree field.*depth.*Known fields: max_nodes"):
        WindowConfig(tree={"depth": 3})
    with pytest.raises(ValueError, match="`tree` of the window must be a TreeConfig"):
        WindowConfig(tree=8)
    with pytest.raises(ValueError, match="cost_aware and fixed, got 'heuristic'"):
        WindowConfig(policy="heuristic", tree=True)
