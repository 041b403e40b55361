# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Costs that a training goes by are those of decoding, and the same for all of its processes."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppow_hf import CostModel
from ppow_hf.generation.stored_costs import cost_model_key
from ppow_hf.rl import measured_speedup_reward
from ppow_hf.trainer import PPOWTrainer
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.ppow_common import QUIET, assert_equal_weights, ppow_args, ppow_trainer, weights_of


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of costs that is empty."""
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pair(family: str = "eagle3"):
    """A target in bfloat16, and a drafter that is trained in float32."""
    whole = tiny_target()
    drafter = tiny_eagle3(whole, draft_vocab_size=48) if family == "eagle3" else tiny_causal_drafter(whole)
    return whole.bfloat16(), drafter.float()


def key_of(target, drafter, dtype: torch.dtype) -> str:
    return cost_model_key(target, copy.deepcopy(drafter).to(dtype))


def store(cache: Path, target, drafter) -> CostModel:
    """Costs of the drafter as it will decode; what it costs while it is trained is another number."""
    CostModel(gamma=0.9, key=key_of(target, drafter, torch.float32)).save(cache)
    costs = CostModel(gamma=0.125, verify_curve=[1.0, 1.5, 2.0], key=key_of(target, drafter, torch.bfloat16))
    costs.save(cache)
    return costs


@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
def test_stored_costs_of_the_targets_dtype_are_found(tmp_path, cache, family):
    target, drafter = pair(family)
    costs, before = store(cache, target, drafter), weights_of(drafter)
    trainer = ppow_trainer(tmp_path / "out", drafter, target, cost_ratio="measured", **QUIET)
    assert trainer.cost_model == costs and trainer.experience_maker.cost_model == costs
    assert drafter.dtype == torch.float32 and trainer.model is drafter
    assert_equal_weights(before, drafter.state_dict())


def test_stored_costs_beside_the_drafter_are_found(tmp_path, cache):
    target, drafter = pair()
    folder = tmp_path / "drafter"
    drafter.save_pretrained(folder)
    drafter.name_or_path = str(folder)
    costs = store(folder, target, drafter)
    trainer = ppow_trainer(tmp_path / "out", drafter, target, token_rows(8), token_rows(2, seed=1))
    assert trainer._evaluation_costs() == costs


@pytest.mark.parametrize("asks", ["cost_ratio", "reward", "best"])
def test_what_asks_for_costs_has_them_measured(tmp_path, cache, asks):
    target, drafter = pair()
    settings = {"cost_ratio": {"cost_ratio": "measured"}, "best": {"metric_for_best_model": "eval_speedup_predicted"}}
    rewards = [measured_speedup_reward] if asks == "reward" else None
    trainer = ppow_trainer(tmp_path / "out", drafter, target, reward_funcs=rewards, **settings.get(asks, {}))
    key = key_of(target, drafter, torch.bfloat16)
    assert trainer.cost_model.key == key and trainer.cost_model.gamma > 0
    assert CostModel.load(cache, key) == trainer.cost_model, "stored for the next time"
    assert CostModel.load(cache, key_of(target, drafter, torch.float32)) is None
    assert drafter.dtype == torch.float32


def evaluated(tmp_path, target, drafter, **kwargs) -> tuple[PPOWTrainer, dict]:
    trainer = PPOWTrainer(
        model=drafter,
        target_model=target,
        args=ppow_args(tmp_path / "out"),
        train_dataset=token_rows(8),
        eval_dataset=token_rows(2, seed=1),
        **kwargs,
    )
    return trainer, trainer.evaluate()


def test_without_measured_costs_no_speedup_is_predicted(tmp_path, cache):
    """`cost_ratio` alone would promise one with free verification; and an evaluation is no time to measure."""
    trainer, figures = evaluated(tmp_path, *pair())
    assert figures["eval_acceptance_length"] >= 1.0 and "eval_speedup_predicted" not in figures
    assert trainer.cost_model is None and not cache.exists()


def test_the_predicted_speedup_is_that_of_stored_costs(tmp_path, cache):
    target, drafter = pair()
    costs = store(cache, target, drafter)
    trainer, figures = evaluated(tmp_path, target, drafter)
    window, length = figures["eval_mean_window"], figures["eval_acceptance_length"]
    assert 0 < window <= 3
    # Windows between 2 and 3 lie beyond the curve, whose slope goes on.
    expected = length / (0.125 * window + 1.0 + 0.5 * window)
    assert figures["eval_speedup_predicted"] == pytest.approx(expected, rel=1e-5)
    assert costs.speedup(length, window) == pytest.approx(expected, rel=1e-5)
    assert trainer.cost_model is None, "a reward does not depend on what a machine happens to store"


def test_given_costs_go_before_stored_ones(tmp_path, cache):
    target, drafter = pair()
    store(cache, target, drafter)
    given = CostModel(gamma=0.5)
    trainer, figures = evaluated(tmp_path, target, drafter, cost_model=given)
    assert trainer.cost_model == given
    expected = given.speedup(figures["eval_acceptance_length"], figures["eval_mean_window"])
    assert figures["eval_speedup_predicted"] == pytest.approx(expected)


def test_a_damaged_file_of_costs_is_passed_over(tmp_path, cache, caplog):
    cache.mkdir()
    (cache / "cost_model.json").write_text("{")
    with caplog.at_level("WARNING"):
        trainer, figures = evaluated(tmp_path, *pair())
    assert "Ignoring a stored cost model" in caplog.text and "eval_speedup_predicted" not in figures


@pytest.mark.parametrize("given", [False, True])
def test_a_resumed_run_goes_by_the_costs_it_began_with(tmp_path, cache, given):
    """Another machine has measured other ones, or the same machine another time."""

    def trainer(costs):
        target, drafter = pair()
        # Close to the target, so that windows get to different lengths and gamma matters.
        drafter.lm_head.weight.data.copy_(target.get_output_embeddings().weight[drafter.draft_token_ids].float())
        if not given:
            CostModel(gamma=costs.gamma, key=key_of(target, drafter, torch.bfloat16)).save(cache)
        settings = {"cost_ratio": "measured", "max_steps": 2, "save_strategy": "steps", "save_steps": 1, **QUIET}
        return ppow_trainer(tmp_path / "out", drafter, target, cost_model=costs if given else None, **settings)

    first, second = CostModel(gamma=0.125), CostModel(gamma=0.9)
    whole = trainer(first)
    whole.train()
    kept = tmp_path / "out" / "checkpoint-1" / "costs_of_run.json"
    assert kept.is_file() != given
    resumed = trainer(second)
    assert resumed.cost_model.gamma == 0.9
    resumed.train(resume_from_checkpoint=str(kept.parent))
    if given:
        assert resumed.cost_model == second, "what the user gives is what the user wants"
        return
    assert resumed.cost_model == whole.cost_model == resumed.experience_maker.cost_model
    assert_equal_weights(weights_of(whole.model), resumed.model.state_dict())
    kept.write_text("{")
    with pytest.raises(ValueError, match=kept.name):
        trainer(second).train(resume_from_checkpoint=str(kept.parent))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_all_processes_go_by_the_costs_of_the_first(tmp_path):
    script = Path(__file__).parent / "distributed_costs.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(script), str(tmp_path)], check=True, env=env, timeout=300)
    assert [(tmp_path / f"gamma-{rank}").read_text() for rank in (0, 1)] == ["0.25", "0.25"]
