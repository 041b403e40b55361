# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Windows drawn for sampled texts against the law of rejection sampling, exact chances and real decoding."""

import statistics

import pytest
import torch

from ppow_hf.evaluation.replay import acceptance_from_everywhere
from ppow_hf.evaluation.sampled_windows import record_sampled_windows
from ppow_hf.evaluation.simulation import simulate
from ppow_hf.generation import CostModel, WindowConfig
from ppow_hf.generation.stored_costs import cost_model_key
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

COSTS = CostModel(gamma=0.05, verify_curve=[1.0, 1.02, 1.05, 1.1, 1.2, 1.35, 1.5], overhead=0.03)
PROMPT = [3, 4, 5, 7]
VOCAB_SIZE = 12


@pytest.fixture(scope="module", params=["eagle3", "causal"])
def models(request):
    target = tiny_target(vocab_size=VOCAB_SIZE)
    if request.param == "eagle3":
        drafter = tiny_eagle3(target, draft_vocab_size=9)
    else:
        drafter = tiny_causal_drafter(target, num_layers=3)
    drafter.bind_target(target)
    drafter.__dict__["_cost_models"] = {cost_model_key(target, drafter): COSTS}
    return target, drafter


def sampled(target, new_tokens, temperature, count=1, seed=0):
    torch.manual_seed(seed)
    ids = torch.tensor([PROMPT])
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": temperature, "eos_token_id": None}
    return target.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, num_return_sequences=count, **options
    )


def draws(models, text, first, width, temperature, count):
    generator = torch.Generator().manual_seed(1)
    return [
        record_sampled_windows(*models, text, first, width, temperature, generator=generator) for _ in range(count)
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_are_accepted_as_often_as_they_would_be(models, temperature):
    text = sampled(models[0], 14, temperature)
    first, width, count = len(PROMPT) + 1, 4, 100
    chances = acceptance_from_everywhere(*models, text, first, width, temperature).cumprod(-1)
    accepted = torch.tensor([windows.accepted for windows in draws(models, text, first, width, temperature, count)])
    shares = torch.stack([(accepted > k).float().mean(0) for k in range(width)], dim=-1)
    deviation = (chances * (1 - chances) / count).sqrt()
    assert ((shares - chances).abs() <= 4.5 * deviation + 1e-4).all()
    assert ((chances > 0.05) & (chances < 0.95)).sum() > 2  # or the comparison would say little


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_tokens_follow_the_drafters_law_over_all_texts(models, temperature):
    """Each text in proportion to its probability, the draft tokens together are what the drafter draws."""
    target, drafter = models
    text = sampled(target, 2, temperature)
    place, count = text.shape[1] - 1, 60
    p = (target(text[:, :-1]).logits[0, -1] / temperature).softmax(-1)
    found = torch.zeros(VOCAB_SIZE)
    for token in range(VOCAB_SIZE):
        other = text.clone()
        other[0, place] = token
        for windows in draws(models, other, place, 1, temperature, count):
            drawn = int(windows.stats[0, 0, 3])
            assert (drawn == token) or not windows.accepted[0]
            found[drawn] += p[token] / count
    state, logits = drafter.begin_windows(text, features_of(models, text), torch.tensor([[place]]))
    q = torch.zeros(VOCAB_SIZE)
    ids = torch.arange(VOCAB_SIZE) if drafter.draft_token_ids is None else drafter.draft_token_ids
    q[ids] = (logits[0, 0] / temperature).softmax(-1)
    assert (found - q).abs().max() < 4.5 * float((p.square() / count).sum().sqrt())
    stats = windows.stats[0, 0]
    assert stats[4] == pytest.approx(float(q[int(stats[3])]), rel=1e-4)
    assert stats[:2].tolist() == pytest.approx(q.topk(2).values.tolist(), rel=1e-4)


def features_of(models, text):
    from ppow_hf.rl.target_prefix import target_prefix

    target, drafter = models
    return target_prefix(target, text, torch.ones_like(text), drafter.feature_layer_ids, keep_cache=False).features


@pytest.mark.parametrize(
    "window",
    [
        WindowConfig(policy="cost_aware", max_size=6),
        WindowConfig(policy="confidence", threshold=0.3, max_size=6),
        WindowConfig(policy="fixed", size=3),
    ],
    ids=lambda window: window.policy,
)
def test_walks_are_those_of_decoding_on_the_average(models, window):
    target, drafter = models
    texts, new_tokens = 50, 20
    ids = torch.tensor([PROMPT])
    real, simulated = [], []
    for seed in range(texts):
        torch.manual_seed(seed)
        target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=True,
            top_k=0,
            eos_token_id=None,
            assistant_model=drafter,
            window=window,
        )
        cycles = drafter.last_trace.cycles
        real.append((len(cycles), sum(cycle.drafted for cycle in cycles), sum(cycle.accepted for cycle in cycles)))
    generator = torch.Generator().manual_seed(2)
    for text in sampled(target, new_tokens, 1.0, texts, seed=texts):
        windows = record_sampled_windows(target, drafter, text[None], len(PROMPT) + 1, 6, generator=generator)
        walk = simulate(windows, window, COSTS, new_tokens - 1, sampling=True)
        assert walk.committed == new_tokens - 1
        simulated.append((walk.verifications, walk.drafted, walk.accepted))
    for ours, theirs in zip(zip(*simulated, strict=True), zip(*real, strict=True), strict=True):
        spread = statistics.variance(ours) / texts + statistics.variance(theirs) / texts
        assert abs(statistics.mean(ours) - statistics.mean(theirs)) < 4 * spread**0.5
        assert statistics.variance(theirs) > 0
