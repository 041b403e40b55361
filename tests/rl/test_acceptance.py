# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import itertools
import math

import pytest
import torch

from ppow_hf.rl.acceptance import (
    acceptance_probabilities,
    committed_tokens,
    distribution_expected_accepted,
    expected_accepted,
    greedy_accepted,
    prefix_credit_mask,
    reach_probabilities,
    sampled_accepted,
)


def make_windows(num_windows=50, window_size=6, seed=0):
    """Log-probabilities of random windows in float64, with random lengths from 0 to K and rubbish after their end."""
    generator = torch.Generator().manual_seed(seed)
    target = -4 * torch.rand(num_windows, window_size, generator=generator, dtype=torch.float64)
    draft = -4 * torch.rand(num_windows, window_size, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, window_size + 1, (num_windows,), generator=generator)
    mask = torch.arange(window_size) < lengths.unsqueeze(-1)
    target, draft = target.masked_fill(~mask, float("nan")), draft.masked_fill(~mask, float("-inf"))
    return target, draft, mask, lengths.tolist()


def test_greedy_by_hand():
    target_argmax = torch.tensor([[5, 6, 7, 8]] * 6)
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9], [5, 0, 7, 8], [0, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8]])
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[4, 2:] = False  # ended after two tokens
    mask[5, 1] = False  # everything after a hole is outside
    assert greedy_accepted(tokens, target_argmax, mask).tolist() == [4, 3, 1, 0, 2, 1]
    assert greedy_accepted(tokens, target_argmax).tolist() == [4, 3, 1, 0, 4, 4]
    assert greedy_accepted(tokens, target_argmax).dtype == torch.long


def test_committed_by_hand():
    """9 ends the text."""
    tokens = torch.tensor([[5, 6, 9], [5, 6, 9], [5, 9, 0], [5, 9, 9], [5, 6, 7], [9, 9, 9]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool()
    accepted = torch.tensor([3, 2, 2, 1, 3, 0])
    survived = torch.arange(3) < accepted[:, None]
    committed = committed_tokens(tokens, survived, {9, 50}, mask)
    assert committed.tolist() == [3, 3, 2, 2, 4, 1] and committed.dtype == torch.long
    assert committed_tokens(tokens, survived, (), mask).tolist() == (accepted + 1).tolist()
    # Chances of 0.8 and 0.5 to get to the two tokens, the second of which ends the text: 1.3 and a token for 0.5.
    chances = torch.tensor([[0.8, 0.5, 0.0]])
    assert committed_tokens(tokens[2:3], chances, [9], mask[2:3]).tolist() == pytest.approx([1.8])
    # And without a mask the third one: the chance of it is lost.
    chances = torch.tensor([[0.8, 0.5, 0.25]])
    assert committed_tokens(tokens[:1], chances, [9]).tolist() == pytest.approx([1.55 + 1 - 0.25])


def test_expected_and_reach_by_hand():
    # Ratios 1/2, 2 (clipped to 1), 1/4.
    target = torch.tensor([[0.3, 0.4, 0.1]]).log()
    draft = torch.tensor([[0.6, 0.2, 0.4]]).log()
    torch.testing.assert_close(acceptance_probabilities(target, draft), torch.tensor([[0.5, 1.0, 0.25]]))
    assert expected_accepted(target, draft).item() == pytest.approx(0.5 + 0.5 + 0.125, rel=1e-6)
    torch.testing.assert_close(reach_probabilities(target, draft), torch.tensor([[1.0, 0.5, 0.5]]))


def test_expected_and_reach_against_loops():
    target, draft, mask, lengths = make_windows()
    expected = expected_accepted(target, draft, mask)
    reach = reach_probabilities(target, draft, mask)
    for n, length in enumerate(lengths):
        total, survival = 0.0, 1.0
        for i in range(target.shape[1]):
            assert reach[n, i].item() == pytest.approx(survival if i < length else 0.0, abs=1e-12)
            if i < length:
                survival *= min(1.0, math.exp(target[n, i]) / math.exp(draft[n, i]))
                total += survival
        assert expected[n].item() == pytest.approx(total, abs=1e-12)
        assert 0 <= total <= length
    assert expected.dtype == torch.float64


def test_sampled_frequencies_follow_the_exact_law():
    probabilities = [0.8, 1.0, 0.5, 0.25]  # the second ratio is above 1
    draws = 40_000
    target = torch.tensor([0.4, 0.6, 0.2, 0.1]).log().expand(draws, 4)
    draft = torch.tensor([0.5, 0.3, 0.4, 0.4]).log().expand(draws, 4)
    accepted = sampled_accepted(target, draft, torch.Generator().manual_seed(0))
    frequencies = (torch.bincount(accepted, minlength=5) / draws).tolist()
    survival = 1.0
    for k in range(5):
        exact = survival * (1 - probabilities[k]) if k < 4 else survival
        survival *= probabilities[k] if k < 4 else 1.0
        assert frequencies[k] == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / draws))
    assert frequencies[1] == 0.0  # a token more probable to the target than to the drafter is never refused


def test_expected_is_the_mean_of_sampled():
    target, draft, mask, _ = make_windows(num_windows=8, seed=1)
    generator = torch.Generator().manual_seed(0)
    draws = 4000
    repeated = [t.repeat_interleave(draws, 0) for t in (target, draft, mask)]
    sampled = sampled_accepted(repeated[0], repeated[1], generator, repeated[2]).double().view(8, draws)
    error = 4 * sampled.std(-1) / math.sqrt(draws) + 1e-9
    assert ((sampled.mean(-1) - expected_accepted(target, draft, mask)).abs() <= error).all()


