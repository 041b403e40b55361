# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import math
import random

import pytest

from ppow_hf.generation import AcceptanceEstimator, DraftStats, brier_score, fit_calibration, reliability_table
from ppow_hf.generation.acceptance import DEFAULT_WEIGHTS, FEATURES, acceptance_features


def synthetic(count, seed=0):
    """Drafts whose acceptance falls with the divergence: the raw confidence is far too optimistic."""
    rng = random.Random(seed)
    records, confidence = [], []
    for _ in range(count):
        top1 = rng.uniform(0.2, 0.99)
        top2 = rng.uniform(0.0, min(top1, 1 - top1))
        divergence = rng.uniform(0.1, 0.7)
        entropy = -top1 * math.log(top1) + rng.uniform(0.0, 2.0) * (1 - top1)
        features = acceptance_features(DraftStats(top1, top2, entropy), rng.randrange(6), divergence)
        z = 0.8 * math.log(top1 / (1 - top1)) - 3.0 * divergence
        records.append((features, 1.0 if rng.random() < 1 / (1 + math.exp(-z)) else 0.0))
        confidence.append(top1)
    return records, confidence


def test_features():
    features = acceptance_features(DraftStats(0.8, 0.1, 0.6), position=2, divergence=0.3)
    assert dict(zip(FEATURES, features, strict=True)) == pytest.approx(
        {
            "bias": 1.0,
            "log_odds": math.log(4.0),
            "margin": math.log(8.0),
            "entropy": 0.6,
            "position": math.log(3.0),
            "divergence": 0.3,
        }
    )


@pytest.mark.parametrize(("top1", "top2"), [(1.0, 0.0), (0.0, 0.0), (0.25, 0.25)])
def test_features_of_extreme_distributions_are_finite(top1, top2):
    features = acceptance_features(DraftStats(top1, top2, 0.0), 0, 1.0)
    assert all(math.isfinite(f) and abs(f) <= 10 for f in features)


def test_prediction_is_a_probability_that_rises_with_confidence():
    estimator = AcceptanceEstimator()
    values = [
        estimator.predict(acceptance_features(DraftStats(p, (1 - p) / 2, 1 - p), 0, 0.3)) for p in (0.1, 0.5, 0.9, 1.0)
    ]
    assert values == sorted(values) and 0 < values[0] and values[-1] < 1


def test_fit_improves_on_the_raw_confidence():
    records, _ = synthetic(3000)
    held_out, confidence = synthetic(3000, seed=1)
    outcomes = [y for _, y in held_out]
    estimator = AcceptanceEstimator({"greedy": fit_calibration(records)})
    predicted = [estimator.predict(x) for x, _ in held_out]
    assert brier_score(predicted, outcomes) < 0.8 * brier_score(confidence, outcomes)
    for row in reliability_table(predicted, outcomes):
        if row["count"] > 200:
            assert abs(row["predicted"] - row["observed"]) < 0.08


def test_fit_finds_the_weights_that_made_the_data():
    records, _ = synthetic(20000)
    weights = dict(zip(FEATURES, fit_calibration(records, regularisation=0.01), strict=True))
    assert weights["log_odds"] == pytest.approx(0.8, abs=0.2)
    assert weights["divergence"] == pytest.approx(-3.0, abs=0.3)


def test_few_records_stay_near_the_prior():
    records, _ = synthetic(3)
    weights = fit_calibration(records, regularisation=1000.0)
    assert weights == pytest.approx(list(DEFAULT_WEIGHTS["greedy"]), abs=0.05)


def test_online_updates_improve_on_the_raw_confidence():
    records, confidence = synthetic(1500)
    outcomes = [y for _, y in records]
    online, frozen = AcceptanceEstimator(), AcceptanceEstimator(online=False)
    predicted, fixed = [], []
    for features, y in records:
        predicted.append(online.predict(features))
        fixed.append(frozen.predict(features))
        online.update(features, y)
        frozen.update(features, y)
    assert frozen.weights == list(frozen.prior)
    tail = slice(500, None)
    assert brier_score(predicted[tail], outcomes[tail]) < brier_score(confidence[tail], outcomes[tail])
    assert brier_score(predicted[tail], outcomes[tail]) < brier_score(fixed[tail], outcomes[tail])


def test_online_updates_follow_the_outcomes():
    features = acceptance_features(DraftStats(0.5, 0.2, 1.0), 0, 0.3)
    up, down = AcceptanceEstimator(), AcceptanceEstimator()
    before = up.predict(features)
    for _ in range(50):
        up.update(features, 1.0)
        down.update(features, 0.0)
    assert down.predict(features) < before < up.predict(features)


def test_sampling_has_weights_of_its_own():
    calibration = {"greedy": [0.0] * 6, "sampling": [5.0] + [0.0] * 5}
    features = acceptance_features(DraftStats(0.5, 0.2, 1.0), 0, 0.3)
    assert AcceptanceEstimator(calibration).predict(features) == 0.5
    assert AcceptanceEstimator(calibration, sampling=True).predict(features) == pytest.approx(1 / (1 + math.exp(-5)))


def test_brier_score():
    assert brier_score([1.0, 0.5], [1.0, 0.0]) == pytest.approx(0.125)
    assert brier_score([], []) is None


def test_reliability_table():
    rows = reliability_table([0.05, 0.15, 0.18, 1.0], [0.0, 1.0, 0.0, 1.0], bins=10)
    assert [(row["low"], row["count"], row["observed"]) for row in rows] == [
        (0.0, 1, 0.0),
        (0.1, 2, 0.5),
        (0.9, 1, 1.0),
    ]
    assert rows[1]["predicted"] == pytest.approx(0.165)


def test_bad_input():
    with pytest.raises(ValueError, match="`records` is empty"):
        fit_calibration([])
    with pytest.raises(ValueError, match="6 finite features"):
        fit_calibration([((1.0, 2.0), 1.0)])
    with pytest.raises(ValueError, match=r"outcomes must be in \[0, 1\]"):
        fit_calibration([((1.0,) * 6, 2.0)])
    with pytest.raises(ValueError, match="same length"):
        brier_score([0.5], [])
    with pytest.raises(ValueError, match="`bins`"):
        reliability_table([0.5], [1.0], bins=0)
    with pytest.raises(ValueError, match="greedy.*6 finite numbers"):
        AcceptanceEstimator({"greedy": [float("nan")] * 6})
