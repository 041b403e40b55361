# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Figures of compared windows by hand, and walks against those of the simulation."""

import pytest
import torch

from ppow_hf.evaluation.sampled_windows import record_sampled_windows
from ppow_hf.evaluation.simulation import oracle_walk, record_windows, simulate
from ppow_hf.evaluation.window_comparison import CHEAPEST, ORACLE, comparison_rows, walks_of_text
from ppow_hf.generation import CostModel, WindowConfig
from tests.testing_utils import tiny_eagle3, tiny_target

COSTS = CostModel(gamma=0.1, verify_curve=[1.0, 1.1, 1.2, 1.3, 1.4], overhead=0.05)
CONFIGS = {"fixed:2": WindowConfig("fixed", size=2), "cost_aware": WindowConfig("cost_aware", max_size=4)}


@pytest.fixture(scope="module")
def models():
    target = tiny_target(vocab_size=12)
    drafter = tiny_eagle3(target, draft_vocab_size=9)
    drafter.bind_target(target)
    return target, drafter


def compared(models, text, **options):
    options = {"max_size": 4, "budget": 20, **options}
    return walks_of_text(*models, text, 5, CONFIGS, COSTS, **options)


def text_of(models, new_tokens=20):
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new_tokens, "do_sample": False}
    return models[0].generate(ids, **options, eos_token_id=None)[0].tolist()


def test_greedy_walks_are_those_of_the_simulation(models):
    text = text_of(models)
    walks = compared(models, text)
    windows = record_windows(*models, torch.tensor([text]), 6, 4)
    assert walks[ORACLE] == oracle_walk(windows.accepted, 4, COSTS)
    for name, config in CONFIGS.items():
        assert walks[name] == simulate(windows, config, COSTS, 19)
    assert walks[CHEAPEST].cost <= min(walk.cost for walk in walks.values())
    assert compared(models, text, draws=3) == walks  # greedy windows are drawn once
    assert {walk.verifications for walk in compared(models, text[:6]).values()} == {0}


def test_sampled_walks_add_up_over_draws(models):
    text = text_of(models)
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    walks = compared(models, text, temperature=0.8, draws=3, generator=generators[0])
    expected = [
        record_sampled_windows(*models, torch.tensor([text]), 6, 4, 0.8, generators[1], False) for _ in range(3)
    ]
    for name, config in CONFIGS.items():
        parts = [simulate(windows, config, COSTS, 19, sampling=True) for windows in expected]
        assert walks[name] == parts[0] + parts[1] + parts[2]
        assert walks[name].committed == 3 * 19


def walk(committed, cost, verifications=10, drafted=20):
    return {"committed": committed, "verifications": verifications, "drafted": drafted, "accepted": 0, "cost": cost}


RECORDS = [
    {"suite": "a", "walks": {ORACLE: walk(20, 5), "fixed:1": walk(20, 10), "fixed:2": walk(20, 20), "x": walk(20, 5)}},
    {"suite": "a", "walks": {ORACLE: walk(20, 4), "fixed:1": walk(20, 5), "fixed:2": walk(20, 20), "x": walk(20, 4)}},
    {
        "suite": "b",
        "walks": {ORACLE: walk(30, 5), "fixed:1": walk(30, 30), "fixed:2": walk(30, 15), "x": walk(30, 10)},
    },
    {"suite": "b", "walks": {name: walk(0, 0, 0, 0) for name in (ORACLE, "fixed:1", "fixed:2", "x")}},
]


def test_figures_by_hand():
    rows = {(row["suite"], row["policy"]): row for row in comparison_rows(RECORDS)}
    # fixed:1 has (2 + 4) / 2 = 3 on a and 1 on b, 2 in the mean; fixed:2 has 1 and 2; x has 4.5 and 3.
    assert rows["a", "fixed:1"]["speedup"] == 3 and rows["b", "fixed:1"]["speedup"] == 1
    assert {row["baseline"] for row in rows.values()} == {"fixed:1"}
    assert rows[None, "x"]["speedup"] == 3.75 and rows[None, "x"]["over_baseline"] == 1.875
    assert rows["a", "x"]["over_baseline"] == 1.5 and rows["a", "fixed:1"]["over_baseline"] is None
    assert rows["a", ORACLE]["share_of_oracle"] == 1 and rows["b", "x"]["share_of_oracle"] == 0.5
    assert rows["a", "x"]["acceptance_length"] == 2 and rows[None, "x"]["acceptance_length"] == 2.5
    # The prompt whose answer was a single token says nothing.
    assert rows["b", "x"]["num_prompts"] == 1 and rows[None, "x"]["num_prompts"] == 3
    assert rows["a", "x"]["interval"] == [4.0, 5.0] and rows["b", "x"]["interval"] == [3.0, 3.0]
    low, high = rows["a", "x"]["over_baseline_interval"]
    assert (low, high) == (1.25, 2.0)  # drawn in pairs: 5 / 4 and 4 / 2
    assert comparison_rows(RECORDS, "fixed:2")[2]["over_baseline"] is None


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="`baseline` is 'y'"):
        comparison_rows(RECORDS, "y")
    with pytest.raises(ValueError, match="No answer on 'b' is longer than a token"):
        comparison_rows([RECORDS[0], RECORDS[3]])
