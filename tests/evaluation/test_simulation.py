# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Simulated windows against real decoding, hand-computed walks and exhaustive search."""

import itertools
import random

import pytest
import torch

from ppow_hf.evaluation.replay import accepted_from_everywhere
from ppow_hf.evaluation.simulation import RecordedWindows, cheapest_walk, oracle_walk, record_windows, simulate
from ppow_hf.generation import CostModel, WindowConfig
from ppow_hf.generation.stored_costs import cost_model_key
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

COSTS = CostModel(gamma=0.05, verify_curve=[1.0, 1.02, 1.05, 1.1, 1.2, 1.35, 1.5], overhead=0.03)
WINDOWS = [
    WindowConfig(policy="cost_aware", max_size=6),
    WindowConfig(policy="cost_aware", max_size=6, min_size=0, initial_rate=3.0, online_calibration=False),
    WindowConfig(policy="fixed", size=3),
    WindowConfig(policy="heuristic", size=2, max_size=6),
    WindowConfig(policy="confidence", threshold=0.3, max_size=6),
    WindowConfig(policy="divergence", max_size=6),
    WindowConfig(policy="divergence", max_size=6, divergence_metric="kl"),
]


@pytest.fixture(scope="module", params=["eagle3", "causal"])
def models(request):
    target = tiny_target(vocab_size=12)
    if request.param == "eagle3":
        drafter = tiny_eagle3(target, draft_vocab_size=9)
    else:
        drafter = tiny_causal_drafter(target, num_layers=3)
    drafter.bind_target(target)
    drafter.__dict__["_cost_models"] = {cost_model_key(target, drafter): COSTS}
    return target, drafter


def decode(target, drafter, prompt, window, new_tokens, eos):
    ids = torch.tensor([prompt])
    output = target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=eos,
        **({} if window is None else {"assistant_model": drafter, "window": window}),
    )
    return output[0].tolist()


