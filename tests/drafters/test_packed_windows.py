# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Packed windows against the decoding interface: `extend` and `step`, one window at a time."""

import pytest
import torch

from ..testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from .common import VOCAB, Text
from .reference_eagle3 import VARIANTS, exact_arithmetic, randomize_

LENGTH, WINDOW, GROUP = 14, 4, 3
# Out of order, next to each other, twice the same, first and last possible place, missing ones, and a row without any.
STARTS = torch.tensor([[9, 2, -1, 10], [LENGTH, -1, 5, 5], [-1, -1, -1, -1]])

FAMILIES = {
    "eagle3": lambda target: randomize_(tiny_eagle3(target, draft_vocab_size=40)),
    "eagle3_everything": lambda target: randomize_(tiny_eagle3(target, **VARIANTS["everything"])),
    "causal_lm": tiny_causal_drafter,
    "causal_lm_sliding": lambda target: tiny_causal_drafter(tiny_target("gemma3_text", vocab_size=VOCAB)),
}


@pytest.fixture(scope="module")
def target():
    return tiny_target(vocab_size=VOCAB)


@pytest.fixture(params=FAMILIES)
def drafter(request, target):
    return FAMILIES[request.param](target)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of the logits' scale."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))


def random_windows(starts=STARTS, group=GROUP, window=WINDOW, seed=2):
    return torch.randint(0, VOCAB, (*starts.shape, group, window), generator=torch.Generator().manual_seed(seed))


def one_window(drafter, text: Text, row: int, start: int, tokens: torch.Tensor) -> torch.Tensor:
    """Logits `(window, draft_vocab_size)` of one window, as decoding computes them."""
    state = drafter.new_state()
    features = None if text.features is None else text.features[row : row + 1, : start - 1]
    logits = [drafter.extend(state, text.tokens[row : row + 1, :start], features)]
    for token in tokens[:-1]:
        logits.append(drafter.step(state, token[None]))
    return torch.cat(logits)


def score(drafter, text: Text, starts=STARTS, windows=None) -> torch.Tensor:
    """`(batch, starts, group, window, draft_vocab_size)`."""
    windows = random_windows(starts) if windows is None else windows
    return torch.stack(drafter(text.tokens, text.features, starts=starts, window_tokens=windows).logits, dim=3)


@torch.no_grad()
def test_windows_equal_drafting_one_at_a_time(drafter):
    text, windows = Text(drafter, LENGTH, batch=3), random_windows()
    logits = score(drafter, text, windows=windows)
    assert logits.shape == (3, 4, GROUP, WINDOW, drafter.config.draft_vocab_size)
    for row, column in (STARTS >= 0).nonzero().tolist():
        for g in range(GROUP):
            alone = one_window(drafter, text, row, int(STARTS[row, column]), windows[row, column, g])
            assert_same(logits[row, column, g], alone)
    assert logits.isfinite().all(), "missing starts must not poison sums over the batch"


@torch.no_grad()
def test_begin_and_step_equal_drafting_one_at_a_time(drafter):
    text, windows = Text(drafter, LENGTH, batch=3), random_windows()
    state, first = drafter.begin_windows(text.tokens, text.features, STARTS, GROUP)
    assert first.shape == (3, 4, drafter.config.draft_vocab_size)
    assert state.num_windows == 4 * GROUP
    logits = [first.repeat_interleave(GROUP, dim=1)]
    logits += [drafter.step_windows(state, windows[..., k].flatten(1)) for k in range(WINDOW - 1)]
    for row, column in (STARTS >= 0).nonzero().tolist():
        for g in range(GROUP):
            alone = one_window(drafter, text, row, int(STARTS[row, column]), windows[row, column, g])
            packed = torch.stack([step[row, column * GROUP + g] for step in logits])
            assert_same(packed, alone)


@torch.no_grad()
def test_nothing_behind_a_start_is_seen(drafter):
    """Neither the rest of the text, be it padding, nor the windows that are drafted beside."""
    text, windows = Text(drafter, LENGTH, batch=3), random_windows()
    before = score(drafter, text, windows=windows)
    text.tokens[0, 9:] = 0
    if text.features is not None:
        # The last committed token has not been through the target: its features are not known yet.
        text.features[0, 8:] = 50.0
    windows[0, 0, 1:] = 7
    windows[0, 3] = 7
    after = score(drafter, text, windows=windows)
    assert_same(after[0, 0, 0], before[0, 0, 0])
    assert_same(after[0, 1], before[0, 1])
    assert_same(after[1], before[1])
    assert not torch.allclose(after[0, 0, 1, 1:], before[0, 0, 1, 1:])
    assert not torch.allclose(after[0, 3], before[0, 3])


@torch.no_grad()
def test_groups_share_the_first_step_and_part_afterwards(drafter):
    logits = score(drafter, Text(drafter, LENGTH, batch=3))
    assert torch.equal(logits[0, 0, 0, 0], logits[0, 0, 1, 0])
    assert not torch.allclose(logits[0, 0, 0, 1], logits[0, 0, 1, 1])


