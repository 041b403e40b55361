# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import math

import pytest
import torch

from ppow_hf.rl.losses import entropy, expected_length_loss, policy_loss, target_kl


def make_batch(num_windows=4, window_size=5, vocab=7, seed=0):
    torch.manual_seed(seed)
    old = -3 * torch.rand(num_windows, window_size, dtype=torch.float64)
    new = old + 0.6 * torch.randn(num_windows, window_size, dtype=torch.float64)
    advantages = torch.randn(num_windows, window_size, dtype=torch.float64)
    lengths = torch.tensor([window_size, 2, 0, 4])[:num_windows]
    mask = torch.arange(window_size) < lengths.unsqueeze(-1)
    logits = torch.randn(num_windows, window_size, vocab, dtype=torch.float64)
    # Only a part of the target's mass lies in the draft vocabulary.
    probs = torch.randn(num_windows, window_size, vocab + 3, dtype=torch.float64).softmax(-1)[..., :vocab]
    return new, old, advantages, mask, logits, probs


def naive_policy(new, old, advantages, mask, clip, normalisation):
    """Loss, its gradient by the formula `-A r` where the clip does not bind, the share of bound tokens, the ratio."""
    size = (len(new), len(new[0]))
    lengths = [sum(row) for row in mask]
    loss, bound, ratios = 0.0, 0, 0.0
    gradient = [[0.0] * size[1] for _ in range(size[0])]
    for n in range(size[0]):
        for i in range(size[1]):
            if not mask[n][i]:
                continue
            if normalisation == "token":
                weight = 1 / sum(lengths)
            elif normalisation == "window":
                weight = 1 / lengths[n] / sum(length > 0 for length in lengths)
            else:
                weight = 1 / (size[0] * size[1])
            advantage, ratio = advantages[n][i], math.exp(new[n][i] - old[n][i])
            clipped = min(max(ratio, 1 - clip), 1 + clip)
            loss -= weight * min(ratio * advantage, clipped * advantage)
            cut = clipped * advantage < ratio * advantage
            gradient[n][i] = 0.0 if cut else -weight * advantage * ratio
            bound, ratios = bound + cut, ratios + ratio
    return loss, gradient, bound / sum(lengths), ratios / sum(lengths)


@pytest.mark.parametrize("normalisation", ["token", "window", "constant"])
def test_policy_loss_and_gradient_against_naive(normalisation):
    new, old, advantages, mask, *_ = make_batch()
    expected = naive_policy(*(t.tolist() for t in (new, old, advantages, mask)), 0.2, normalisation)
    assert 0 < expected[2] < 1
    padded = new.masked_fill(~mask, float("-inf")).requires_grad_()
    arguments = (old.masked_fill(~mask, math.nan), advantages.masked_fill(~mask, math.nan), mask)
    loss, metrics = policy_loss(padded, *arguments, clip=0.2, normalisation=normalisation)
    (gradient,) = torch.autograd.grad(loss, padded)
    assert loss.item() == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(gradient, torch.tensor(expected[1], dtype=torch.float64), rtol=1e-12, atol=0)
    assert metrics["clip_ratio"].item() == pytest.approx(expected[2])
    assert metrics["ratio_mean"].item() == pytest.approx(expected[3])
    assert not metrics["ratio_mean"].requires_grad


def test_policy_gradient_by_finite_differences():
    new, old, advantages, mask, *_ = make_batch(seed=1)
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, old, advantages, mask, normalisation="window")[0], new.requires_grad_()
    )


