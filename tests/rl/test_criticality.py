# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import math

import pytest
import torch

from ppow_hf.rl import criticality, window_values


def naive(target, draft, draft_token_ids=None):
    """C, KL and v of every position with Python floats, token by token."""
    rows = []
    for p_logits, q_logits in zip(target.tolist(), draft.tolist(), strict=True):
        p = [math.exp(x - max(p_logits)) for x in p_logits]
        p = [x / sum(p) for x in p]
        q = [math.exp(x - max(q_logits)) for x in q_logits]
        q = [x / sum(q) for x in q]
        entropy = 0.0
        for x in p:
            entropy -= x * math.log(x)
        confidence = 1 - entropy / math.log(len(p))
        kept = p if draft_token_ids is None else [p[i] for i in draft_token_ids.tolist()]
        divergence = 0.0
        for x, y in zip(kept, q, strict=True):
            divergence += x / sum(kept) * math.log(x / sum(kept) / y)
        rows.append((confidence, divergence, confidence * divergence))
    return torch.tensor(rows, dtype=torch.float64).T


def compute(target, draft, draft_token_ids=None, **kwargs):
    return criticality(target.__getitem__, draft.__getitem__, len(target), draft_token_ids, **kwargs)


def check(result, expected):
    for actual, want in zip((result.confidence, result.divergence, result.value), expected, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("chunk_size", [1, 5, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_a_naive_loop(chunk_size, dtype):
    target, draft = (3 * torch.randn(23, 17)).to(dtype), (2 * torch.randn(23, 17)).to(dtype)
    check(compute(target, draft, chunk_size=chunk_size), naive(target, draft))


def test_restricted_vocabulary_against_a_naive_loop():
    target, draft = 3 * torch.randn(23, 17), 2 * torch.randn(23, 6)
    ids = torch.tensor([0, 3, 4, 9, 11, 16])
    check(compute(target, draft, ids, chunk_size=4), naive(target, draft, ids))
    # The same columns in another order are another drafter's vocabulary, not the same one.
    shuffled = ids[[2, 0, 1, 5, 4, 3]]
    check(compute(target, draft, shuffled), naive(target, draft, shuffled))


def test_by_hand():
    # P = (1/2, 1/4, 1/8, 1/8): H = 7/4 ln 2, log|V| = 2 ln 2, C = 1/8. Q uniform: KL = 2 ln 2 - 7/4 ln 2 = ln 2 / 4.
    result = compute(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), torch.zeros(1, 4))
    assert result.confidence.item() == pytest.approx(1 / 8)
    assert result.divergence.item() == pytest.approx(math.log(2) / 4)
    assert result.value.item() == pytest.approx(math.log(2) / 32)


def test_restricted_by_hand():
    # Tokens 0 and 1 can be drafted: P renormalises to (2/3, 1/3), Q = (1/3, 2/3), KL = ln 2 / 3. C is that of all.
    draft = torch.tensor([[1.0, 2.0]]).log()
    result = compute(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), draft, torch.tensor([0, 1]))
    assert result.confidence.item() == pytest.approx(1 / 8)
    assert result.divergence.item() == pytest.approx(math.log(2) / 3)


def test_a_sure_and_an_unsure_target():
    target = torch.tensor([[100.0, 0.0, 0.0], [0.0, 0.0, 0.0], [5.0, 1.0, 0.0]])
    draft = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [5.0, 1.0, 0.0]])
    result = compute(target, draft)
    assert result.confidence[0].item() == pytest.approx(1) and result.confidence[1].item() == pytest.approx(
        0, abs=1e-6
    )
    # Sure and contradicted: ln 3. Unsure: disagreement does not count. Agreeing: 0.
    assert result.value.tolist() == pytest.approx([math.log(3), 0.0, 0.0], abs=1e-5)
    assert (result.value >= 0).all() and (result.confidence <= 1).all()


def test_extreme_logits_are_finite():
    target = torch.zeros(4, 6)
    draft = torch.zeros(4, 6)
    target[0, 1], draft[0, 2] = 3e4, 3e4  # sure of different tokens
    target[1, 1], draft[1, 1] = 1e30, 1e30
    target[2, 2:] = -math.inf  # tokens the target cannot say
    draft[3, 1:] = -math.inf  # tokens the drafter cannot say, though the target does
    result = compute(target, draft)
    for part in (result.confidence, result.divergence, result.value):
        assert part.isfinite().all()
    assert result.divergence[0] > 1000 and result.divergence[3] > 1000
    assert result.divergence[1].item() == 0
    # Two equally likely tokens out of six, against a uniform drafter.
    assert result.confidence[2].item() == pytest.approx(1 - math.log(2) / math.log(6))
    assert result.divergence[2].item() == pytest.approx(math.log(3))