@torch.no_grad()
def test_text_logits_equal_the_first_step_of_forward(drafter):
    text = Text(drafter, LENGTH, batch=3)
    offset = drafter.prediction_offset
    rows = torch.arange(3).repeat_interleave(LENGTH - offset)
    columns = torch.arange(LENGTH - offset).repeat(3)
    logits = drafter.text_logits(text.tokens, text.features)(rows, columns)
    assert_same(logits, drafter(text.tokens, text.features).logits[0][rows, columns])
    # Column `i` predicts the token at `i + offset`: what a window from there begins with.
    starts = torch.tensor([[3, 8], [2, 4], [9, LENGTH - 1]])
    _, first = drafter.begin_windows(text.tokens, text.features, starts)
    places = torch.arange(3).repeat_interleave(2), starts.flatten() - offset
    assert_same(drafter.text_logits(text.tokens, text.features)(*places), first.flatten(0, 1))


# ---- gradients -----------------------------------------------------------------------------------------------------


def test_gradients_reach_every_weight_through_the_drafters_own_states(drafter):
    text = Text(drafter, LENGTH, batch=3)
    logits = score(drafter, text)
    # The last step alone: what it says depends on every earlier step through the drafter's own states.
    logits[0, 0, 0, -1].square().sum().backward()
    for name, parameter in drafter.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_missing_starts_give_no_gradient(drafter):
    logits = score(drafter, Text(drafter, LENGTH, batch=3))
    chosen = logits[STARTS >= 0]
    chosen.square().sum().backward()
    with_missing = {name: parameter.grad.clone() for name, parameter in drafter.named_parameters()}
    drafter.zero_grad()
    text = Text(drafter, LENGTH, batch=3)
    text.tokens, windows = text.tokens[:2], random_windows()[:2]
    text.features = None if text.features is None else text.features[:2]
    score(drafter, text, STARTS[:2], windows)[STARTS[:2] >= 0].square().sum().backward()
    for name, parameter in drafter.named_parameters():
        torch.testing.assert_close(parameter.grad, with_missing[name], rtol=1e-4, atol=1e-2, msg=name)


def test_gradients_equal_finite_differences(drafter, monkeypatch):
    if "sliding_attention" in (getattr(getattr(drafter, "model", drafter).config, "layer_types", None) or ()):
        pytest.skip("Gemma's norms compute in float32, too coarse for finite differences")
    exact_arithmetic(monkeypatch)
    drafter.double()
    text, windows = Text(drafter, 8, batch=2), random_windows(torch.zeros(2, 2), 2, 3)
    text.features = None if text.features is None else text.features.double()
    starts = torch.tensor([[5, 3], [8, -1]])
    weights = torch.randn(3, 2, 3, drafter.config.draft_vocab_size, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return (score(drafter, text, starts, windows)[starts >= 0].log_softmax(-1) * weights).sum()

    loss().backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in drafter.named_parameters():
        place = int(torch.randint(parameter.numel(), (), generator=generator))
        if "embed" in name:  # most of its rows are not used
            place = int(windows[0, 0, 0, 0]) * parameter.shape[1]
        value, step = parameter.data.view(-1)[place].item(), 1e-5
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[place] = value + sign * step
                ends.append(loss().item())
        parameter.data.view(-1)[place] = value
        expected = (ends[0] - ends[1]) / (2 * step)
        assert parameter.grad.view(-1)[place].item() == pytest.approx(expected, rel=1e-5, abs=1e-6), name


def test_bfloat16_autocast_gives_close_finite_logits_and_gradients(drafter):
    text = Text(drafter, LENGTH, batch=3)
    exact = score(drafter, text)
    with torch.autocast("cpu", torch.bfloat16):
        logits = score(drafter, text)
    logits.float().logsumexp(-1).sum().backward()
    assert (logits.float() - exact)[STARTS >= 0].abs().max() < 0.15 * exact.abs().max()
    assert all(parameter.grad.isfinite().all() for parameter in drafter.parameters())


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("starts", "group_size", "message"),
    [
        (torch.tensor([5, 6]), 1, r"`starts` must have shape \(batch, starts\) for 2 texts, got \(2,\)"),
        (torch.tensor([[5]]), 1, "`starts` must have shape.*2 texts"),
        (torch.zeros(2, 0, dtype=torch.long), 1, "`starts` must have shape"),
        (torch.tensor([[1], [5]]), 1, "`starts` must be -1 or between 2 and the length of the texts.*got 1 to 5"),
        (torch.tensor([[5], [9]]), 1, r"between 2 and the length of the texts \(8\), got 5 to 9"),
        (torch.tensor([[5], [-2]]), 1, "`starts` must be -1 or between 2"),
        (torch.tensor([[5], [6]]), 0, "`group_size` must be at least 1, got 0"),
    ],
)
def test_bad_starts_are_named(drafter, starts, group_size, message):
    text = Text(drafter, 8, batch=2)
    with pytest.raises(ValueError, match=message):
        drafter.begin_windows(text.tokens, text.features, starts, group_size)


def test_features_must_cover_the_texts(drafter):
    text = Text(drafter, 8, batch=2)
    if text.features is None:
        pytest.skip("this family reads no features")
    for features in (None, text.features[:, :-1]):
        with pytest.raises(ValueError, match=r"`features` must cover the texts \(2, 8\)"):
            drafter.begin_windows(text.tokens, features, torch.tensor([[5], [6]]))


@pytest.mark.parametrize("starts", [None, torch.tensor([[5], [6]])])
def test_window_tokens_must_come_with_their_starts(drafter, starts):
    text = Text(drafter, 8, batch=2)
    with pytest.raises(ValueError, match="`window_tokens` must have shape"):
        drafter(text.tokens, text.features, starts=starts, window_tokens=torch.zeros(2, 2, 3, 4, dtype=torch.long))
