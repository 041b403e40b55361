# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The window loop by itself: batches, limits, statistics."""

import math

import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper

from ppow_hf import WindowConfig
from ppow_hf.generation import DraftSampler, draft_window, make_policy
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

PROMPTS = torch.tensor([[5, 17, 3, 60, 9], [8, 2, 33, 40, 71], [11, 12, 13, 14, 15]])


def begin(drafter, target, prompts):
    features = None
    if drafter.feature_layer_ids:
        with torch.no_grad():
            states = target(prompts[:, :-1], output_hidden_states=True).hidden_states
        features = torch.cat([states[k] for k in drafter.feature_layer_ids], dim=-1)
    drafter.bind_target(target)
    state = drafter.new_state(len(prompts))
    return state, drafter.extend(state, prompts, features)


def draft(drafter, target, prompts, windows, size, **kwargs):
    state, logits = begin(drafter, target, prompts)
    kwargs.setdefault("sampler", DraftSampler(drafter.draft_token_ids, 96))
    policies = [make_policy(window) for window in windows]
    sizes = [min(size, policy.target_size()) for policy in policies]
    return draft_window(drafter, state, logits, policies=policies, sizes=sizes, context_ids=prompts, **kwargs)


@pytest.fixture(params=["eagle3", "eagle3_reduced", "causal"])
def pair(request):
    target = tiny_target("llama")
    if request.param == "causal":
        return target, tiny_causal_drafter(target)
    return target, tiny_eagle3(target, draft_vocab_size=48 if request.param == "eagle3_reduced" else None)


def test_rows_of_a_batch_are_drafted_as_if_alone(pair):
    target, drafter = pair
    window = WindowConfig("fixed", size=4)
    batch = draft(drafter, target, PROMPTS, [window] * 3, 4)
    assert batch.token_ids.shape == (3, 4) and batch.lengths == [4, 4, 4] and batch.forwards == 4
    for row in range(3):
        alone = draft(drafter, target, PROMPTS[row : row + 1], [window], 4)
        assert alone.token_ids[0].tolist() == batch.token_ids[row].tolist() == batch.tokens[row]
        assert alone.predicted[0] == pytest.approx(batch.predicted[row], abs=1e-4)


def test_rows_stop_on_their_own(pair):
    target, drafter = pair
    windows = [WindowConfig("fixed", size=n) for n in (1, 4, 2)]
    batch = draft(drafter, target, PROMPTS, windows, 3)
    assert batch.lengths == [1, 3, 2]
    assert [len(tokens) for tokens in batch.tokens] == [1, 3, 2]
    assert batch.token_ids.shape == (3, 3) and batch.forwards == 3


def test_without_records_nothing_is_read_back(pair):
    target, drafter = pair
    windows = [WindowConfig("fixed", size=3)] * 3
    recorded = draft(drafter, target, PROMPTS, windows, 3)
    bare = draft(drafter, target, PROMPTS, windows, 3, record=False)
    assert torch.equal(bare.token_ids, recorded.token_ids) and bare.lengths == recorded.lengths
    assert bare.tokens == [[], [], []] and bare.predicted == [[], [], []]


def test_end_of_text_ends_the_window(pair):
    target, drafter = pair
    window = [WindowConfig("fixed", size=4)]
    free = draft(drafter, target, PROMPTS[:1], window, 4).tokens[0]
    ended = draft(drafter, target, PROMPTS[:1], window, 4, eos_token_ids=frozenset([free[1]]))
    assert ended.tokens[0] == free[: free.index(free[1]) + 1] and ended.stop == ["eos"]


def test_columns_and_scores_belong_to_the_tokens(pair):
    target, drafter = pair
    sampler = DraftSampler(
        drafter.draft_token_ids,
        96,
        LogitsProcessorList([TemperatureLogitsWarper(0.5)]),
        do_sample=True,
        generator=torch.Generator().manual_seed(0),
    )
    window = draft(drafter, target, PROMPTS, [WindowConfig("fixed", size=3)] * 3, 3, sampler=sampler)
    logits = sampler.candidate_logits(window.scores)
    assert logits.shape == (3, 3, 96)
    for position, scores in enumerate(window.scores):
        chosen = scores.gather(1, window.columns[:, position : position + 1])
        declared = logits[:, position].gather(1, window.token_ids[:, position : position + 1])
        assert torch.equal(chosen, declared) and chosen.isfinite().all()


def test_statistics_are_those_of_the_distribution():
    sampler = DraftSampler(None, 4)
    probs = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
    column, token, stats = sampler.draw(probs.log())
    assert column.tolist() == token.tolist() == [0]
    entropy = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    assert stats[0].tolist() == pytest.approx([0.5, 0.3, entropy, 0.0, 0.5])


def test_draws_follow_the_distribution():
    sampler = DraftSampler(torch.tensor([7, 3, 9]), 12, do_sample=True, generator=torch.Generator().manual_seed(0))
    probs = torch.tensor([0.2, 0.5, 0.3])
    _, tokens, _ = sampler.draw(probs.log().expand(6000, -1))
    counts = torch.bincount(tokens, minlength=12) / 6000
    assert counts[[7, 3, 9]].tolist() == pytest.approx(probs.tolist(), abs=0.025)


def test_processors_decide_the_width():
    ids = torch.tensor([1, 4, 7])
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    context = torch.tensor([[7, 7]])
    narrow = DraftSampler(ids, 10, LogitsProcessorList([TemperatureLogitsWarper(2.0)]))
    assert narrow.scores(logits, context).tolist() == [[0.5, 1.0, 1.5]]
    wide = DraftSampler(ids, 10, LogitsProcessorList([RepetitionPenaltyLogitsProcessor(2.0)]))
    scores = wide.scores(logits, context)
    assert scores.shape == (1, 10) and scores[0, [1, 4, 7]].tolist() == [1.0, 2.0, 1.5]
    assert scores[0, [0, 2, 3, 5, 6, 8, 9]].tolist() == [-math.inf] * 7
    # One way or the other, the declared distribution covers the target's vocabulary.
    for sampler, processed in ((narrow, narrow.scores(logits, context)), (wide, scores)):
        full = sampler.candidate_logits([processed])
        assert full.shape == (1, 1, 10) and full.isfinite().sum() == 3


def test_policies_must_match_the_rows(pair):
    target, drafter = pair
    with pytest.raises(ValueError, match=r"one entry per row \(3\), got 1"):
        draft(drafter, target, PROMPTS, [WindowConfig("fixed")], 3)
