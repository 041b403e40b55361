# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The choice between proposals: by hand, and in decoding of known outcome, never slower than the better part."""

from dataclasses import replace

import pytest
import torch

from ppow_hf import CostModel, WindowConfig
from ppow_hf.generation import LookupMatch, LookupProposer, Proposal, ProposalSwitch
from ppow_hf.generation.stored_costs import cost_model_key
from tests.generation.scripted import COSTS, ScriptedTarget, drafter_of_quality, streams


def spent(script, quality, window, costs, cache_folder, new_tokens):
    """Cost in plain target steps of writing a known text with a drafter of known quality, by the model's prices."""
    target, drafter = ScriptedTarget(script), drafter_of_quality(script, quality)
    replace(costs, key=cost_model_key(target, drafter)).save(cache_folder)
    prompt = torch.tensor([script[:20]])
    output = target.generate(
        prompt, assistant_model=drafter, window=window, max_new_tokens=new_tokens, do_sample=False
    )
    assert output[0].tolist() == script[: 20 + new_tokens]
    verified = sum(costs.verify(cycle.drafted) + costs.overhead for cycle in drafter.last_trace.cycles)
    return costs.gamma * drafter.passes + verified


@pytest.mark.parametrize("curve", sorted(COSTS))
@pytest.mark.parametrize("quality", [0.3, 0.6, 0.8])
def test_never_slower_than_the_better_part(curve, quality, cache_folder):
    relative = {}
    for name, script in streams(380).items():
        cost = {
            window: spent(script, quality, window, COSTS[curve], cache_folder, 300)
            for window in ("cost_aware", "lookup", "mixed")
        }
        relative[name] = cost["mixed"] / min(cost["cost_aware"], cost["lookup"])
    # Where only the drafter is ever right nothing is lost; elsewhere no more than finding out costs.
    assert relative["fresh"] < 1.02 and max(relative.values()) < 1.1, relative
    # Where a text is now repetitive, now not, or repeats what the drafter knows, taking turns beats both.
    assert relative["phases"] < 0.9 and relative["loop"] < 0.97, relative
    assert sum(relative.values()) / len(relative) < 0.97, relative


def test_value_of_a_choice_by_hand():
    """Against sums written out."""
    costs = CostModel(0.1, [1.0, 1.2, 1.3, 1.4, 1.5], 0.05)
    switch = ProposalSwitch(WindowConfig(proposals="mixed", max_size=4), costs)
    value, count = switch.lookup_value([0.9, 0.8, 0.1])
    assert count == 2 and value == pytest.approx((1 + 0.9 + 0.72) / (1.3 + 0.05))
    assert switch.lookup_value([0.05, 0.9]) == (pytest.approx(1 / 1.05), 0)
    # An untried drafter: right seven times of ten, and a little better than that where it was never tried.
    usual = max((1 + sum(0.7**i for i in range(1, n + 1))) / (0.1 * n + costs.verify(n) + 0.05) for n in range(1, 5))
    assert switch.drafter_value(0) == pytest.approx(1.1 * usual)
    for _ in range(300):
        switch.learn_drafter(0, 4, 3, 3)
    rate = 4 / (0.1 * 3 + 1.4 + 0.05)
    assert switch.drafter_value(0) == pytest.approx(rate, rel=0.03)
    mixed, count = switch.mixed_value([0.9, 0.2], rate)
    # One looked-up token, 3 + 1 passes, 3 + 1 tokens to verify; 3 tokens behind it, a tenth fewer than at the front.
    assert count == 1 and mixed == pytest.approx((1 + 0.9 + 0.9 * 3 * 0.9) / (0.1 * 4 + 1.5 + 0.05), rel=1e-6)


