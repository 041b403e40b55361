# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch

from ppow_hf.evaluation.replay import accepted_from_everywhere, replay, replay_texts
from tests.testing_utils import tiny_eagle3, tiny_target


@pytest.fixture(scope="module")
def models():
    # Few tokens and a narrow draft vocabulary's worth of chances: an untrained drafter must be right now and then.
    target = tiny_target(vocab_size=12)
    drafter = tiny_eagle3(target)
    drafter.bind_target(target)
    return target, drafter


def greedy_text(target, prompt, new_tokens):
    ids = torch.tensor([prompt])
    output = target.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
    return output[0].tolist()


@pytest.mark.parametrize("window_size", [1, 3, 5])
def test_replay_is_what_decoding_does(models, window_size):
    target, drafter = models
    seen = set()
    for seed in range(8):
        prompt = torch.randint(2, 12, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
        text = greedy_text(target, prompt, 40)
        [replayed] = replay_texts(target, drafter, [(text, len(prompt))], window_size)
        ids = torch.tensor([prompt])
        output = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=drafter,
            window=f"fixed:{window_size}",
            max_new_tokens=40,
            do_sample=False,
        )
        assert output[0].tolist() == text
        trace = drafter.last_trace
        assert replayed.accepted == [cycle.accepted for cycle in trace.cycles]
        assert replayed.acceptance_length == pytest.approx(trace.acceptance_length)
        seen.update(replayed.accepted)
    assert len(seen) > 1  # windows of several outcomes, or the comparison would say little


def test_every_position_against_one_window_at_a_time(models):
    target, drafter = models
    text = greedy_text(target, [3, 4, 5], 20)
    ids = torch.tensor([text])
    accepted = accepted_from_everywhere(target, drafter, ids, 4, 4).tolist()
    with torch.no_grad():
        hidden = target(ids, output_hidden_states=True).hidden_states
    features = torch.cat([hidden[k] for k in drafter.feature_layer_ids], dim=-1)
    for start in range(4, len(text)):
        state = drafter.new_state()
        logits = drafter.extend(state, ids[:, :start], features[:, : start - 1])
        count = 0
        while count < 4 and start + count < len(text) and int(logits.argmax()) == text[start + count]:
            count += 1
            logits = drafter.step(state, logits.argmax(-1))
        assert accepted[start - 4] == count


def test_walk_by_hand():
    # From position 0 two are accepted and one comes from the target, from 3 none, from 4 one (and the text ends).
    walked = replay([2, 9, 9, 0, 4, 4], window_size=4)
    assert walked.accepted == [2, 0, 1]
    assert (walked.committed, walked.verifications, walked.acceptance_length) == (6, 3, 2.0)


def test_nothing_to_replay(models):
    target, drafter = models
    [empty] = replay_texts(target, drafter, [([3, 4, 5, 6], 3)], 4)
    assert empty.verifications == 0 and empty.acceptance_length is None
    with pytest.raises(ValueError, match="`window_size`"):
        replay_texts(target, drafter, [], 0)
