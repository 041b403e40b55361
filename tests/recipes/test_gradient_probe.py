# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The probe, and with it the trainer: sampled gradients are on average the exact gradient of the expected reward."""

from pathlib import Path

import pytest
import torch

from tests.recipes.loaded_script import loaded_script
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.test_ppow_loss import rows_of_the_target

SCRIPT = Path(__file__).parents[2] / "trainers" / "recipes" / "smollm2" / "gradient_probe.py"
TRIED = ("recipe", "samples only unscaled", "survivors with greedy window", "survivors unscaled")
OPTIONS = {
    "bf16": False,
    "per_device_train_batch_size": 2,
    "num_windows": 3,
    "num_generations": 8,
    "window_size": 3,
    "rollout_temperature": 0.7,
    "max_length": 64,
}


@pytest.fixture(scope="module")
def script():
    with loaded_script(SCRIPT) as module:
        yield module


@pytest.fixture(scope="module")
def results(script):
    torch.manual_seed(0)
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=80)
    rows = rows_of_the_target(target)
    variants = {name: script.VARIANTS[name] for name in TRIED}
    found = script.probe(target, drafter, rows, variants, repeats=50, seed=1, progress=False, **OPTIONS)
    return {row["variant"]: row for row in found}


def test_sampled_gradients_are_on_average_the_exact_one(results):
    for name in ("samples only unscaled", "survivors unscaled"):
        row = results[name]
        assert row["cosine_of_mean"] > 0.9 > row["cosine_of_one"] > row["cosine_of_two"] > 0, row


def test_survivors_do_not_reinforce_what_is_refused(results):
    assert results["survivors with greedy window"]["refused_token_reinforced"] == 0
    assert 0 < results["survivors unscaled"]["credited"] < 1
    assert all(row["norm_kl_on_path"] > 0 and row["norm_policy"] > 0 for row in results.values())


def test_report_and_picture(script, results, tmp_path):
    rows = list(results.values())
    environment = script.describe_environment(torch.device("cpu"))
    curve = [{"starts_a_text": 2, "starts_a_batch": 7.6, "batches": 3, "cosine": 0.25}]
    text = script.report(rows, curve, {"temperature": 0.7}, environment)
    assert "| 2 | 8 | 0.250 |" in text
    for row in rows:
        assert f"| {row['variant']} |" in text and f"{row['cosine_of_mean']:.3f}" in text
    script.draw_picture(rows, tmp_path / "probe.png")
    assert (tmp_path / "probe.png").stat().st_size > 5000


def test_more_starts_agree_better_with_other_texts(script):
    torch.manual_seed(0)
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=80)
    rows = rows_of_the_target(target, num_rows=16)
    few, many = script.starts_curve(target, drafter, rows, [1, 5], seed=0, progress=False, **OPTIONS)
    assert (few["starts_a_batch"], few["batches"]) == (2.0, 8) and many["starts_a_batch"] > 4
    assert many["cosine"] > few["cosine"] > 0
