# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import math

import numpy as np
import pytest
import torch

from ppow_hf.generation import DraftSampler, draft_tree
from ppow_hf.generation.host_rows import favourite, highest, on_host, rows_of, summarise
from ppow_hf.generation.lookup_graft import LookedUp


def rows(width: int) -> list[np.ndarray]:
    generator = np.random.default_rng(width)
    found = [3.0 * generator.standard_normal(width, dtype=np.float32) for _ in range(6)]
    found[1] = found[1].round()  # many of them equal
    found[2][:] = 0.5
    found[3][max(1, width // 3) :] = -np.inf
    found[4][1:] = -np.inf
    found[5][-1] = 300.0
    return found


@pytest.mark.parametrize("width", [1, 2, 7, 40, 96, 1000, 1024, 10240])
def test_the_highest_entries_are_those_of_a_stable_sort(width):
    for row in rows(width):
        before = row.copy()
        ranked = sorted(range(width), key=lambda place: -row[place])
        assert favourite(row) == ranked[0]
        for count in range(1, min(width, 5) + 1):
            assert highest(row, count) == ranked[:count]
        assert np.array_equal(row, before)


@pytest.mark.parametrize("width", [1, 5, 96, 10240])
def test_a_summary_is_what_the_distribution_says_in_double_precision(width):
    for row in rows(width):
        before = row.copy()
        exact = torch.from_numpy(row).double().log_softmax(-1)
        probs = exact.exp()
        count = min(width, 4)
        said = summarise(row, count)
        assert said.probabilities == pytest.approx(probs[said.columns].tolist(), rel=1e-4, abs=1e-30)
        assert said.entropy == pytest.approx(-(probs * exact.clamp_min(-1e300)).sum().item(), rel=1e-4, abs=2e-5)
        assert np.allclose(said.weights / said.total, probs.numpy(), rtol=1e-4, atol=1e-12)
        assert np.array_equal(row, before)


def test_a_row_of_nothing_but_nan_is_told():
    said = summarise(np.full(64, np.nan, dtype=np.float32), 2)
    assert all(math.isnan(value) for value in (*said.probabilities, said.entropy, said.total))


def test_what_is_read_here():
    assert all(on_host(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    assert not on_host(torch.zeros(2, dtype=torch.float64)) and not on_host(torch.zeros(2, device="meta"))
    logits = torch.randn(2, 5, requires_grad=True)
    assert rows_of(logits).ctypes.data == logits.data_ptr()
    narrow = logits.detach().bfloat16()
    assert np.array_equal(rows_of(narrow), narrow.float().numpy())


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "looked_up",
    [(), (None, LookedUp(15, 0.5, 7), None), (LookedUp(7, 0.5, 3), LookedUp(9, 0.5, 4), LookedUp(0, 0.5, None))],
)
@pytest.mark.parametrize("branching", [1, 2, 4])
def test_choices_are_those_of_the_general_way(branching, looked_up, mapped, monkeypatch):
    sampler = DraftSampler(torch.arange(96) * 2 + 1 if mapped else None, vocab_size=200)
    scores = 4.0 * torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    scores[2, 1:] = -torch.inf
    mine = draft_tree._choices(sampler, scores, branching, looked_up)
    monkeypatch.setattr(draft_tree, "on_host", lambda logits: False)
    general = draft_tree._choices(sampler, scores, branching, looked_up)
    for one, other in zip(mine, general, strict=True):
        assert one.tokens == other.tokens
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-4, abs=1e-12)
        assert one.looked_up == pytest.approx(other.looked_up, rel=1e-4)
        numbers = [(said.stats.top1, said.stats.top2, said.stats.entropy) for said in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4, abs=1e-5)
