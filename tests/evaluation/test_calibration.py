# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Brier score and reliability table, by hand and against the generation side's own."""

import random

import pytest

from ppow_hf.evaluation import Reliability
from ppow_hf.evaluation.calibration import merge_all
from ppow_hf.generation import brier_score


def test_hand_computed_table():
    reliability = Reliability()
    reliability.update([0.05, 0.92, 0.98, 1.0], [0, 1, 0, 1])
    table = reliability.table()
    assert table["brier"] == pytest.approx((0.05**2 + 0.08**2 + 0.98**2 + 0.0) / 4)
    assert [entry["count"] for entry in table["bins"]] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    last = table["bins"][-1]
    assert (last["low"], last["high"]) == (0.9, 1.0)
    assert last["predicted"] == pytest.approx(2.9 / 3) and last["accepted"] == pytest.approx(2 / 3)
    assert table["bins"][1]["predicted"] is None
    assert table["calibration_error"] == pytest.approx((0.05 + abs(2.9 - 2)) / 4)


def test_parts_add_up_to_the_whole():
    generator = random.Random(0)
    predicted = [generator.random() for _ in range(200)]
    outcomes = [float(generator.random() < p) for p in predicted]
    whole = Reliability()
    whole.update(predicted, outcomes)
    parts = []
    for start in range(0, 200, 30):
        part = Reliability()
        part.update(predicted[start : start + 30], outcomes[start : start + 30])
        parts.append(part.to_dict())
    merged = merge_all(parts)
    assert merged.counts == whole.counts and merged.total == 200
    assert merged.table()["brier"] == pytest.approx(whole.table()["brier"])
    assert whole.table()["brier"] == pytest.approx(brier_score(predicted, outcomes))


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="probability"):
        Reliability().update([1.2], [1])
    with pytest.raises(ValueError):
        Reliability().update([0.5, 0.5], [1])
