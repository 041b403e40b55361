# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Decoding equals the written-out reference, and training-time test equals decoding, to 1e-10 in float64."""

import pytest
import torch

from ..testing_utils import tiny_eagle3, tiny_target
from .reference_eagle3 import VARIANTS, ReferenceEagle3, exact_arithmetic, randomize_

VOCAB = 96
TOLERANCE = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _float64(monkeypatch):
    exact_arithmetic(monkeypatch)


def make(variant: str, attention: str = "eager"):
    """A drafter with random weights in float64, and the target whose embedding it may share."""
    target = tiny_target(vocab_size=VOCAB).double()
    drafter = randomize_(tiny_eagle3(target, **VARIANTS[variant]).double())
    drafter.set_attn_implementation(attention)
    drafter.bind_target(target)
    return drafter, target


def text(drafter, length: int, batch: int = 1, seed: int = 1):
    """Random tokens `(batch, length)` and target features `(batch, length, width)`."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (batch, length), generator=generator)
    width = drafter.fc.in_features
    return tokens, torch.randn(batch, length, width, generator=generator, dtype=torch.float64)


def reference(drafter, target) -> ReferenceEagle3:
    return ReferenceEagle3(drafter, target.get_input_embeddings().weight)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_extend_and_step_equal_the_reference(variant, attention):
    drafter, target = make(variant, attention)
    exact = reference(drafter, target)
    tokens, features = text(drafter, 10, batch=2)
    state = drafter.new_state(2)

    def check(logits, committed, drafted):
        for row in range(2):
            expected = exact.logits(
                tokens[row, :committed].tolist(), features[row, : committed - 1], drafted[row].tolist()
            )
            torch.testing.assert_close(logits[row], expected, **TOLERANCE)

    committed = 0
    # (tokens committed, of which accepted drafts, draft tokens fed behind them)
    for new, accepted, window in ((4, 0, 3), (3, 2, 0), (1, 0, 2), (2, 1, 1)):
        fresh = slice(max(committed - 1, 0), committed + new - 1)
        logits = drafter.extend(state, tokens[:, committed : committed + new], features[:, fresh], accepted)
        committed += new
        drafted = torch.empty(2, 0, dtype=torch.long)
        check(logits, committed, drafted)
        for _ in range(window):
            chosen = torch.randint(0, VOCAB, (2,))
            logits = drafter.step(state, chosen)
            drafted = torch.cat([drafted, chosen[:, None]], dim=1)
            check(logits, committed, drafted)
    assert committed == 10
    assert state.committed == 9


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_time_test_equals_drafting(variant, attention):
    """Column `i`, step `k` of training = extend up to column `i`, then `k` steps with the text's own tokens."""
    drafter, _ = make(variant, attention)
    length, steps = 9, 5
    tokens, features = text(drafter, length, batch=2)
    with torch.no_grad():
        output = drafter(tokens, features, ttt_steps=steps, output_hidden_states=True)
    assert len(output.logits) == steps == len(output.hidden_states)
    compared = 0
    for i in range(length - 1):
        state = drafter.new_state(2)
        logits = drafter.extend(state, tokens[:, : i + 2], features[:, : i + 1])
        for k in range(min(steps, length - 1 - i)):
            if k > 0:
                logits = drafter.step(state, tokens[:, i + 1 + k])
            torch.testing.assert_close(output.logits[k][:, i], logits, **TOLERANCE)
            if not drafter.config.norm_output:
                torch.testing.assert_close(output.hidden_states[k][:, i], state.hidden[:, 0], **TOLERANCE)
            compared += 1
    assert compared == sum(min(steps, length - 1 - i) for i in range(length - 1))