def test_sampled_repeats_and_its_coins_do_not_depend_on_the_data():
    target, draft, mask, _ = make_windows(seed=2)
    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    assert torch.equal(sampled_accepted(target, draft, one, mask), sampled_accepted(target, draft, other, mask))
    sampled_accepted(target, draft, one, mask)
    sampled_accepted(target, draft, other, torch.zeros_like(mask))
    assert torch.equal(one.get_state(), other.get_state())


def test_certain_and_impossible_tokens():
    draft = torch.zeros(1, 3).sub(1.0)
    same = sampled_accepted(draft.expand(2000, 3), draft.expand(2000, 3), torch.Generator().manual_seed(0))
    assert (same == 3).all()
    excluded = torch.full((2000, 3), float("-inf"))  # for instance by top-k in the target
    assert (sampled_accepted(excluded, draft.expand(2000, 3), torch.Generator().manual_seed(0)) == 0).all()
    assert expected_accepted(excluded[:1], draft).item() == 0.0


def test_half_precision_is_computed_in_float32():
    target = torch.full((1, 8), -1.01).bfloat16()
    draft = torch.full((1, 8), -1.0).bfloat16()
    expected = expected_accepted(target, draft)
    a = math.exp(target.float()[0, 0].item() + 1.0)
    assert expected.dtype == torch.float32
    assert expected.item() == pytest.approx(sum(a**i for i in range(1, 9)), rel=1e-6)


@pytest.mark.parametrize(
    ("target", "draft"), [(float("nan"), -1.0), (float("inf"), -1.0), (-1.0, float("-inf")), (-1.0, float("nan"))]
)
def test_values_that_cannot_be(target, draft):
    targets, drafts = torch.full((2, 3), -1.0), torch.full((2, 3), -1.0)
    targets[1, 2], drafts[1, 2] = target, draft
    with pytest.raises(ValueError, match="at window 1, position 2 are"):
        expected_accepted(targets, drafts)
    mask = torch.tensor([[True] * 3, [True, True, False]])
    assert expected_accepted(targets, drafts, mask).tolist() == [3.0, 2.0]


def test_prefix_credit_covers_the_first_mismatch():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    credit = prefix_credit_mask(torch.tensor([0, 2, 4, 2, 0]), 4, mask)
    assert credit.int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    with pytest.raises(ValueError, match="not an expected one"):
        prefix_credit_mask(torch.tensor([0.3]), 4)


def test_distribution_expected_by_hand():
    p = torch.tensor([[[0.5, 0.2, 0.1], [0.0, 0.9, 0.1]]])  # a fifth of the first row's mass cannot be reached
    q = torch.tensor([[[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]]])
    a1, a2 = 0.1 + 0.2 + 0.1, 0.0 + 0.25 + 0.1
    assert distribution_expected_accepted(p, q.log()).item() == pytest.approx(a1 + a1 * a2, rel=1e-6)
    mask = torch.tensor([[True, False]])
    assert distribution_expected_accepted(p, q.log(), mask).item() == pytest.approx(a1, rel=1e-6)


def test_distribution_expected_is_the_mean_over_the_drafters_windows():
    """Where p and q do not depend on the window, averaging E[k] over every window by its probability gives it."""
    torch.manual_seed(0)
    p, q = torch.randn(2, 1, 3, 4, dtype=torch.float64).softmax(-1)
    total = 0.0
    for window in itertools.product(range(4), repeat=3):
        index = torch.tensor([window]).unsqueeze(-1)
        p_y, q_y = p.gather(-1, index).squeeze(-1), q.gather(-1, index).squeeze(-1)
        total += q_y.prod().item() * expected_accepted(p_y.log(), q_y.log()).item()
    assert distribution_expected_accepted(p, q.log()).item() == pytest.approx(total, rel=1e-12)


def test_distribution_expected_gradient():
    torch.manual_seed(0)
    p = torch.randn(3, 4, 5, dtype=torch.float64).softmax(-1)
    p[1, 1] = 0.0  # no reachable mass: the product has a zero factor
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    logits = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)

    def length(logits):
        return distribution_expected_accepted(p, logits.log_softmax(-1), mask)

    assert torch.autograd.gradcheck(length, logits)
    (gradient,) = torch.autograd.grad(length(logits).sum(), logits)
    assert (gradient[2, 2:] == 0).all() and gradient[0].abs().sum() > 0
    rubbish = logits.log_softmax(-1).detach().masked_fill(~mask.unsqueeze(-1), float("nan")).requires_grad_()
    (gradient,) = torch.autograd.grad(distribution_expected_accepted(p, rubbish, mask).sum(), rubbish)
    assert gradient.isfinite().all()


def test_shapes_are_checked():
    two, three = torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"`tokens` and `target_argmax` must both have the shape"):
        greedy_accepted(two.long(), three.long())
    with pytest.raises(ValueError, match="`target_log_probs` and `draft_log_probs`"):
        sampled_accepted(two, three)
    with pytest.raises(ValueError, match=r"`mask` has the shape \(2, 4\)"):
        expected_accepted(two, two, three.bool())
    with pytest.raises(ValueError, match="`target_probs` and `draft_log_probs`"):
        distribution_expected_accepted(two, two)
