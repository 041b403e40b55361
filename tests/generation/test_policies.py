# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Policies against cases worked out by hand."""

import inspect
import math
import random

import pytest

from ppow_hf import CostModel, WindowConfig
from ppow_hf.generation import DraftStats, WindowPolicy, make_policy
from ppow_hf.generation.policies import CostAwarePolicy, Outcome

STATS = DraftStats(top1=0.7, top2=0.1, entropy=1.0)


def run(policy, estimates, probabilities=None):
    """Length of the window the policy draws from draft distributions with these estimates."""
    probabilities = probabilities or [0.9] * len(estimates)
    size = policy.target_size()
    for position in range(min(size, len(estimates))):
        if not policy.wants(position, estimates[position], STATS):
            return position
        if position + 1 >= size:
            return position + 1
        if not policy.continues(position, estimates[position], STATS, probabilities[position]):
            return position + 1
    return min(size, len(estimates))


def outcome(drafted, accepted, divergence=None, forwards=None):
    return Outcome(drafted, accepted, accepted + 1, forwards if forwards is not None else drafted, divergence)


def test_fixed():
    policy = make_policy(WindowConfig("fixed", size=4))
    for accepted in (0, 4, 2):
        assert run(policy, [0.01] * 9) == 4
        policy.update(outcome(4, accepted))


def test_heuristic():
    policy = make_policy(WindowConfig("heuristic", size=3, max_size=6))
    sizes = []
    for drafted, accepted in [(3, 3), (5, 5), (6, 2), (5, 0), (4, 4), (0, 0)]:
        policy.update(outcome(drafted, accepted))
        sizes.append(policy.target_size())
    # +2, +2 (at most 6), -1, -1, +2, and nothing drafted changes nothing
    assert sizes == [5, 6, 5, 4, 6, 6]


def test_heuristic_never_reaches_zero():
    policy = make_policy(WindowConfig("heuristic", size=1, min_size=0))
    policy.update(outcome(1, 0))
    assert policy.target_size() == 1


def test_confidence_keeps_the_improbable_token_and_stops_behind_it():
    policy = make_policy(WindowConfig("confidence", threshold=0.5, max_size=6))
    assert run(policy, [0.5] * 9, [0.9, 0.6, 0.4, 0.9, 0.9, 0.9, 0.9]) == 3
    assert run(policy, [0.5] * 9, [0.1] + [0.9] * 8) == 1
    assert run(policy, [0.5] * 9) == 6


def test_confidence_draws_at_least_min_size():
    policy = make_policy(WindowConfig("confidence", threshold=0.5, min_size=3))
    assert run(policy, [0.5] * 9, [0.1] * 9) == 3


@pytest.mark.parametrize(
    ("divergence", "window"),
    [(0.5, 2), (0.25, 4), (0.1, 12), (1.0, 1), (0.0, 12), (0.9, 1), (0.28, 4)],
)
def test_divergence(divergence, window):
    """1.5 * (1 - D) / D, rounded, from 1 to 12: 1.5 -> 2, 4.5 -> 4 (half to even), 13.5 -> 12, 0 -> 1, 3.86 -> 4."""
    policy = make_policy(WindowConfig("divergence", stretch=1.5))
    assert policy.target_size() == 5
    policy.update(outcome(3, 1, divergence))
    assert policy.target_size() == window


def test_divergence_in_kl():
    policy = make_policy(WindowConfig("divergence", divergence_metric="kl", stretch=2.0))
    variation = math.sqrt(1 - math.exp(-0.2))
    assert policy.window_for(0.2) == round(2.0 * (1 - variation) / variation)
    assert policy.window_for(0.0) == 12 and policy.window_for(50.0) == 1


def test_divergence_shrinks_and_stretches():
    policy = make_policy(WindowConfig("divergence"))
    windows = [policy.window_for(d / 20) for d in range(1, 20)]
    assert windows == sorted(windows, reverse=True) and windows[0] > windows[-1]


COSTS = CostModel(gamma=0.1, verify_curve=[1.0, 1.2, 1.25, 1.4, 1.45, 1.5], overhead=0.05)


def cost_aware(rate=2.0, **kwargs):
    return make_policy(WindowConfig("cost_aware", **{"min_size": 0, "initial_rate": rate, **kwargs}), COSTS)


def test_cost_aware_sends_a_token_that_pays_for_its_verification():
    # v(1) - v(0) = 0.2, at two tokens per unit cost: worth 0.4
    assert cost_aware().wants(0, 0.41, STATS) is True
    assert cost_aware().wants(0, 0.39, STATS) is False
    # the same token at a rate of 1 is worth it
    assert cost_aware(rate=1.0).wants(0, 0.39, STATS) is True


def test_cost_aware_multiplies_the_chances():
    policy = cost_aware()
    policy.target_size()
    assert policy.wants(0, 0.5, STATS)
    policy.continues(0, 0.5, STATS, 0.9)
    # v(2) - v(1) = 0.05 -> 0.1; A_2 = 0.5 * a
    assert policy.wants(1, 0.21, STATS) is True
    assert policy.wants(1, 0.19, STATS) is False


