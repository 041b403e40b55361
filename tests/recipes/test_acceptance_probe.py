# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
from pathlib import Path

import pytest
import torch

from ppow_hf.data import DrafterDataCollator
from ppow_hf.trainer.step_scoring import StepScoring
from tests.recipes.loaded_script import loaded_script
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer, token_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    with loaded_script(ROOT / "trainers" / "recipes" / "smollm2" / "acceptance_probe.py") as module:
        yield module


def test_outcomes_are_the_chains_the_trainer_counts(script, tmp_path, monkeypatch):
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48)
    rows = token_rows(6)
    found = script.collect(target, drafter.eval(), rows, steps=3, batch_size=4)
    trainer = sft_trainer(tmp_path, drafter, target, rows, ttt_steps=3)
    drafter.eval()
    scorings = []
    total = StepScoring.total
    monkeypatch.setattr(StepScoring, "total", lambda self, scores: (scorings.append(self), total(self, scores))[1])
    batch = DrafterDataCollator(0, None)([rows[index] for index in range(len(rows))])
    with torch.no_grad():
        trainer._score(drafter, batch)
    (scoring,) = scorings
    accepted = [float(sums["chain"].sum()) for sums in scoring.sums]
    step = found.numbers[:, script.NUMBERS.index("log_position")].expm1().round()
    assert [float(found.accepted[step == k].sum()) for k in range(3)] == accepted and accepted[0] > 0
    starts = float(scoring.sums[0]["count"].sum())
    # Of those that are still in the text: the last tokens of an answer have fewer steps.
    assert int((step == 0).sum()) == starts and int((step == 1).sum()) <= accepted[0]
    assert found.states.shape == (len(found.accepted), drafter.config.hidden_size)


def test_numbers_by_hand(script):
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    head = torch.nn.Linear(3, 3, bias=False)
    head.weight.data = torch.eye(3)
    collector = script.Collector(torch.ones(1, 1, 1, dtype=torch.bool), torch.tensor([[0, 0]]), 1, None)
    collector(0, logits, head)
    (outcome,) = collector.parts
    p = logits.softmax(-1)[0]
    expected = [(p[0] / (1 - p[0])).log(), (p[0] / p[1]).log(), -(p * p.log()).sum(), torch.tensor(0.0)]
    torch.testing.assert_close(outcome.numbers[0], torch.stack(expected))
    assert outcome.accepted.tolist() == [1.0]


def test_ranking_counts_pairs(script):
    generator = torch.Generator().manual_seed(0)
    scores, outcomes = torch.rand(60, generator=generator), torch.rand(60, generator=generator).round()
    pairs = [(a > b).item() for a in scores[outcomes == 1] for b in scores[outcomes == 0]]
    assert script.ranking(scores, outcomes) == pytest.approx(sum(pairs) / len(pairs))


def test_a_head_is_found_where_the_state_tells(script):
    """Outcomes that only the state knows, then such as only the probability knows."""
    generator = torch.Generator().manual_seed(0)
    numbers, states = torch.randn(4000, 4, generator=generator), torch.randn(4000, 16, generator=generator)
    brier = {}
    for name, signal in (("state", 4 * states[:, 0]), ("probability", 4 * numbers[:, 0])):
        outcomes = script.Outcomes(numbers, states, (signal > 0).float())
        for way in script.WAYS:
            brier[name, way] = script.judge(way, script.fit(way, outcomes, seed=0, epochs=150), outcomes)["brier"]
    assert brier["state", "linear head"] < 0.15 and brier["state", "head of one layer"] < 0.15
    assert brier["state", "estimate"] > 0.2 and brier["state", "confidence"] > 0.2
    assert brier["probability", "confidence"] < 0.1 and brier["probability", "estimate"] < 0.1


def test_the_report_is_that_of_the_results(script):
    folder = ROOT / "model_cards" / "experiments" / "acceptance-probe"
    results = json.loads((folder / "results.json").read_text())
    assert (folder / "report.md").read_text() == script.report(results)