def test_the_choice_follows_the_values():
    costs = CostModel(0.06, [1.0 + 0.025 * i for i in range(17)], 0.05)
    switch = ProposalSwitch(WindowConfig(proposals="mixed"), costs)
    for strength in range(5):
        for _ in range(100):
            switch.learn_drafter(strength, 3, 4, 4)
    tokens = list(range(20))
    good, poor = [0.95] * 20, [0.3] * 20
    chosen = switch.choose(tokens, good, 100)
    assert chosen.source == "lookup" and chosen.tokens == tokens[: len(chosen.tokens)] and len(chosen.tokens) > 10
    assert chosen.predicted == good[: len(chosen.tokens)]
    assert switch.choose(tokens, poor, 100).source == "drafter"
    assert switch.choose([], [], 100).source == "drafter"
    assert switch.choose(tokens, good, 3).tokens == tokens[:3]
    assert switch.choose(tokens, good, 100, can_draft=False).source == "lookup"
    assert switch.choose([], [], 100, can_draft=False) == Proposal("lookup", [], [], pytest.approx(1 / 1.05))
    # Looked-up tokens in front of the drafter's: worth it where the drafter costs next to nothing, and not here.
    cheap = ProposalSwitch(WindowConfig(proposals="mixed"), CostModel(0.001, [1.0 + 0.1 * i for i in range(17)], 0.0))
    for _ in range(100):
        cheap.learn_drafter(cheap.strength([0.95, 0.95]), 3, 3, 3)
    assert cheap.choose(tokens[:2], [0.95, 0.95], 100).source == "mixed"


def test_lookup_is_judged_while_the_drafter_proposes():
    """The committed tokens tell how many of lookup's tokens were right, as far as they go."""
    costs = CostModel(0.06, [1.0 + 0.025 * i for i in range(17)], 0.05)
    proposer = LookupProposer(ProposalSwitch(WindowConfig(proposals="mixed"), costs), frozenset([99]))
    proposer.index.extend([1, 2, 3, 4, 5, 6, 1, 2])
    judged = []
    proposer.switch.acceptance.update = lambda match, position, outcome: judged.append((position, outcome))
    outcomes = {"accepted": 2, "drafted": 2, "forwards": 2, "cut": False, "scores": None}
    proposer.propose(50)
    proposer.learn(Proposal(), [3, 4, 7], **outcomes)
    assert judged == [(0, 1.0), (1, 1.0), (2, 0.0)] and proposer.index.tokens[-3:] == [3, 4, 7]
    judged.clear()
    proposer.index.extend([1, 2, 3])
    proposer.propose(50)
    proposer.learn(Proposal(), [4], **outcomes)
    assert judged == [(0, 1.0)]  # the rest is not known
    judged.clear()
    proposer.propose(50)
    scores = torch.zeros(2, 10)
    scores[0, 7] = 1.0
    proposer.learn(Proposal(), [7, 3], **{**outcomes, "scores": scores})
    chance = scores.softmax(-1)
    assert judged == [(0, pytest.approx(float(chance[0, 7]))), (1, pytest.approx(float(chance[1, 1])))]


def test_runs_that_end_early_make_lookup_worth_less():
    costs = CostModel(0.06, [1.0 + 0.025 * i for i in range(17)], 0.05)
    switch = ProposalSwitch(WindowConfig(proposals="lookup"), costs)
    tokens, predicted = list(range(12)), [0.9] * 12
    before = switch.choose(tokens, predicted, 50)
    for _ in range(10):
        switch.learn_run(switch.strength(predicted), predicted, 1)
    after = switch.choose(tokens, predicted, 50)
    assert after.value < 0.6 * before.value and len(after.tokens) <= len(before.tokens)


def test_costs_are_needed_to_choose():
    with pytest.raises(ValueError, match="needs a cost model"):
        ProposalSwitch(WindowConfig(proposals="mixed"), None)
    fixed = ProposalSwitch(WindowConfig.parse("lookup:2"), None)
    match = LookupMatch(3, 2, 1, 0)
    assert fixed.choose([4, 5, 6], fixed.predict(match, 3), 2).tokens == [4, 5]
