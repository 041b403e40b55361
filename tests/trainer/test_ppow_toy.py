# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
A target whose best continuation is known, and a drafter that begins with its mass elsewhere.

The target counts: after token `x` comes `x + 1` (logit 6), sometimes `x + 2` (logit 3), hardly ever anything else. The
drafter begins by drafting `x + 2` or `x + 3`, half and half. So every window is refused at once, and the speedup
reward, equal in every group, teaches nothing at all.
"""

import copy

import pytest
import torch

from tests.testing_utils import tiny_eagle3
from tests.trainer.counting_toy import WINDOW, counting_rows, counting_target, fit
from tests.trainer.ppow_common import ppow_trainer


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    target = counting_target()
    return target, fit(tiny_eagle3(target, seed=1, initialization="random"), target, (2, 3))


def train(tmp_path, pair, steps, **overrides):
    target, start = pair
    drafter = copy.deepcopy(start)
    options = {
        "max_steps": steps,
        "learning_rate": 3e-3,
        "window_size": WINDOW,
        "num_generations": 8,
        "num_windows": 4,
        "adaw_warmup": 0.3,
        "eval_strategy": "no",
        "eval_decode_prompts": 4,
        "eval_decode_new_tokens": 9,
        **overrides,
    }
    rows = counting_rows()
    trainer = ppow_trainer(tmp_path, drafter, target, rows, rows, **options)
    trainer.train()
    steps_logged = [log for log in trainer.state.log_history if "reward" in log]
    return trainer, drafter, steps_logged


def test_the_target_counts():
    target = counting_target()
    ids = torch.tensor([[4, 5, 6]])
    output = target.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert output[0].tolist() == [4, 5, 6, 7, 8, 9, 0, 1, 2]


def test_the_speedup_reward_alone_teaches_nothing(tmp_path, pair):
    trainer, drafter, logs = train(tmp_path, pair, 5, proximity_eta=0.0, beta=0.0)
    assert all(log["share_none_accepted"] == 1.0 and log["flat_groups"] == 1.0 for log in logs)
    for name, value in pair[1].state_dict().items():
        assert torch.equal(value, drafter.state_dict()[name]), f"{name} moved without any reward"


def test_the_proximity_reward_separates_windows_that_are_all_refused(tmp_path, pair):
    """`x + 2` costs 3 nats, `x + 3` costs 6: a threshold of 10 lets windows of three near misses pass, no others."""
    options = {"proximity_eta": 1.0, "proximity_epsilon": 10.0, "beta": 0.0, "learning_rate": 6e-3}
    _, _, logs = train(tmp_path, pair, 14, **options)
    first, last = logs[0], logs[-1]
    assert first["share_none_accepted"] == 1.0
    assert first["flat_groups"] < 1.0
    # Half and half, three times: one window in eight at first.
    assert first["rewards/proximity_reward/mean"] < 0.35
    assert last["rewards/proximity_reward/mean"] > 0.8


# Without an anchor to the target: only the rewards can show the way.
ALONE = {"beta": 0.0, "proximity_epsilon": 10.0, "learning_rate": 1e-2, "num_generations": 16}


def test_training_reaches_the_optimal_policy(tmp_path, pair):
    trainer, drafter, logs = train(tmp_path, pair, 100, **ALONE)
    assert logs[0]["accepted_length"] == 0.0
    assert trainer.initial_figures()["acceptance_length"] == 1.0, "the target's own token only"
    # Decoded greedily, every window is accepted whole: three draft tokens and the target's own.
    assert trainer.evaluate()["eval_acceptance_length"] == WINDOW + 1
    assert logs[-1]["accepted_length"] > 0.9 * WINDOW
    assert logs[0]["adaw"] == 0.0 and logs[-1]["adaw"] == 1.0


def test_without_the_policy_gradient_nothing_is_reached(tmp_path, pair):
    trainer, drafter, logs = train(tmp_path, pair, 20, **ALONE, policy_weight=0.0)
    assert logs[-1]["accepted_length"] < 0.05
    assert trainer.evaluate()["eval_acceptance_length"] == 1.0


@pytest.fixture(scope="module")
def unsure_pair():
    """The drafter is right in one window of three."""
    torch.manual_seed(0)
    target = counting_target()
    return target, fit(tiny_eagle3(target, seed=1, initialization="random"), target, (1, 2, 3))


@pytest.mark.parametrize(("eta", "length"), [(1.0, 1.0), (None, 2.0)], ids=["above", "default"])
def test_a_near_miss_must_earn_less_than_a_hit(tmp_path, unsure_pair, eta, length, caplog):
    """One accepted token earns 0.89. If a near miss earns more, what is learned is to be refused."""
    options = {} if eta is None else {"proximity_eta": eta}
    with caplog.at_level("WARNING"):
        trainer, drafter, logs = train(
            tmp_path, unsure_pair, 40, **{**ALONE, **options}, window_size=1, eval_window="fixed:1"
        )
    assert 0.1 < logs[0]["accepted_length"] < 0.5
    assert trainer.evaluate()["eval_acceptance_length"] == length
    assert ("Set `proximity_eta` below 0.893" in caplog.text) == (eta == 1.0)
