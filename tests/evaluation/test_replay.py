# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
from itertools import product

import pytest
import torch

from ppow_hf.evaluation.replay import (
    acceptance_from_everywhere,
    accepted_from_everywhere,
    expected_replay,
    replay,
    replay_texts,
)
from tests.drafters.reference_eagle3 import randomize_
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
        # Beside longer windows, of which these are the beginnings.
        [replayed] = replay_texts(target, {"it": drafter}, [(text, len(prompt))], [window_size, 7])["it"][window_size]
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
    for temperature in (0.0, 1.0):
        [empty] = replay_texts(target, {"it": drafter}, [([3, 4, 5, 6], 3)], [4], temperature)["it"][4]
        assert empty.verifications == 0 and empty.acceptance_length is None
    for sizes in ([0], []):
        with pytest.raises(ValueError, match="`window_sizes`"):
            replay_texts(target, {"it": drafter}, [], sizes)
    with pytest.raises(ValueError, match="`temperature`"):
        replay_texts(target, {"it": drafter}, [], [1], temperature=-1.0)
    with pytest.raises(ValueError, match="prompts of at least one token"):
        replay_texts(target, {"it": drafter}, [([3, 4], 0)], [1])


def test_a_drafter_is_replayed_alike_alone_and_beside_others(models):
    target, drafter = models
    others = {"other": tiny_eagle3(target, seed=3), "layers": tiny_eagle3(target, seed=4, aux_layer_ids=[1])}
    texts = [(greedy_text(target, [3, 4, 5], 20), 3), (greedy_text(target, [7, 2], 20), 2)]
    for temperature in (0.0, 0.8):
        beside = replay_texts(target, {**others, "it": drafter}, texts, [2, 4], temperature)
        assert beside["it"][2] == replay_texts(target, {"it": drafter}, texts, [2], temperature)["it"][2]
        assert (
            beside["layers"]
            == replay_texts(target, {"layers": others["layers"]}, texts, [2, 4], temperature)["layers"]
        )


@pytest.mark.parametrize("draft_vocab_size", [None, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chances_against_one_window_at_a_time(models, temperature, draft_vocab_size):
    target, _ = models
    drafter = randomize_(tiny_eagle3(target, draft_vocab_size=draft_vocab_size))
    drafter.bind_target(target)
    text = torch.randint(2, 12, (14,), generator=torch.Generator().manual_seed(3))[None]
    chances = acceptance_from_everywhere(target, drafter, text, 4, 3, temperature)
    with torch.no_grad():
        output = target(text, output_hidden_states=True)
    features = torch.cat([output.hidden_states[k] for k in drafter.feature_layer_ids], dim=-1)
    ids = list(range(12)) if drafter.draft_token_ids is None else drafter.draft_token_ids.tolist()
    for start in range(4, text.shape[1]):
        state = drafter.new_state()
        logits = drafter.extend(state, text[:, :start], features[:, : start - 1])
        for k in range(3):
            if start + k >= text.shape[1]:
                assert chances[start - 4, k] == 0
                continue
            token = int(text[0, start + k])
            p = (output.logits[0, start + k - 1].double() / temperature).softmax(-1)[token]
            q = (logits[0].double() / temperature).softmax(-1)[ids.index(token)] if token in ids else p * 0
            assert chances[start - 4, k].item() == pytest.approx(min(1.0, float(q / p)), abs=1e-5)
            logits = drafter.step(state, text[0, start + k][None])


def test_expected_cycles_against_every_outcome():
    """All ways in which the tokens of a text can be drafted and accepted or not, walked one by one."""
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(5, 2, generator=generator, dtype=torch.float64).tolist()
    expected = 0.0
    for outcome in product([0, 1, 2], repeat=5):  # accepted tokens of the window from every position
        weight = 1.0
        for row, count in zip(chances, outcome, strict=True):
            weight *= [1 - row[0], row[0] * (1 - row[1]), row[0] * row[1]][count]
        expected += weight * replay(outcome, 2).verifications
    replayed = expected_replay(chances, 2)
    assert replayed.verifications == pytest.approx(expected) and replayed.committed == 5
    # Certain outcomes are those of the greedy walk.
    assert expected_replay([[1.0, 1.0]] * 7, 2).verifications == replay([2] * 7, 2).verifications == 3
    assert expected_replay([[0.0, 0.0]] * 7, 2).verifications == 7


def test_expected_cycles_are_those_of_sampled_decoding_in_the_mean(models):
    """
    Given the text, the cycles that decoding took differ from their expectation by chance alone: over many runs the
    differences have the mean 0.
    """
    target, _ = models
    drafter = randomize_(tiny_eagle3(target, draft_vocab_size=9))
    drafter.bind_target(target)
    ids = torch.tensor([[3, 4, 5]])
    torch.manual_seed(0)
    differences, lengths = [], set()
    for _ in range(150):
        output = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=drafter,
            window="fixed:3",
            max_new_tokens=16,
            do_sample=True,
            temperature=0.9,
            top_k=0,
        )
        [replayed] = replay_texts(target, {"it": drafter}, [(output[0].tolist(), 3)], [3], 0.9)["it"][3]
        trace = drafter.last_trace
        assert trace.verifications == len(trace.cycles)
        differences.append(trace.verifications - replayed.verifications)
        lengths.add(trace.verifications)
    assert len(lengths) > 3
    values = torch.tensor(differences, dtype=torch.float64)
    assert values.std() > 0.3  # chance is at work
    assert abs(values.mean() / (values.std() / len(values) ** 0.5)) < 3
