# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Sampling is lossless: the distribution of whole speculative texts equals the exact one of the target, by a statistical
test over all possible texts of a tiny model; and the same test does detect known ways of getting it wrong.
"""

import itertools

import numpy as np
import pytest
import torch

from ppow_hf import CausalLMDrafter, Eagle3Drafter, WindowConfig
from ppow_hf.generation import DraftSampler, PPOWCandidateGenerator
from tests.testing_utils import tiny_target

VOCABULARY, LENGTH, SAMPLES = 4, 4, 1000
PROMPT = torch.tensor([[1, 3]])
TINY = {"vocab_size": VOCABULARY, "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": None}


def tiny(seed, **overrides):
    target = tiny_target("llama", seed=seed, **{**TINY, **overrides})
    target.generation_config.pad_token_id = 0
    # A little sharper than a random model is, so that a skewed sampler has something to skew.
    target.lm_head.weight.data.mul_(1.5)
    return target


@torch.no_grad()
def exact_distribution(target, temperature=1.0, top_k=None, repetition_penalty=1.0, top_p=1.0):
    """Probability of every text of `LENGTH` tokens, by running the target over all of them."""
    texts = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
    logits = target(torch.cat([PROMPT.expand(len(texts), -1), texts], dim=1)).logits[:, PROMPT.shape[1] - 1 : -1]
    logits = logits.double()
    for place in range(LENGTH):
        before = torch.cat([PROMPT.expand(len(texts), -1), texts[:, :place]], dim=1)
        for row, tokens in zip(logits[:, place], before.tolist(), strict=True):
            for token in set(tokens):
                row[token] *= repetition_penalty if row[token] < 0 else 1 / repetition_penalty
    logits = logits / temperature
    if top_k is not None:
        lowest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p < 1.0:
        probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        # The likeliest tokens whose sum reaches `top_p`: those before which it had not been reached.
        left_out = (probs.cumsum(dim=-1) - probs >= top_p).gather(-1, order.argsort(dim=-1))
        logits = logits.masked_fill(left_out, -torch.inf)
    steps = logits.softmax(dim=-1).gather(-1, texts[..., None])[..., 0]
    return steps.prod(dim=-1).numpy()


def deviation(counts, exact):
    """How far, in standard deviations of an exact sampler, the observed frequencies are from the exact ones."""
    total = counts.sum()
    distance = 0.5 * np.abs(counts / total - exact).sum()
    reference = np.random.default_rng(0).multinomial(total, exact / exact.sum(), size=400) / total
    distances = 0.5 * np.abs(reference - exact).sum(axis=1)
    return (distance - distances.mean()) / distances.std()


def sampled_deviation(target, drafter, window, samples=SAMPLES, **options):
    exact = exact_distribution(target, **options)
    assert abs(exact.sum() - 1.0) < 1e-6
    weights = VOCABULARY ** np.arange(LENGTH - 1, -1, -1)
    counts = np.zeros(len(exact))
    drafted = accepted = 0
    torch.manual_seed(0)
    options = {"top_k": 0, **options}
    for _ in range(samples):
        output = target.generate(
            PROMPT, assistant_model=drafter, window=window, do_sample=True, max_new_tokens=LENGTH, **options
        )
        counts[int((output[0, PROMPT.shape[1] :].numpy() * weights).sum())] += 1
        drafted += drafter.last_trace.drafted
        accepted += drafter.last_trace.accepted
    assert 0.05 < accepted / drafted < 0.95  # both outcomes occur, else the test is empty
    return deviation(counts, exact)


def other_drafter(seed=5):
    """A drafter that disagrees with the target: a causal LM of its own."""
    return CausalLMDrafter.from_causal_lm(tiny(seed))


def reduced_drafter(target):
    return Eagle3Drafter.from_target(target, draft_token_ids=torch.tensor([0, 1, 3]), aux_layer_ids=[0], seed=1)


@pytest.mark.parametrize("policy", ["fixed", "heuristic", "confidence", "divergence", "cost_aware"])
def test_sampling_is_exact(policy, store_costs):
    target, drafter = tiny(0), other_drafter()
    # Costs at which the cost-aware window sometimes stops before, and sometimes after, every position.
    store_costs(target, drafter, gamma=0.1, slope=0.12)
    window = WindowConfig(policy=policy, size=3, min_size=0, threshold=0.5)
    assert sampled_deviation(target, drafter, window) < 4


@pytest.mark.parametrize(
    "processors",
    [{"temperature": 0.7, "top_k": 3}, {"temperature": 1.3, "top_p": 0.8}, {"repetition_penalty": 4.0}],
    ids=lambda processors: "-".join(processors),
)
def test_sampling_with_processors_and_a_reduced_vocabulary_is_exact(processors):
    target = tiny(0)
    window = WindowConfig(policy="confidence", min_size=0, threshold=0.5)
    assert sampled_deviation(target, reduced_drafter(target), window, **processors) < 4


def test_the_test_detects_argmax_drafts(monkeypatch):
    """Drafts taken at the maximum but declared as drawn from the softmax."""
    draw = DraftSampler.draw

    def draw_maximum(self, scores):
        self.do_sample = False
        try:
            return draw(self, scores)
        finally:
            self.do_sample = True

    monkeypatch.setattr(DraftSampler, "draw", draw_maximum)
    assert sampled_deviation(tiny(0), other_drafter(), "fixed:3", samples=500) > 5


def test_the_test_detects_dropped_tokens(monkeypatch):
    """A drafted token left out because the drafter itself found it improbable."""
    get_candidates = PPOWCandidateGenerator.get_candidates

    def drop_improbable(self, input_ids, **kwargs):
        ids, logits = get_candidates(self, input_ids, **kwargs)
        if logits is None:
            return ids, logits
        tokens = ids[0, input_ids.shape[1] :]
        q = logits[0].softmax(-1).gather(-1, tokens[:, None])[:, 0]
        keep = int((q < 0.5).cumsum(0).eq(0).sum())
        cycle = self._cycle
        cycle.drafted, cycle.tokens = keep, cycle.tokens[:keep]
        return ids[:, : input_ids.shape[1] + keep], logits[:, :keep] if keep else None

    monkeypatch.setattr(PPOWCandidateGenerator, "get_candidates", drop_improbable)
    assert sampled_deviation(tiny(0), other_drafter(), "fixed:3", samples=500) > 5


def test_the_test_detects_unprocessed_draft_logits(monkeypatch):
    """Drafts drawn after temperature, declared with the logits before it."""
    target, drafter = tiny(0), other_drafter()
    scores = DraftSampler.scores
    raw = {}

    def remember(self, logits, context_ids):
        processed = scores(self, logits, context_ids)
        raw[id(processed)] = (logits.float(), processed)
        return processed

    candidate_logits = DraftSampler.candidate_logits
    monkeypatch.setattr(DraftSampler, "scores", remember)
    monkeypatch.setattr(
        DraftSampler, "candidate_logits", lambda self, s: candidate_logits(self, [raw[id(x)][0] for x in s])
    )
    assert sampled_deviation(target, drafter, "fixed:3", temperature=2.5) > 5


def test_same_seed_same_text(store_costs):
    target = tiny_target("llama")
    drafter = CausalLMDrafter.from_target(target, num_layers=3)
    store_costs(target, drafter)
    prompt = torch.tensor([[5, 6, 7]])
    texts = []
    for _ in range(2):
        torch.manual_seed(7)
        output = target.generate(prompt, assistant_model=drafter, do_sample=True, max_new_tokens=30)
        texts.append((output.tolist(), [cycle.predicted for cycle in drafter.last_trace.cycles]))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.6},
        {"min_p": 0.1},
        {"repetition_penalty": 1.4},
        {"typical_p": 0.7},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 8, "eos_token_id": [3, 4, 5]},
        {"suppress_tokens": list(range(40))},
    ],
    ids=lambda options: next(iter(options)),
)
def test_declared_logits_are_those_drawn_from(options):
    """Whatever the processors: a draft token has probability in the distribution declared for it."""
    target = tiny_target("llama")
    drafter = Eagle3Drafter.from_target(target, draft_token_ids=torch.arange(0, 96, 2), seed=0)
    seen = []
    make = type(drafter).make_candidate_generator

    def spy(target, **kwargs):
        generator = make(drafter, target, **kwargs)
        get_candidates = generator.get_candidates

        def check(input_ids, **kwargs):
            ids, logits = get_candidates(input_ids, **kwargs)
            if logits is not None:
                tokens = ids[0, input_ids.shape[1] :]
                assert logits.shape == (1, len(tokens), 96)
                q = logits[0].softmax(-1).gather(-1, tokens[:, None])
                assert (q > 0).all() and (tokens % 2 == 0).all()
                seen.append(len(tokens))
            return ids, logits

        generator.get_candidates = check
        return generator

    drafter.make_candidate_generator = spy
    torch.manual_seed(0)
    output = target.generate(
        torch.tensor([[5, 6, 7]]),
        assistant_model=drafter,
        window="fixed:4",
        do_sample=True,
        max_new_tokens=24,
        **options,
    )
    assert output.shape[1] > 8 and sum(seen) > 0