def test_fresh_rollouts_have_the_plain_policy_gradient():
    new, _, advantages, mask, *_ = make_batch()
    new.requires_grad_()
    loss, metrics = policy_loss(new, None, advantages, mask)
    (gradient,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(gradient, torch.where(mask, -advantages, 0.0) / mask.sum())
    assert metrics["clip_ratio"] == 0 and metrics["ratio_mean"] == 1


@pytest.mark.parametrize(("normalisation", "whole"), [("token", 11), ("window", 3), ("constant", 20)])
def test_micro_batches_add_up_to_the_batch(normalisation, whole):
    new, old, advantages, mask, *_ = make_batch()
    total, _ = policy_loss(new, old, advantages, mask, normalisation=normalisation)
    halves = [
        policy_loss(*(t[s] for t in (new, old, advantages, mask)), normalisation=normalisation, denominator=whole)[0]
        for s in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(halves), total)


def naive_kl(logits, probs, direction):
    z = math.log(sum(math.exp(x) for x in logits))
    total = 0.0
    for x, p in zip(logits, probs, strict=True):
        p, q = p / sum(probs), math.exp(x - z)
        total += p * math.log(p / q) if direction == "forward" else q * math.log(q / p)
    return total


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_against_naive(direction):
    *_, mask, logits, probs = make_batch()
    weights = torch.rand(mask.shape, dtype=torch.float64)
    values = {
        (n, i): naive_kl(logits[n, i].tolist(), probs[n, i].tolist(), direction) for n, i in mask.nonzero().tolist()
    }
    padding = ~mask.unsqueeze(-1)
    padded = logits.masked_fill(padding, math.nan).requires_grad_()
    arguments = (padded, probs.masked_fill(padding, math.nan), direction, mask)
    kl = target_kl(*arguments)
    assert kl.item() == pytest.approx(sum(values.values()) / len(values), rel=1e-10)
    assert torch.autograd.grad(kl, padded)[0].isfinite().all()
    weighted = sum(weights[key].item() * value for key, value in values.items())
    total = sum(weights[key].item() for key in values)
    assert target_kl(*arguments, weights=weights).item() == pytest.approx(weighted / total, rel=1e-10)
    assert target_kl(*arguments, denominator=100).item() == pytest.approx(sum(values.values()) / 100, rel=1e-10)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_gradient_and_minimum(direction):
    *_, mask, logits, probs = make_batch()
    assert torch.autograd.gradcheck(lambda x: target_kl(x, probs, direction, mask), logits.requires_grad_())
    assert target_kl(probs.log(), probs, direction, mask).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_where_the_target_is_sharp_or_out_of_reach(direction):
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 6, requires_grad=True)
    probs = torch.zeros(1, 3, 6)
    probs[0, 0, 2] = 1.0  # everything else underflowed
    probs[0, 1] = 1e-12  # next to nothing in the draft vocabulary
    kl = target_kl(logits, probs, direction)
    only_first = target_kl(logits[:, :1], probs[:, :1], direction)
    assert kl.item() == pytest.approx(only_first.item()) and 0 < kl.item() < 100
    (gradient,) = torch.autograd.grad(kl, logits)
    assert gradient.isfinite().all() and (gradient[0, 1:] == 0).all() and gradient[0, 0].abs().sum() > 0


def test_directions_differ_as_documented():
    """A drafter that covers one of the target's two modes is dear in the forward direction, cheap in the reverse."""
    probs = torch.tensor([[[0.5, 0.499, 0.001]]])
    one_mode, flat = torch.tensor([[[8.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 0.0, 0.0]]])
    assert target_kl(one_mode, probs, "forward") > target_kl(flat, probs, "forward")
    assert target_kl(one_mode, probs, "reverse") < target_kl(flat, probs, "reverse")


