# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import itertools
import statistics

import pytest
import torch

from ppow_hf.rl.advantages import group_advantages, survivor_advantages, token_advantages
from ppow_hf.rl.exact_reward import expected_speedup_reward


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


def test_windows_credited_as_a_whole():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    advantages, accepted = torch.tensor([2.0, -1.0]), torch.tensor([0, 0])
    found = token_advantages(advantages, mask, "prefix", accepted, whole=torch.tensor([False, True]))
    assert found.tolist() == [[2.0, 0.0, 0.0], [-1.0, -1.0, 0.0]]


def test_survivors_by_hand():
    rewards, accepted = torch.tensor([[0.0, 1.0, 1.0, 3.0]]), torch.tensor([[0, 1, 1, 2]])
    found = survivor_advantages(rewards, accepted, 3, scale="none")[0]
    # Position 0: all four. Position 1: the last three. Position 2: the last alone, which has nothing to compare with.
    assert found[:, 0].tolist() == pytest.approx([-5 / 3, -1 / 3, -1 / 3, 7 / 3])
    assert found[:, 1].tolist() == pytest.approx([0.0, -1.0, -1.0, 2.0])
    assert found[:, 2].tolist() == [0.0] * 4
    scaled = survivor_advantages(rewards, accepted, 3, epsilon=0.5)[0]
    torch.testing.assert_close(scaled, found / (statistics.stdev([0.0, 1.0, 1.0, 3.0]) + 0.5))


@pytest.mark.parametrize("scale", ["group", "none"])
def test_survivors_without_the_windows_that_are_missing(scale):
    """As though the others had been the whole group."""
    nan = float("nan")
    rewards, accepted = torch.tensor([[0.0, nan, 1.0, 1.0, 3.0]]), torch.tensor([[0, 3, 1, 1, 2]])
    found = survivor_advantages(rewards, accepted, 3, scale, valid=~rewards.isnan())
    there = [0, 2, 3, 4]
    expected = survivor_advantages(rewards[:, there], accepted[:, there], 3, scale)
    torch.testing.assert_close(found[:, there], expected)
    assert (found[:, 1] == 0).all() and (expected != 0).any()
    assert (survivor_advantages(rewards, accepted, 3, scale, valid=torch.tensor([False])) == 0).all()


def test_survivors_of_equal_reward_teach_nothing():
    rewards = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.1, 2.0, 2.0]])
    found = survivor_advantages(rewards, torch.tensor([[1, 1, 1], [0, 2, 2]]), 2)
    assert (found[0] == 0).all() and (found[1, :, 1] == 0).all() and (found[1, :, 0] != 0).all()


def test_the_token_the_greedy_window_is_refused_at_is_never_reinforced():
    """It is the same in every group: no other sample ever outweighs what it is taught."""
    torch.manual_seed(0)
    accepted = torch.randint(0, 5, (500, 8))
    rewards = accepted / (accepted * 0.06 + 1)
    at = accepted[:, :1, None].clamp_max(3).expand(-1, 8, 1)
    refused = accepted[:, 0] < 4
    ours = survivor_advantages(rewards, accepted, 4).gather(2, at)[refused, 0, 0]
    assert (ours <= 0).all() and (ours < 0).any()
    assert (group_advantages(rewards)[refused, 0] > 0).float().mean() > 0.2


@pytest.mark.parametrize("baseline", ["group", "survivors"])
def test_the_expected_gradient_is_that_of_the_expected_reward(baseline):
    """
    Every group of three windows of two tokens that a drafter over three tokens can draw, weighed by its chance. The
    target's path is 0, 0; behind a refused token nothing counts.
    """
    gamma, size = 0.3, 3
    logits = torch.tensor([[0.3, -0.2, 0.5], [-0.4, 0.1, 0.6]], dtype=torch.float64, requires_grad=True)
    log_q = logits.log_softmax(-1)
    exact = torch.autograd.grad(
        expected_speedup_reward(log_q[:, 0][None].float(), gamma).sum(), logits, retain_graph=True
    )[0]
    # A window is what is drawn at the first place and, if that is accepted, at the second.
    windows = [(first, second) for first in range(3) for second in (range(3) if first == 0 else (None,))]
    chance = {w: (log_q[0, w[0]] + (log_q[1, w[1]] if w[1] is not None else 0.0)).detach().exp() for w in windows}
    lengths = {w: 0 if w[0] != 0 else 1 + (w[1] == 0) for w in windows}
    total = torch.zeros_like(logits)
    for group in itertools.product(windows, repeat=size):
        accepted = torch.tensor([[lengths[w] for w in group]])
        rewards = (accepted / (accepted * gamma + 1)).double()
        if baseline == "group":
            advantages = group_advantages(rewards, "none")[..., None].expand(1, size, 2)
        else:
            advantages = survivor_advantages(rewards, accepted, 2, "none")
        loss = sum(
            advantages[0, g, place] * log_q[place, token]
            for g, window in enumerate(group)
            for place, token in enumerate(window)
            if token is not None
        )
        weight = torch.stack([chance[w] for w in group]).prod()
        if loss.requires_grad:
            total += weight * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    if baseline == "group":
        expected = exact.double() * (size - 1)  # its own reward is in the mean
    else:
        # At the second place a window learns only if another has come there.
        alone = (1 - log_q[0, 0].exp().detach()) ** (size - 1)
        expected = exact.double() * size * torch.stack([torch.ones_like(alone), 1 - alone])[:, None]
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("acceptance", "credit", "unbiased"),
    [
        ("sampled", "window", True),
        ("sampled", "prefix", True),
        ("expected", "window", True),
        # What is refused at the edge: the drawn mismatch weighs a token by its reach, which its reward has done.
        ("expected", "prefix", False),
    ],
)
def test_credit_under_rejection_sampling(acceptance, credit, unbiased):
    """
    Every window of three tokens of a vocabulary of four, and every place at which the coins can refuse it, weighed by
    its chance, against the gradient of the expected length in closed form. `min(1, p / q)` is taken for a constant.
    """
    generator = torch.Generator().manual_seed(0)
    size, tokens = 3, 4
    logits, target = torch.randn(2, size, tokens, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    log_q = logits.log_softmax(-1)
    chance = (target.softmax(-1) / log_q.detach().exp()).clamp(max=1)
    exact = torch.autograd.grad((log_q.exp() * chance).sum(-1).cumprod(0).sum(), logits, retain_graph=True)[0]
    surrogate = 0.0
    mask = torch.ones(1, size, dtype=torch.bool)
    for window in itertools.product(range(tokens), repeat=size):
        places = torch.arange(size), torch.tensor(window)
        drawn, survived = log_q[places].detach().exp().prod(), chance[places].cumprod(0)
        reached = [1.0, *survived.tolist(), 0.0]
        for k in range(size + 1):
            length = float(survived.sum()) if acceptance == "expected" else float(k)
            advantages = torch.tensor([length], dtype=torch.float64)
            credited = token_advantages(advantages, mask, credit, torch.tensor([k]))[0]
            surrogate += drawn * (reached[k] - reached[k + 1]) * (credited * log_q[places]).sum()
    found = torch.autograd.grad(surrogate, logits)[0]
    assert torch.allclose(found, exact, rtol=1e-9, atol=1e-12) == unbiased
    assert unbiased or (found - exact).norm() > 0.05 * exact.norm()


def test_bad_input():
    with pytest.raises(ValueError, match="`rewards` and `accepted`"):
        survivor_advantages(torch.zeros(1, 2), torch.zeros(2, 1, dtype=torch.long), 3)
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