def test_cost_aware_draws_while_the_expected_gain_pays_for_draft_and_verification():
    # drawing token 2 costs gamma + v(2) - v(1) = 0.15 -> 0.3 at a rate of 2; with a_1 = 0.6 and 0.6 usual, A_2 = 0.36
    policy = cost_aware()
    policy.target_size()
    assert policy.continues(0, 0.6, STATS, 0.9) is True
    # a_1 = 0.45: A_2 is expected to be 0.45 * 0.525 = 0.236
    policy.target_size()
    assert policy.continues(0, 0.45, STATS, 0.9) is False


def test_cost_aware_window_grows_with_the_estimate():
    lengths = [run(cost_aware(max_size=5), [a] * 9) for a in (0.2, 0.45, 0.7, 0.9, 0.99)]
    assert lengths == sorted(lengths) and lengths[0] == 0 and lengths[-1] == 5


def test_cost_aware_respects_its_limits():
    assert run(cost_aware(min_size=2), [0.01] * 9) == 2
    assert run(cost_aware(max_size=3), [0.999] * 9) == 3


def test_cost_aware_begins_every_window_afresh():
    policy = cost_aware()
    first = run(policy, [0.7] * 9)
    assert first == run(policy, [0.7] * 9) > 0


def test_cost_aware_rate_follows_what_is_achieved():
    policy = cost_aware(rate=1.0)
    assert policy.rate == pytest.approx(1.0)
    for _ in range(400):
        policy.update(outcome(4, 3))
    # 4 tokens at 4 * 0.1 + 1.45 + 0.05
    assert policy.rate == pytest.approx(4 / 1.9, rel=1e-3)


def test_cost_aware_never_does_worse_than_its_worst_fixed_window():
    """At a steady acceptance probability the window found is the best one, computed by brute force."""
    costs = CostModel(gamma=0.06, verify_curve=[1.0 + 0.03 * n for n in range(17)], overhead=0.03)
    for a in (0.3, 0.5, 0.7, 0.85):
        policy = CostAwarePolicy(WindowConfig("cost_aware", min_size=0, rate_memory=60.0), costs)
        for _ in range(300):
            length = run(policy, [a] * 20)
            expected = sum(a**i for i in range(1, length + 1))
            policy.update(Outcome(length, 0, 1 + expected, max(length, 1)))
        best = max(range(13), key=lambda n: costs.speedup(sum(a**i for i in range(n + 1)), n))
        assert abs(length - best) <= 1
        achieved = costs.speedup(sum(a**i for i in range(length + 1)), length)
        assert achieved > 0.99 * costs.speedup(sum(a**i for i in range(best + 1)), best)


@pytest.mark.parametrize("spent", [True, False])
def test_cost_aware_finds_the_best_window_whatever_the_curve(spent):
    """Steady acceptance, curves with jumps, a given rate: against the worth of every window, by brute force."""
    generator = random.Random(0)
    behind_a_loss = 0
    for _ in range(200):
        steps = [generator.choice([0.0, 0.02, 0.05, 0.4]) for _ in range(12)]
        costs = CostModel(generator.choice([0.0, 0.05]), [1.0 + sum(steps[:n]) for n in range(13)])
        a, rate = generator.uniform(0.3, 0.95), generator.uniform(1.0, 2.5)
        policy = CostAwarePolicy(WindowConfig("cost_aware", min_size=0, max_size=12, initial_rate=rate), costs)
        policy._typical = a
        # The first token's draft step is spent before it is asked about.
        worth = [sum(a**i for i in range(1, n + 1)) - rate * costs.cycle_cost(n) for n in range(13)]
        worth[0] -= rate * costs.gamma
        if spent:
            length = run(policy, [a] * 12)
        else:  # asked only before draft steps, of which the first is none
            policy.target_size()
            length = 1
            while length < 12 and policy.continues(length - 1, a, STATS, 0.9):
                length += 1
            worth[0] = -math.inf
        assert worth[length] == pytest.approx(max(worth), abs=1e-9)
        pays = [worth[n + 1] > worth[n] for n in range(12)]
        behind_a_loss += not all(pays[:length])
    assert behind_a_loss > 20


def test_cost_aware_does_not_walk_into_a_jump_and_turn_back():
    """The curve measured in float32: the third token costs 0.36. Worth it for long windows, not for one token more."""
    curve = [1.0, 1.075, 1.134, 1.494, 1.556, 1.656, 1.756, 1.816, 1.875, 1.952, 2.03, 2.107, 2.184]
    costs = CostModel(gamma=0.048, verify_curve=curve, overhead=0.063)
    for a in (0.5, 0.7, 0.8, 0.9, 0.95):
        speed = [costs.speedup(sum(a**i for i in range(n + 1)), n) for n in range(13)]
        config = WindowConfig("cost_aware", min_size=0, max_size=12, initial_rate=max(speed))
        policy = CostAwarePolicy(config, costs)
        policy._typical = a
        assert run(policy, [a] * 12) == speed.index(max(speed))


def test_cost_aware_needs_costs():
    with pytest.raises(ValueError, match="needs a cost model"):
        make_policy(WindowConfig("cost_aware"))


def subclasses(cls):
    return [cls, *(c for sub in cls.__subclasses__() for c in subclasses(sub))]


@pytest.mark.parametrize("policy", subclasses(WindowPolicy), ids=lambda c: c.__name__)
def test_a_policy_cannot_see_the_token_it_might_leave_out(policy):
    """`wants` decides about a token that is not kept yet: nothing it is given depends on that token's value."""
    assert list(inspect.signature(policy.wants).parameters) == ["self", "position", "estimate", "stats"]
