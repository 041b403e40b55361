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
    _, _, logs = train(tmp_path, pair, 14, proximity_epsilon=10.0, beta=0.0, learning_rate=6e-3)
    first, last = logs[0], logs[-1]
    assert first["share_none_accepted"] == 1.0
    assert first["flat_groups"] < 1.0
    # Half and half, three times: one window in eight at first.
    assert first["rewards/proximity_reward/mean"] < 0.35
    assert last["rewards/proximity_reward/mean"] > 0.8


def test_training_reaches_the_optimal_policy(tmp_path, pair):
    trainer, drafter, logs = train(tmp_path, pair, 45, proximity_epsilon=10.0, beta=0.3, learning_rate=1e-2)
    assert logs[0]["accepted_length"] == 0.0
    assert trainer.initial_figures()["acceptance_length"] == 1.0, "the target's own token only"
    # Decoded greedily, every window is accepted whole: three draft tokens and the target's own.
    assert trainer.evaluate()["eval_acceptance_length"] == WINDOW + 1
    assert logs[-1]["accepted_length"] > 0.9 * WINDOW
    assert logs[-1]["kl"] < 0.2 * logs[0]["kl"]
    assert logs[0]["adaw"] == 0.0 and logs[-1]["adaw"] == 1.0
