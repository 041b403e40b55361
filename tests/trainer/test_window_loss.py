# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A loss made in blocks of windows is the loss made at once."""

import pytest
import torch

from ppow_hf.rl import expected_length_loss, target_kl
from ppow_hf.trainer import window_loss
from ppow_hf.trainer.window_loss import blockwise_loss

WINDOWS, SIZE, VOCAB = 7, 3, 11


@pytest.fixture
def whole(monkeypatch):
    """Logits, and a loss with its sums in the library's own functions; blocks of two windows."""
    monkeypatch.setattr(window_loss, "_ROWS", 2 * SIZE)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(WINDOWS, SIZE, VOCAB, generator=generator)
    probs = torch.randn(WINDOWS, SIZE, VOCAB, generator=generator).softmax(-1)
    seen = []

    def loss(part, block):
        seen.append(block)
        divergence = target_kl(part, probs[block], "forward", denominator=17.0)
        length = expected_length_loss(part, probs[block], denominator=5.0)
        return divergence + 0.5 * length, {"length": length, "rows": torch.tensor(float(len(part)))}

    loss.seen = seen
    return logits, loss


def test_blocks_give_the_loss_its_gradient_and_its_sums(whole):
    logits, loss = whole
    at_once = logits.clone().requires_grad_()
    expected, sums = loss(at_once, slice(None))
    (3.0 * expected).backward()
    loss.seen.clear()
    parts = logits.clone().requires_grad_()
    found, totals = blockwise_loss(parts, loss)
    (3.0 * found).backward()
    assert loss.seen == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parts.grad, at_once.grad)
    assert totals["rows"] == WINDOWS and totals["length"] == pytest.approx(float(sums["length"].detach()), rel=1e-5)
    assert not totals["length"].requires_grad


def test_narrow_logits_are_widened_and_get_a_narrow_gradient(whole):
    logits, loss = whole
    narrow = logits.bfloat16().requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    blockwise_loss(narrow, loss)[0].backward()
    loss(wide, slice(None))[0].backward()
    assert narrow.grad.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.grad, wide.grad.bfloat16(), rtol=1e-2, atol=1e-4)


def test_without_gradient_nothing_is_kept(whole):
    logits, loss = whole
    found, _ = blockwise_loss(logits, loss)
    assert not found.requires_grad
    torch.testing.assert_close(found, loss(logits, slice(None))[0])


def test_no_window_is_no_loss(whole):
    logits, loss = whole
    nothing = logits[:0].requires_grad_()
    found, totals = blockwise_loss(nothing, lambda part, block: (part.sum(), {"count": part.sum()}))
    found.backward()
    assert found == 0 and totals["count"] == 0 and nothing.grad.shape == (0, SIZE, VOCAB)
