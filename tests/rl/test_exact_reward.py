# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import itertools

import pytest
import torch

from ppow_hf.rl import expected_speedup_reward, speedup_reward

GAMMA = 0.1


def test_one_window_by_hand():
    # P(k>=1) = 0.5, P(k>=2) = 0.25 * 0.5; R(1) = 1/1.1, R(2) = 2/1.2.
    value = expected_speedup_reward(torch.tensor([[0.5, 0.25]]).log(), GAMMA)
    expected = (0.5 - 0.125) * (1 / 1.1) + 0.125 * (2 / 1.2)
    assert value.tolist() == pytest.approx([expected])


def test_it_is_the_mean_of_the_papers_reward_over_all_windows_and_so_is_its_gradient():
    """Every window of a 4-token vocabulary, drawn from a drafter whose next distribution depends on its path."""
    vocabulary, size = 4, 3
    path = (2, 0, 3)
    logits = torch.randn(*[vocabulary] * (size - 1), size, vocabulary, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_(True)

    def draft(prefix: tuple[int, ...]) -> torch.Tensor:
        padded = (*prefix, *[0] * (size - 1 - len(prefix)))
        return logits[padded][len(prefix)].log_softmax(-1)

    total = torch.zeros(())
    for window in itertools.product(range(vocabulary), repeat=size):
        log_prob = sum(draft(window[:i])[window[i]] for i in range(size))
        accepted = next((i for i in range(size) if window[i] != path[i]), size)
        total = total + log_prob.exp() * speedup_reward(accepted=[accepted], cost_ratio=GAMMA)[0]
    (naive,) = torch.autograd.grad(total, logits)

    along = torch.stack([draft(path[:i])[path[i]] for i in range(size)])[None]
    value = expected_speedup_reward(along, GAMMA)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.item() == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(gradient, naive, atol=1e-6, rtol=1e-4)


def test_masked_and_unknown_positions_end_the_window():
    log_probs = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]).log().requires_grad_(True)
    mask = torch.tensor([[True, False, True], [True, True, True], [True, True, True]])
    value = expected_speedup_reward(log_probs, GAMMA, mask)
    assert value.tolist() == pytest.approx([0.5 / 1.1, 0.5 / 1.1, 0.0])
    value.sum().backward()
    assert log_probs.grad.isfinite().all()
    assert (log_probs.grad[:, 1:] == 0).all()


@pytest.mark.parametrize("gamma", [0.0, -1.0])
def test_gamma_must_be_positive(gamma):
    with pytest.raises(ValueError, match="`cost_ratio`"):
        expected_speedup_reward(torch.zeros(1, 2), gamma)
