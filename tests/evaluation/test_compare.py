# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import random

import pytest

from ppow_hf.evaluation.compare import MEAN, PromptOutcome, acceptance_figures, measure_acceptance, responses_of
from tests.testing_utils import tiny_eagle3, tiny_target


def outcomes(rate, seed, prompts=40, suites=("a", "b")):
    rng = random.Random(seed)
    return [
        PromptOutcome(suite, committed, max(1, round(committed / (rate + rng.uniform(-0.3, 0.3)))))
        for suite in suites
        for committed in [rng.randint(50, 128) for _ in range(prompts)]
    ]


def test_turns_of_a_row():
    row = {"input_ids": [5, 6, 7, 8, 9, 10, 11], "loss_mask": [0, 0, 1, 1, 0, 1, 1]}
    assert responses_of(row) == [([5, 6, 7, 8], 2), ([5, 6, 7, 8, 9, 10, 11], 5)]
    assert responses_of({"input_ids": [5, 6], "loss_mask": [0, 0]}) == []


def test_acceptance_length_is_the_ratio_of_sums():
    part = [PromptOutcome("a", 10, 5), PromptOutcome("a", 30, 10), PromptOutcome("b", 8, 8)]
    figures = {f.suite: f for f in acceptance_figures({"x": part}, resamples=50)["x"]}
    assert figures["a"].acceptance_length == pytest.approx(40 / 15)
    assert figures["b"].acceptance_length == 1.0 and figures["b"].low == figures["b"].high == 1.0
    assert figures[MEAN].acceptance_length == pytest.approx((40 / 15 + 1) / 2)
    assert figures["a"].low <= 40 / 15 <= figures["a"].high


def test_interval_against_a_plain_bootstrap():
    part = outcomes(2.0, 0, suites=("a",))
    figure = acceptance_figures({"x": part}, resamples=4000)["x"][0]
    rng, drawn = random.Random(7), []
    for _ in range(4000):
        chosen = rng.choices(part, k=len(part))
        drawn.append(sum(o.committed for o in chosen) / sum(o.verifications for o in chosen))
    drawn.sort()
    assert figure.low == pytest.approx(drawn[100], abs=0.01)
    assert figure.high == pytest.approx(drawn[3900], abs=0.01)


def test_paired_differences_see_what_single_intervals_do_not():
    base = outcomes(2.0, 1)
    # A little fewer verifications on every prompt: surely better, though the intervals of the two overlap.
    better = [PromptOutcome(o.suite, o.committed, max(1, o.verifications - 1)) for o in base]
    figures = acceptance_figures({"base": base, "better": better}, baseline="base", resamples=2000)
    for one, other in zip(figures["base"], figures["better"], strict=True):
        assert one.difference is None
        assert other.difference == pytest.approx(other.acceptance_length - one.acceptance_length)
        assert 0 < other.difference_low < other.difference < other.difference_high
        assert other.low < one.high


def test_same_seed_same_interval():
    part = {"x": outcomes(2.0, 3)}
    assert acceptance_figures(part, resamples=200, seed=1) == acceptance_figures(part, resamples=200, seed=1)


def test_different_prompts_are_refused():
    with pytest.raises(ValueError, match="same prompts"):
        acceptance_figures({"x": outcomes(2.0, 0), "y": outcomes(2.0, 0, suites=("b", "a"))})
    with pytest.raises(ValueError, match="`baseline`"):
        acceptance_figures({"x": outcomes(2.0, 0)}, baseline="z")
    with pytest.raises(ValueError, match="too short"):
        acceptance_figures({"x": [PromptOutcome("a", 0, 0)]})


def test_a_prompt_sums_up_its_turns():
    target = tiny_target(vocab_size=12)
    drafter = tiny_eagle3(target)
    rows = [
        {"input_ids": [3, 4, 5, 6, 7, 8, 9, 10, 11], "loss_mask": [0, 0, 1, 1, 1, 0, 1, 1, 1], "source": "a"},
        {"input_ids": [3, 4, 5, 6], "loss_mask": [0, 0, 1, 1], "source": "b"},
    ]
    found = measure_acceptance(target, {"a": drafter, "b": tiny_eagle3(target, seed=1)}, rows, [2, 1])
    assert {name: list(by_size) for name, by_size in found.items()} == {"a": [2, 1], "b": [2, 1]}
    first, second = found["a"][2]
    assert (first.suite, first.committed, second.committed) == ("a", 4, 1)
    assert 2 <= first.verifications <= 4 and second.verifications == 1