@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: f"{w.policy}-{w.min_size}-{w.divergence_metric}")
@pytest.mark.parametrize("eos", [None, 5])
def test_walk_is_what_decoding_does(models, window, eos):
    target, drafter = models
    seen, ended, idle = set(), 0, 0
    for seed in range(6):
        prompt = torch.randint(2, 12, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
        text = decode(target, drafter, prompt, None, 30, eos)
        if len(text) < len(prompt) + 2:
            continue
        assert decode(target, drafter, prompt, window, 30, eos) == text
        cycles = drafter.last_trace.cycles
        kl = window.divergence_metric == "kl"
        windows = record_windows(target, drafter, torch.tensor([text]), len(prompt) + 1, 6, kl=kl)
        walk = simulate(windows, window, COSTS, 29, frozenset() if eos is None else frozenset([eos]))
        assert walk.cycles == [(cycle.drafted, cycle.accepted) for cycle in cycles]
        passes = sum(len(cycle.marks["draft"]) for cycle in cycles)  # of the drafter, each timed by itself
        assert walk.cost == pytest.approx(0.05 * passes + sum(COSTS.verify(c.drafted) + 0.03 for c in cycles))
        assert walk.committed == sum(cycle.committed for cycle in cycles) == len(text) - len(prompt) - 1
        seen.update(walk.cycles)
        ended += len(text) < len(prompt) + 30
        idle += sum(drafted == 0 for drafted, _ in walk.cycles)
    assert len(seen) > 3 and (ended > 0) == (eos is not None)  # or the comparison would say little


def test_what_the_policy_sees_is_what_decoding_shows_it(models):
    target, drafter = models
    window = WindowConfig(policy="cost_aware", max_size=6)
    text = decode(target, drafter, [3, 4, 5], None, 60, None)
    decode(target, drafter, [3, 4, 5], window, 60, None)
    windows = record_windows(target, drafter, torch.tensor([text]), 4, 6)
    position, divergence = 0, 0.4
    for cycle in drafter.last_trace.cycles:
        assert cycle.divergence == pytest.approx(divergence, abs=1e-4)
        assert windows.stats[position, : cycle.drafted, 0].tolist() == pytest.approx(cycle.confidence, abs=1e-4)
        assert windows.stats[position, : cycle.drafted, 3].tolist() == cycle.tokens
        for variation in windows.variation[position][: len(cycle.outcomes)]:
            divergence += 0.2 * (variation - divergence)
        position += cycle.committed


def test_accepted_is_that_of_replay(models):
    target, drafter = models
    text = torch.tensor([decode(target, drafter, [3, 4, 5], None, 24, None)])
    windows = record_windows(target, drafter, text, 4, 5)
    assert windows.accepted == accepted_from_everywhere(target, drafter, text, 4, 5).tolist()
    for place, values in enumerate(windows.variation):
        assert len(values) == min(windows.accepted[place] + 1, 5, len(windows.accepted) - place)


def fixed_windows(accepted, width):
    stats = torch.tensor([0.5, 0.1, 1.0, 0.0, 0.5]).expand(len(accepted), width, 5)
    return RecordedWindows(stats, accepted, [[0.5] * width] * len(accepted), [[]] * len(accepted))


def test_walks_by_hand():
    costs = CostModel(gamma=0.1, verify_curve=[1.0, 1.2, 1.3, 1.4, 1.5], overhead=0.05)
    accepted = [2, 9, 0, 0, 4, 4, 4]
    # Fixed 3: 2 of 3 are accepted, from place 3 none of 3, then 2 of 2: the last token is left to the target.
    walk = simulate(fixed_windows(accepted, 3), WindowConfig(policy="fixed", size=3), costs, budget=7)
    assert walk.cycles == [(3, 2), (3, 0), (2, 2)]
    assert walk.cost == pytest.approx((0.3 + 1.4 + 0.05) * 2 + (0.2 + 1.3 + 0.05))
    assert (walk.committed, walk.verifications, walk.speedup) == (7, 3, pytest.approx(7 / 5.05))
    # The same with room behind the text, which an end-of-text token closed: the last window is drafted in full.
    walk = simulate(fixed_windows([2, 9, 0, 0, 3, 2, 1], 3), WindowConfig(policy="fixed", size=3), costs, budget=20)
    assert walk.cycles == [(3, 2), (3, 0), (3, 3)] and walk.committed == 7
    # The oracle: 2, then 0 at a plain step and no draft step, then 2 and the target's own.
    walk = oracle_walk(accepted, 4, costs)
    assert walk.cycles == [(2, 2), (0, 0), (2, 2)]
    assert walk.cost == pytest.approx(2 * (0.2 + 1.3 + 0.05) + 1.05)
    assert oracle_walk(accepted, 1, costs).cycles == [(1, 1), (0, 0), (0, 0), (1, 1), (0, 0)]
    # The oracle takes 2 at once and then crawls; drafting nothing leads to place 1, where all the rest can be drafted.
    walk = cheapest_walk([2, 9, 0, 0, 0, 0, 0], 6, costs)
    assert walk.cycles == [(0, 0), (5, 5)] and walk.cost == pytest.approx(1.05 + 0.5 + 1.6 + 0.05)


def test_cheapest_against_every_sequence_of_windows():
    costs = CostModel(gamma=0.3, verify_curve=[1.0, 1.3, 1.35, 2.2], overhead=0.1)
    rng = random.Random(0)
    earlier = 0
    for _ in range(30):
        accepted = [rng.choice([0, 1, 2, 3, 5]) for _ in range(7)]
        best = float("inf")
        for sizes in itertools.product(range(4), repeat=7):
            position, cost, cycles = 0, 0.0, 0
            while position < 7:
                size = sizes[cycles]
                if size > min(accepted[position], 6 - position):
                    break
                cost += 0.3 * size + costs.verify(size) + 0.1
                position, cycles = position + size + 1, cycles + 1
            else:
                best = min(best, cost)
        walk, oracle = cheapest_walk(accepted, 3, costs), oracle_walk(accepted, 3, costs)
        assert walk.cost == pytest.approx(best) and walk.committed == oracle.committed == 7
        earlier += walk.cost < oracle.cost - 1e-9
    assert earlier > 0


def test_no_policy_beats_the_bound(models):
    target, drafter = models
    text = decode(target, drafter, [7, 4, 9], None, 60, None)
    windows = record_windows(target, drafter, torch.tensor([text]), 4, 6)
    bound = cheapest_walk(windows.accepted, 6, COSTS).cost
    for window in [w for w in WINDOWS if w.divergence_metric == "tv"]:
        assert simulate(windows, window, COSTS, 59).cost > bound


def test_what_cannot_be_simulated():
    windows = fixed_windows([1, 1], 3)
    with pytest.raises(ValueError, match="only 3 draft tokens were recorded"):
        simulate(windows, WindowConfig(policy="fixed", size=4), COSTS, 5)
    with pytest.raises(ValueError, match="proposals='drafter'"):
        simulate(windows, WindowConfig(proposals="mixed"), COSTS, 5)
    with pytest.raises(ValueError, match="`budget` is 1"):
        simulate(windows, WindowConfig(policy="fixed", size=2), COSTS, 1)