def test_no_mass_on_the_draft_vocabulary_counts_as_no_divergence():
    target = torch.zeros(3, 5)
    target[0, 4] = 1e4
    target[1, :2] = -math.inf
    target[2, 4] = 8.0  # about a thousandth of the mass can be drafted: little, but not nothing
    ids = torch.tensor([0, 1])
    draft = torch.tensor([[3.0, 0.0]]).expand(3, 2)
    result = compute(target, draft, ids)
    assert result.divergence[:2].tolist() == [0.0, 0.0] and result.value[:2].tolist() == [0.0, 0.0]
    assert result.confidence[0].item() == pytest.approx(1)
    check(compute(target[2:], draft[2:], ids), naive(target[2:], draft[2:], ids))
    assert result.divergence[2] > 0.5


def test_logits_are_asked_for_in_chunks_without_gradient():
    target, draft = torch.randn(101, 9, requires_grad=True), torch.randn(101, 5, requires_grad=True)
    asked = {"target": [], "draft": []}

    def ask(name, logits):
        def callback(positions):
            asked[name].append(positions.tolist())
            chunk = logits[positions] * 1.0
            assert not chunk.requires_grad
            return chunk

        return callback

    ids = torch.arange(5)
    result = criticality(ask("target", target), ask("draft", draft), 101, ids, chunk_size=16)
    for chunks in asked.values():
        assert max(map(len, chunks)) == 16 and len(chunks) == 7
        assert sum(chunks, []) == list(range(101))
    check(result, naive(target, draft, ids))
    assert not result.value.requires_grad


def test_no_positions():
    result = criticality(torch.zeros(0, 4).__getitem__, torch.zeros(0, 4).__getitem__, 0, None)
    assert result.value.shape == result.confidence.shape == result.divergence.shape == (0,)


def test_bad_input():
    target, draft = torch.zeros(6, 4), torch.zeros(6, 4)
    with pytest.raises(ValueError, match="`chunk_size`"):
        compute(target, draft, chunk_size=0)
    with pytest.raises(ValueError, match="`num_positions`"):
        criticality(target.__getitem__, draft.__getitem__, -1, None)
    with pytest.raises(ValueError, match="`draft_logits` returned 4 columns, but `draft_token_ids` has 3"):
        compute(target, draft, torch.arange(3))
    with pytest.raises(ValueError, match="`draft_logits` returned 3 columns, but the target's vocabulary has 4"):
        compute(target, draft[:, :3])
    with pytest.raises(ValueError, match="`target_logits` was asked for 6 positions"):
        criticality(lambda idx: target[idx[:-1]], draft.__getitem__, 6, None)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        compute(target[:, :1], draft[:, :1])
    for name in ("target", "draft"):
        broken = {"target": target.clone(), "draft": draft.clone()}
        broken[name][4, 1] = math.nan
        with pytest.raises(ValueError, match=r"at 1 of 6 positions \(first: 4\)"):
            compute(broken["target"], broken["draft"])
    # NaN is reported even where nothing of the target's mass can be drafted.
    target[2, 3] = 1e4
    with pytest.raises(ValueError, match=r"first: 2\)"):
        compute(target, torch.where(torch.arange(6)[:, None] == 2, math.nan, draft[:, :2]), torch.arange(2))


@pytest.mark.parametrize("window_size", [1, 3, 7, 8, 20])
def test_window_values_against_a_naive_loop(window_size):
    values = torch.rand(3, 7 if window_size == 8 else 13)
    values[1, 2] = 1e6  # what follows a huge value keeps its digits
    expected = torch.zeros(values.shape, dtype=torch.float64)
    for row in range(values.shape[0]):
        for n in range(values.shape[1]):
            if n + window_size <= values.shape[1]:
                total = 0.0
                for t in range(n, n + window_size):
                    total += values[row, t].item()
                expected[row, n] = total / window_size
    actual = window_values(values, window_size)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-9)


def test_window_values_by_hand():
    assert window_values(torch.tensor([[0.0, 1.0, 2.0, 6.0]]), 2).tolist() == [[0.5, 1.5, 4.0, 0.0]]


def test_window_values_bad_input():
    with pytest.raises(ValueError, match="`window_size`"):
        window_values(torch.zeros(1, 4), 0)
    with pytest.raises(ValueError, match="shape"):
        window_values(torch.zeros(4), 2)
    for bad in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match="finite and not negative"):
            window_values(torch.tensor([[0.0, bad]]), 1)
