# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import math

import pytest
import torch

from ppow_hf.trainer.acceptance_losses import TeacherRows, distillation_loss, forward_kl, lk, total_variation

# One row by hand: p over three tokens of which the last is outside the draft vocabulary.
P = torch.tensor([[0.5, 0.3]])
Q = torch.tensor([[0.25, 0.75]])


def test_forward_kl_renormalises_over_the_draft_vocabulary():
    expected = 0.625 * math.log(0.625 / 0.25) + 0.375 * math.log(0.375 / 0.75)
    assert forward_kl(P, Q.log()).item() == pytest.approx(expected, rel=1e-6)


def test_total_variation_counts_unreachable_mass_as_refused():
    # min(0.5, 0.25) + min(0.3, 0.75) = 0.55
    assert total_variation(P, Q.log()).item() == pytest.approx(0.45, rel=1e-6)


def test_lk_is_minus_log_of_the_acceptance():
    assert lk(P, Q.log()).item() == pytest.approx(-math.log(0.55), rel=1e-6)


def test_mixed_is_the_weighted_sum():
    expected = 0.75 * forward_kl(P, Q.log()) + 0.25 * lk(P, Q.log())
    torch.testing.assert_close(distillation_loss("mixed", P, Q.log(), acceptance_weight=0.25), expected)


@pytest.mark.parametrize("loss_type", ["forward_kl", "total_variation", "lk", "mixed"])
def test_every_loss_is_least_at_the_target_and_has_a_gradient(loss_type):
    torch.manual_seed(0)
    p = torch.randn(4, 16).softmax(-1)
    logits = torch.randn(4, 16, requires_grad=True)
    loss = distillation_loss(loss_type, p, logits.log_softmax(-1))
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0
    at_target = distillation_loss(loss_type, p, p.log())
    assert (at_target < loss).all()
    torch.testing.assert_close(at_target, torch.zeros(4), atol=1e-5, rtol=0)


def test_teacher_rows_keep_the_mass_of_the_whole_vocabulary():
    torch.manual_seed(0)
    logits = torch.randn(7, 20)
    ids = torch.tensor([1, 4, 5, 17])
    rows = TeacherRows.from_logits(logits, ids, chunk_size=3)
    torch.testing.assert_close(rows.probs, logits.softmax(-1)[:, ids])
    assert torch.equal(rows.argmax, logits.argmax(-1))
    whole = TeacherRows.from_logits(logits, None)
    torch.testing.assert_close(whole.probs.sum(-1), torch.ones(7))
    torch.testing.assert_close(rows[torch.tensor([2, 2])].probs, rows.probs[[2, 2]])