def test_expected_length_loss_by_hand_and_by_finite_differences():
    q = torch.tensor([[[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]], [[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]])
    p = torch.tensor([[[0.5, 0.2, 0.1], [0.0, 0.9, 0.1]], [[0.0, 0.9, 0.1], [0.3, 0.3, 0.4]]])
    mask = torch.tensor([[True, True], [True, False]])
    # a = 0.4 and 0.35 in the first window, 0.35 in the second, which ended: -(0.4 + 0.14 + 0.35) / 2.
    logits = q.log() + 1.7  # any shift of the logits
    assert expected_length_loss(logits, p, mask).item() == pytest.approx(-0.445, rel=1e-5)
    assert expected_length_loss(logits, p, mask, denominator=1).item() == pytest.approx(-0.89, rel=1e-5)
    *_, mask, logits, probs = make_batch()  # one of its windows is empty
    assert torch.autograd.gradcheck(lambda x: expected_length_loss(x, probs, mask), logits.requires_grad_())


def test_descending_the_expected_length_loss_lengthens_the_windows():
    torch.manual_seed(0)
    probs = (3 * torch.randn(2, 3, 8)).softmax(-1)
    logits = torch.randn(2, 3, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        expected_length_loss(logits, probs).backward()
        optimizer.step()
    assert expected_length_loss(logits, probs).item() < -2.9  # the best is -3, at q = p


def test_entropy():
    logits = torch.zeros(2, 2, 8)
    logits[0, 1] = torch.tensor([0.5, 0.25, 0.25, 0, 0, 0, 0, 0]).clamp_min(1e-30).log()
    mask = torch.tensor([[True, True], [True, False]])
    logits[1, 1] = math.nan
    expected = (2 * math.log(8) + 1.5 * math.log(2)) / 3
    assert entropy(logits, mask).item() == pytest.approx(expected, rel=1e-6)


def test_nothing_to_train_on_is_zero_not_nan():
    new, old, advantages, _, logits, probs = make_batch()
    mask = torch.zeros(new.shape, dtype=torch.bool)
    new.requires_grad_(), logits.requires_grad_()
    losses = [policy_loss(new, old, advantages, mask, normalisation=n)[0] for n in ("token", "window", "constant")]
    losses += [target_kl(logits, probs, "reverse", mask), expected_length_loss(logits, probs, mask)]
    losses += [target_kl(logits, probs, mask=mask, weights=torch.rand(mask.shape)), entropy(logits, mask)]
    assert all(loss.item() == 0 for loss in losses)
    sum(losses).backward()
    assert (new.grad == 0).all() and (logits.grad == 0).all()
    assert all(value == 0 for value in policy_loss(new, old, advantages, mask)[1].values())


def test_half_precision_is_computed_in_float32():
    new, old, advantages, mask, logits, probs = (t if t.dtype == torch.bool else t.bfloat16() for t in make_batch())
    losses = [policy_loss(new, old, advantages, mask)[0], target_kl(logits, probs, mask=mask)]
    losses += [expected_length_loss(logits, probs, mask), entropy(logits, mask)]
    assert all(loss.dtype == torch.float32 for loss in losses)
    torch.testing.assert_close(losses[1], target_kl(logits.float(), probs.float(), mask=mask), rtol=0, atol=0)


def test_bad_input():
    new, old, advantages, mask, logits, probs = make_batch()
    with pytest.raises(ValueError, match="`normalisation` must be one of token, window, constant"):
        policy_loss(new, old, advantages, mask, normalisation="mean")
    with pytest.raises(ValueError, match="`clip` must be above 0"):
        policy_loss(new, old, advantages, mask, clip=0.0)
    with pytest.raises(ValueError, match="`log_probs` and `advantages`"):
        policy_loss(new, old, advantages[:, :1], mask)
    with pytest.raises(ValueError, match="`log_probs` and `old_log_probs`"):
        policy_loss(new, old[:1], advantages, mask)
    with pytest.raises(ValueError, match="`mask`"):
        policy_loss(new, old, advantages, mask[:, :1])
    with pytest.raises(ValueError, match="`direction` must be one of forward, reverse"):
        target_kl(logits, probs, "both")
    with pytest.raises(ValueError, match="those of the draft vocabulary"):
        target_kl(logits, probs[..., :3])
    with pytest.raises(ValueError, match="`weights`"):
        target_kl(logits, probs, weights=torch.ones(4))


def test_broken_target_probabilities_are_not_left_out():
    """NaN is not too little mass in the draft vocabulary."""
    probs = torch.full((1, 2, 4), 0.25)
    probs[0, 1, 2] = float("nan")
    logits = torch.zeros(1, 2, 4)
    assert target_kl(logits, probs).isnan()
    assert target_kl(logits, probs, mask=torch.tensor([[True, False]])) == 0
