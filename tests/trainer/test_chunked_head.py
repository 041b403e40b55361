# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch

from ppow_hf.trainer import chunked_head
from ppow_hf.trainer.acceptance_losses import LOSSES, distillation_loss
from ppow_hf.trainer.chunked_head import head_loss

ROWS, HIDDEN, VOCABULARY = 11, 6, 17


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked_head, "_ROWS", 4)  # three blocks, the last one not full


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, HIDDEN, generator=generator).to(dtype).requires_grad_(True)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype).requires_grad_(True)
    teacher = torch.randn(ROWS, VOCABULARY, generator=generator).softmax(-1) * 0.9
    return states, weight, teacher


@pytest.mark.parametrize("loss_type", [*LOSSES, "mixed"])
@pytest.mark.parametrize("with_chosen", [False, True])
def test_values_and_gradients_are_those_of_the_whole_table(loss_type, with_chosen):
    states, weight, teacher = inputs(torch.float32)
    chosen = torch.arange(ROWS) % VOCABULARY if with_chosen else None
    pull = torch.linspace(-1, 1, ROWS)

    def row_loss(logits, block):
        log_q = logits.log_softmax(-1)
        return distillation_loss(loss_type, teacher[block], log_q), {"best": logits.argmax(-1)}

    found = head_loss(states, weight, row_loss, chosen, temperature=0.7)
    loss = 3 * found.total
    if with_chosen:
        loss = loss + (pull * found.log_probs.exp()).sum()
    gradients = torch.autograd.grad(loss, (states, weight))

    logits = states @ weight.T
    naive = 3 * distillation_loss(loss_type, teacher, logits.log_softmax(-1)).sum()
    if with_chosen:
        log_probs = (logits / 0.7).log_softmax(-1)[torch.arange(ROWS), chosen]
        torch.testing.assert_close(found.log_probs, log_probs)
        naive = naive + (pull * log_probs.exp()).sum()
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-6)
    for gradient, expected in zip(gradients, torch.autograd.grad(naive, (states, weight)), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.rows["best"], logits.argmax(-1))


def test_a_token_the_drafter_does_not_know_has_no_probability_and_no_gradient():
    states, weight, _ = inputs(torch.float32)
    chosen = torch.full((ROWS,), -1)
    chosen[0] = 3
    found = head_loss(states, weight, lambda logits, block: (logits.sum(-1) * 0, {}), chosen)
    assert found.log_probs[1:].isinf().all()
    (gradient,) = torch.autograd.grad(found.log_probs[0], states)
    assert gradient[0].abs().sum() > 0
    assert (gradient[1:] == 0).all()


def test_nothing_is_kept_without_gradients():
    states, weight, _ = inputs(torch.float32)
    with torch.no_grad():
        found = head_loss(states, weight, lambda logits, block: (logits.logsumexp(-1), {}))
    torch.testing.assert_close(found.total, (states @ weight.T).logsumexp(-1).sum())
    assert not found.total.requires_grad


def test_under_autocast_the_projection_is_in_the_lower_precision():
    states, weight, _ = inputs(torch.float32)
    seen = []

    def row_loss(logits, block):
        seen.append(logits)
        return logits.square().sum(-1), {}

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head_loss(states, weight, row_loss)
    low = (states.bfloat16() @ weight.bfloat16().T).float()
    torch.testing.assert_close(torch.cat(seen), low)
    gradient = torch.autograd.grad(found.total, weight)[0]
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, 2 * low.detach().T @ states.detach(), rtol=3e-2, atol=0.3)
