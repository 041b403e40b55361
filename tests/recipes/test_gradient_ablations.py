# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a step of every arm teaches: the arms' own trainers and losses, judged by an exact gradient."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.test_ppow_loss import rows_of_the_target

RECIPE = Path(__file__).resolve().parents[2] / "trainers/recipes/smollm2"
sys.path.insert(0, str(RECIPE))
try:
    script = importlib.import_module("gradient_ablations")
finally:
    sys.path.remove(str(RECIPE))

CONFIG = yaml.safe_load((RECIPE / "gpu_arms.yaml").read_text(encoding="utf-8"))
SMALL = {
    "bf16": False,
    "per_device_train_batch_size": 2,
    "num_windows": 4,
    "window_size": 3,
    "ttt_steps": 3,
    "max_length": 64,
    "max_seconds": None,
}
JUDGED_BY = {"bf16": False, "per_device_train_batch_size": 2, "window_size": 3, "max_length": 64}


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=80)
    rows = rows_of_the_target(target, num_rows=16)
    reference = sum(script.reference_gradients(target, drafter, rows.select(range(8, 16)), 8, 0, False, **JUDGED_BY))
    return target, drafter, rows.select(range(8)), reference


def found_of(setting, name, **changes):
    target, drafter, rows, reference = setting
    arm = {**CONFIG["common"], **CONFIG["arms"][name]}

    def make(folder):
        return script.trainer_of(arm, folder, target, drafter, rows, **{**SMALL, **changes})

    return script.measure_arm(make, rows, reference, 0, name, False)


def test_every_arm_has_a_gradient_of_its_own(setting):
    arms = [name for name in CONFIG["arms"] if name != "ppow-measured"]  # that one times the machine
    found = {name: found_of(setting, name) for name in arms}
    assert all(len(row["cosines"]) == 4 and row["norm"] > 0 for row in found.values())
    sums = [row["cosine_of_all"] for row in found.values()]
    assert len({round(value, 6) for value in sums}) == len(arms)
    again = found_of(setting, "ppow")
    assert again["cosines"] == found["ppow"]["cosines"]


def test_an_arm_that_descends_the_judge_agrees_with_it(setting):
    """On the same texts the exact reward without its anchor is what is judged by, and sampled windows estimate it."""
    target, drafter, rows, _ = setting
    options = {**JUDGED_BY, "rollout_temperature": 1.0, "cost_ratio": 0.06}
    same = sum(script.reference_gradients(target, drafter, rows, 8, 0, False, **options))
    changes = {"distillation_weight": 0.0, "cost_ratio": 0.06}
    exact = found_of((target, drafter, rows, same), "ppow-exact", **changes)
    assert exact["cosine_of_all"] > 0.85  # it learns from starts near the end of a text as well
    changes = {"rollout_temperature": 1.0, "beta": 0.0, "num_windows": 8, "num_generations": 32, "uniform_share": 1.0}
    sampled = found_of((target, drafter, rows, same), "ppow-no-both", **changes)
    assert sampled["cosine_of_all"] > 0.7


def test_figures_report_and_picture(tmp_path):
    arms = {
        "ppow": {"cosines": [0.1, 0.2, 0.3], "cosine_of_all": 0.4, "norm": 1.5, "seconds": 2.0},
        "token-rl": {"cosines": [0.0, 0.1, 0.2], "cosine_of_all": 0.2, "norm": 1.0, "seconds": 1.0},
    }
    ppow, other = script.figures_of(arms, "ppow", seed=0)
    assert ppow["cosine"] == pytest.approx(0.2) and "difference" not in ppow
    assert other["difference"] == pytest.approx(-0.1)
    assert other["difference_interval"] == pytest.approx([-0.1, -0.1])
    arguments = {
        "batch_size": 4, "reference_texts": 8, "reference_starts": 128, "temperature": 0.7, "cost_ratio": 0.06,
        "baseline": "ppow",
    }  # fmt: skip
    text = script.report([ppow, other], arguments, script.describe_environment(torch.device("cpu")))
    assert "| `token-rl` | 0.100" in text and "-0.100" in text and "3 steps of 4 texts" in text
    script.draw_picture([ppow, other], tmp_path / "ablations.png")
    assert (tmp_path / "ablations.png").stat().st_size > 5000
