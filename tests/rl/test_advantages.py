# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import statistics

import pytest
import torch

from ppow_hf.rl.advantages import group_advantages, token_advantages


def naive(rewards, scale, epsilon):
    mean = statistics.fmean(rewards)
    spread = statistics.stdev(rewards) + epsilon if scale == "group" else 1.0
    return [(reward - mean) / spread for reward in rewards]


def test_by_hand():
    advantages = group_advantages(torch.tensor([[1.0, 3.0], [0.0, 4.0]]), scale="none")
    assert advantages.tolist() == [[-1.0, 1.0], [-2.0, 2.0]]
    # Sample standard deviations sqrt(2) and sqrt(8).
    advantages = group_advantages(torch.tensor([[1.0, 3.0], [0.0, 4.0]]), epsilon=0.0)
    torch.testing.assert_close(advantages, torch.tensor([[-0.5, 0.5], [-0.5, 0.5]]) * 2**0.5)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_against_naive(scale):
    torch.manual_seed(0)
    rewards = torch.rand(5, 8, dtype=torch.float64)
    advantages = group_advantages(rewards, scale=scale, epsilon=1e-4)
    for row, expected in zip(advantages.tolist(), rewards.tolist(), strict=True):
        assert row == pytest.approx(naive(expected, scale, 1e-4), abs=1e-12)


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, 7.7])
def test_equal_rewards_give_exactly_zero(scale, reward):
    rewards = torch.full((2, 7), reward)
    rewards[1, 0] += 1.0
    advantages = group_advantages(rewards, scale=scale, epsilon=0.0)
    assert (advantages[0] == 0).all() and (advantages[1] != 0).all()


def test_missing_windows_do_not_count():
    nan = float("nan")
    rewards = torch.tensor([[1.0, nan, 2.0, 4.0], [nan] * 4, [5.0, nan, nan, nan]], dtype=torch.float64)
    advantages = group_advantages(rewards, valid=~rewards.isnan())
    expected = naive([1.0, 2.0, 4.0], "group", 1e-4)
    assert advantages[0].tolist() == pytest.approx([expected[0], 0.0, *expected[1:]], abs=1e-12)
    assert (advantages[1:] == 0).all()
    rewards = torch.tensor([[1.0, 2.0], [nan, nan]])
    by_start = group_advantages(rewards, scale="none", valid=torch.tensor([True, False]))
    assert by_start.tolist() == [[-0.5, 0.5], [0.0, 0.0]]


def test_token_rewards_are_compared_position_by_position():
    torch.manual_seed(0)
    rewards = torch.rand(3, 4, 5)
    valid = torch.rand(3, 4, 5) < 0.8
    advantages = group_advantages(rewards, valid=valid)
    for i in range(5):
        torch.testing.assert_close(advantages[..., i], group_advantages(rewards[..., i], valid=valid[..., i]))


def test_credit():
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]]).bool()
    advantages = torch.tensor([2.0, -1.0, 3.0])
    window = token_advantages(advantages, mask)
    assert window.tolist() == [[2.0, 2.0, 2.0], [-1.0, -1.0, -1.0], [3.0, 3.0, 0.0]]
    prefix = token_advantages(advantages, mask, "prefix", torch.tensor([1, 0, 2]))
    assert prefix.tolist() == [[2.0, 2.0, 0.0], [-1.0, 0.0, 0.0], [3.0, 3.0, 0.0]]
    per_token = torch.arange(9.0).view(3, 3)
    assert token_advantages(per_token, mask).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 0.0]]


def test_bad_input():
    with pytest.raises(ValueError, match="`scale` must be one of group, none"):
        group_advantages(torch.zeros(1, 2), scale="batch")
    with pytest.raises(ValueError, match="group_size of at least 2"):
        group_advantages(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="`rewards` holds NaN"):
        group_advantages(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="`valid`"):
        group_advantages(torch.zeros(3, 2), valid=torch.ones(2, dtype=torch.bool))
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="`credit` must be one of"):
        token_advantages(torch.zeros(2), mask, "suffix")
    with pytest.raises(ValueError, match="needs `accepted`"):
        token_advantages(torch.zeros(2), mask, "prefix")
    with pytest.raises(ValueError, match="`advantages`"):
        token_advantages(torch.zeros(3), mask)