@pytest.mark.parametrize("variant", ["plain", "everything"])
def test_training_time_test_reaches_all_eight_steps(variant):
    drafter, target = make(variant)
    tokens, features = text(drafter, 12)
    with torch.no_grad():
        output = drafter(tokens, features, ttt_steps=8)
    exact = reference(drafter, target)
    for i in (0, 2):
        for k in range(8):
            expected = exact.logits(
                tokens[0, : i + 2].tolist(), features[0, : i + 1], tokens[0, i + 2 : i + 2 + k].tolist()
            )
            torch.testing.assert_close(output.logits[k][0, i], expected, **TOLERANCE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", ["plain", "norm_output", "two_layers", "everything"])
def test_right_padding_changes_nothing(variant, attention):
    drafter, _ = make(variant, attention)
    lengths = (10, 7, 4)
    tokens, features = text(drafter, 10, batch=3)
    attention_mask = torch.zeros(3, 10, dtype=torch.long)
    for row, length in enumerate(lengths):
        attention_mask[row, :length] = 1
    features = features.masked_fill(attention_mask[..., None] == 0, 1e3)
    with torch.no_grad():
        padded = drafter(tokens, features, attention_mask=attention_mask, ttt_steps=4)
        for row, length in enumerate(lengths):
            alone = drafter(tokens[row : row + 1, :length], features[row : row + 1, :length], ttt_steps=4)
            for k in range(4):
                # Columns whose token at i + 1 + k is still text.
                width = length - 1 - k
                if width > 0:
                    torch.testing.assert_close(padded.logits[k][row, :width], alone.logits[k][0, :width], **TOLERANCE)
    assert all(torch.isfinite(logits).all() for logits in padded.logits)


def test_left_padding_shifts_columns_only():
    drafter, _ = make("everything")
    tokens, features = text(drafter, 8)
    attention_mask = torch.ones(1, 11, dtype=torch.long)
    attention_mask[:, :3] = 0
    with torch.no_grad():
        alone = drafter(tokens, features, ttt_steps=3)
        padded = drafter(
            torch.nn.functional.pad(tokens, (3, 0)),
            torch.nn.functional.pad(features, (0, 0, 3, 0), value=50.0),
            attention_mask=attention_mask,
            ttt_steps=3,
        )
    for k in range(3):
        torch.testing.assert_close(padded.logits[k][:, 3:], alone.logits[k], **TOLERANCE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", ["plain", "norm_output", "two_layers", "everything"])
@pytest.mark.parametrize("first_later_column", [0, 4, 8, None])
def test_column_mask_selects_the_same_logits(variant, attention, first_later_column):
    """Columns in front of the first one scored at a later step are skipped there; what is returned must not change."""
    drafter, _ = make(variant, attention)
    tokens, features = text(drafter, 9, batch=2)
    attention_mask = torch.ones(2, 9, dtype=torch.long)
    attention_mask[1, 6:] = 0
    wanted = torch.rand(4, 2, 9) < 0.5
    wanted[1:] = False
    if first_later_column is not None:
        wanted[1:, 0, first_later_column:] = True
        wanted[3, 0, :6] = False
    with torch.no_grad():
        full = drafter(tokens, features, attention_mask=attention_mask, ttt_steps=4)
        some = drafter(tokens, features, attention_mask=attention_mask, ttt_steps=4, column_mask=wanted)
    for k in range(4):
        assert some.logits[k].shape == (int(wanted[k].sum()), drafter.config.draft_vocab_size)
        torch.testing.assert_close(some.logits[k], full.logits[k][wanted[k]], **TOLERANCE)


@pytest.mark.parametrize("variant", ["plain", "everything"])
def test_column_mask_gives_the_same_gradients(variant):
    drafter, _ = make(variant)
    tokens, features = text(drafter, 9, batch=2)
    wanted = torch.zeros(3, 2, 9, dtype=torch.bool)
    wanted[:, 0, 3:7], wanted[0, 1, 1:], wanted[2, 1, 5] = True, True, True
    gradients = []
    for select in (False, True):
        drafter.zero_grad()
        output = drafter(tokens, features, ttt_steps=3, column_mask=wanted if select else None)
        rows = output.logits if select else [logits[wanted[k]] for k, logits in enumerate(output.logits)]
        sum(logits.logsumexp(-1).sum() * (k + 1) for k, logits in enumerate(rows)).backward()
        gradients.append({n: p.grad.clone() for n, p in drafter.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert set(gradients[0]) == {name for name, _ in drafter.named_parameters()}
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, **TOLERANCE)


def test_later_steps_send_gradients_through_earlier_ones():
    """Steps are chained: the loss of the third step alone reaches `fc`, which only the first one applies."""
    drafter, _ = make("plain")
    tokens, features = text(drafter, 8)
    output = drafter(tokens, features, ttt_steps=3)
    output.logits[2][:, 2].square().sum().backward()
    assert drafter.fc.weight.grad.abs().max() > 0


def test_a_column_sees_no_later_text():
    """Changing the text behind what a column reads leaves the column alone: no leak of what it must predict."""
    drafter, _ = make("two_layers")
    tokens, features = text(drafter, 10)
    changed_tokens, changed_features = tokens.clone(), features.clone()
    i, k = 3, 2
    changed_tokens[:, i + 2 + k :] = (changed_tokens[:, i + 2 + k :] + 7) % VOCAB
    changed_features[:, i + 1 :] += 1.0
    with torch.no_grad():
        before = drafter(tokens, features, ttt_steps=4).logits
        after = drafter(changed_tokens, changed_features, ttt_steps=4).logits
    for step in range(k + 1):
        torch.testing.assert_close(after[step][:, : i + 1], before[step][:, : i + 1], **TOLERANCE)
    assert (after[k + 1][:, i] - before[k + 1][:, i]).abs().max() > 1e-3
