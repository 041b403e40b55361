# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Sampling with trees is lossless: whole texts against the exact distribution of a tiny target, one verification against
exact probabilities, and the same tests do detect known ways of getting it wrong.
"""

import inspect
import itertools
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import SuppressTokensAtBeginLogitsProcessor

from ppow_hf import Eagle3Drafter, WindowConfig
from ppow_hf.generation import draft_tree, tree_decoding, tree_verification
from ppow_hf.generation.draft_tree import TEXT, DraftNode, DraftTree, Expansion
from ppow_hf.generation.draws import draw_in_turn
from ppow_hf.generation.tree_config import TreeConfig
from ppow_hf.generation.tree_verification import TreeVerifier
from ppow_hf.generation.window_loop import DraftSampler
from tests.generation.test_sampling import (
    VOCABULARY,
    deviation,
    other_drafter,
    reduced_drafter,
    sampled_deviation,
    tiny,
)
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

BROAD = WindowConfig(policy="fixed", tree=TreeConfig(max_nodes=8, max_depth=3, branching=3))
NARROW = WindowConfig(policy="fixed", tree=TreeConfig(max_nodes=3, max_depth=3, branching=1))
COST_AWARE = WindowConfig(policy="cost_aware", min_size=0, tree=TreeConfig(branching=3))


@pytest.mark.parametrize("window", [BROAD, NARROW, COST_AWARE], ids=["broad", "narrow", "cost_aware"])
def test_sampling_is_exact(window, store_costs):
    target, drafter = tiny(0), other_drafter()
    # Costs at which the tree sometimes has one node, sometimes many.
    store_costs(target, drafter, gamma=0.1, slope=0.08)
    assert sampled_deviation(target, drafter, window) < 4


def test_sampling_with_processors_and_a_reduced_vocabulary_is_exact():
    target = tiny(0)
    assert sampled_deviation(target, reduced_drafter(target), BROAD, temperature=0.7, top_k=3) < 4


def sharper():
    """A target whose texts a penalty changes a good deal."""
    target = tiny(2)
    target.lm_head.weight.data.mul_(4.0)
    return target


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 4.0}, {"top_p": 0.8, "repetition_penalty": 4.0}], ids=["penalty", "top_p"]
)
@pytest.mark.parametrize("proposals", ["drafter", "mixed"])
def test_sampling_behind_the_paths_own_penalties_is_exact(proposals, options, store_costs):
    """What is penalised, and what of it is left, differs from path to path of one tree."""
    target, drafter = sharper(), other_drafter()
    store_costs(target, drafter, gamma=0.1, slope=0.06)
    window = replace(BROAD, proposals=proposals)
    assert sampled_deviation(target, drafter, window, samples=600, **options) < 4


def forbidding_deviation(samples=400):
    """Of the first two tokens, where a processor that looks at the text forbids two tokens at the second place."""
    target, drafter, prompt, forbidden = tiny(0), other_drafter(), torch.tensor([[1, 3]]), [0, 2]
    texts = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=2)))
    with torch.no_grad():
        logits = target(torch.cat([prompt.expand(len(texts), -1), texts], dim=1)).logits[:, 1:-1].double()
    logits[:, 1, forbidden] = -torch.inf
    exact = logits.softmax(dim=-1).gather(-1, texts[..., None])[..., 0].prod(dim=-1).numpy()
    counts = np.zeros(len(texts))
    torch.manual_seed(0)
    for _ in range(samples):
        output = target.generate(
            prompt,
            assistant_model=drafter,
            window=BROAD,
            do_sample=True,
            top_k=0,
            max_new_tokens=4,
            logits_processor=[SuppressTokensAtBeginLogitsProcessor(forbidden, begin_index=3)],
        )
        counts[output[0, 2] * VOCABULARY + output[0, 3]] += 1
    assert counts.reshape(VOCABULARY, -1)[:, forbidden].sum() == 0
    return deviation(counts, exact)


def test_sampling_behind_processors_that_read_the_text_is_exact():
    assert forbidding_deviation() < 4


# ---- planted biases -------------------------------------------------------------------------------------------------


def test_the_test_detects_accepted_drafts_behind_processors(monkeypatch):
    """Whatever was drawn first is accepted, as far as the processors allow it."""
    sample = TreeVerifier._sample

    def accept(self, tree, node, children, row):
        return (children[0], tree.nodes[children[0]].token) if children else sample(self, tree, node, children, row)

    monkeypatch.setattr(TreeVerifier, "_sample", accept)
    assert forbidding_deviation() > 5


def test_the_test_detects_children_chosen_by_probability(monkeypatch):
    """The most probable children declared as drawn from the draft distribution."""
    choices = draft_tree._choices

    def most_probable(sampler, *args):
        sampler.do_sample = False
        try:
            return choices(sampler, *args)
        finally:
            sampler.do_sample = True

    monkeypatch.setattr(draft_tree, "_choices", most_probable)
    assert sampled_deviation(tiny(0), other_drafter(), BROAD, samples=500) > 5


def test_the_test_detects_dropped_nodes(monkeypatch):
    """Nodes left out because the drafter found the drawn token improbable."""
    grow = tree_decoding.grow_tree

    def drop_improbable(*args, sampler, **kwargs):
        tree = grow(*args, sampler=sampler, **kwargs)
        kept = []
        for i, node in enumerate(tree.nodes):
            q = tree.draft_scores(node.parent)[0].softmax(-1)[node.token]
            if q > 0.4 and (node.parent == TEXT or node.parent in kept):
                kept.append(i)
        return draft_tree._cut(tree, kept)

    monkeypatch.setattr(tree_decoding, "grow_tree", drop_improbable)
    assert sampled_deviation(tiny(0), other_drafter(), BROAD, samples=500) > 5


# ---- one verification against exact probabilities -------------------------------------------------------------------


def one_level(tokens, q):
    """A tree of children of the text, drawn in this order from `q`."""
    tree = DraftTree(scores=[q.log()[None]])
    tree.nodes = [DraftNode(token, TEXT, 0, rank, 0.5, None) for rank, token in enumerate(tokens)]
    tree.children = {TEXT: list(range(len(tokens)))}
    tree.expansions = {TEXT: Expansion(0, 0, 0.5, 0.5, (), [])}
    return tree


P = torch.tensor([0.1, 0.45, 0.25, 0.15, 0.05], dtype=torch.float64)
Q = torch.tensor([0.5, 0.1, 0.2, 0.15, 0.05], dtype=torch.float64)


def orders(count):
    """All orders in which children can be drawn, and the exact probability of each."""
    for order in itertools.permutations(range(5), count):
        weight, rest = 1.0, Q.clone()
        for token in order:
            weight *= float(rest[token] / rest.sum())
            rest[token] = 0
        yield order, weight


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_scheme_gives_the_distribution_of_the_target(count):
    """The scheme of `tree_verification`, summed up over everything that can happen, in float64."""
    found = torch.zeros(5, dtype=torch.float64)
    for order, weight in orders(count):
        rest, residual, reach = Q.clone(), P.clone(), 1.0
        for token in order:
            rest = rest / rest.sum()
            accept = min(1.0, float(residual[token] / rest[token]))
            found[token] += weight * reach * accept
            reach *= 1 - accept
            residual = (residual - rest).clamp(min=0)
            residual = residual / residual.sum() if residual.sum() > 0 else residual
            rest[token] = 0
        found += weight * reach * residual
    torch.testing.assert_close(found, P, rtol=0, atol=1e-12)


def one_level_error(count, samples=400):
    """How far the verified token's distribution is from the target's, over all children that can be drawn."""
    generator = torch.Generator().manual_seed(1)
    sampler = DraftSampler(None, vocab_size=5, do_sample=True, generator=generator)
    verifier = TreeVerifier(sampler, [], frozenset())
    logits, context = P.log().float()[None].expand(count + 1, -1), torch.tensor([[0]])
    found = torch.zeros(5, dtype=torch.float64)
    for order, weight in orders(count):
        tree = one_level(order, Q.float())
        for _ in range(samples):
            found[verifier.accept(tree, logits, context).tokens(tree)[0]] += weight / samples
    return float((found - P).abs().max())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_verification_is_exact(count):
    assert one_level_error(count) < 0.02


def with_source(monkeypatch, old, new, method="_sample"):
    """A method of `TreeVerifier` with one statement replaced."""
    source = textwrap.dedent(inspect.getsource(getattr(TreeVerifier, method)))
    assert source.count(old) == 1
    names = dict(vars(tree_verification))
    exec(source.replace(old, new), names)
    monkeypatch.setattr(TreeVerifier, method, names[method])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("q[token] = 0.0", "pass"),  # children drawn without replacement, judged as if with
        ("p = residual / mass", "pass"),  # the target's distribution not reduced by what was rejected
        ("draw * draft_probability < target_probability", "draw < target_probability"),  # judged as one-hot proposals
    ],
)
def test_one_verification_detects_wrong_schemes(old, new, monkeypatch):
    with_source(monkeypatch, old, new)
    assert one_level_error(2) > 0.03


def test_the_test_detects_processors_that_do_not_see_the_path(monkeypatch):
    """Every place of the tree judged by the target as if it stood behind the text itself."""
    with_source(monkeypatch, "[[tree.nodes[i].token for i in result.path]]", "[[]]", "accept")
    assert sampled_deviation(sharper(), other_drafter(), BROAD, samples=300, repetition_penalty=4.0) > 5


def test_children_are_drawn_without_replacement_in_order():
    """Ordered pairs of children against their exact probability."""
    q = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampler = DraftSampler(None, vocab_size=4, do_sample=True, generator=torch.Generator().manual_seed(0))
    samples = 20000
    choices = draft_tree._choices(sampler, q.log().expand(samples, -1), 2)
    counts = torch.zeros(4, 4)
    for _, (first, second), *_ in choices:
        counts[first, second] += 1
    exact = q[:, None] * q[None, :] / (1 - q)[:, None]
    exact.fill_diagonal_(0)
    error = (counts / samples - exact) / (exact * (1 - exact) / samples).sqrt().clamp(min=1e-9)
    assert counts.diagonal().sum() == 0 and error.abs().max() < 4.5


def test_impossible_tokens_are_never_drawn():
    probs = torch.tensor([0.0, 1e-9, 0.0, 0.7, 0.0, 0.3, 0.0]).expand(4000, -1)
    drawn = draw_in_turn(probs, 2, torch.Generator().manual_seed(0))
    assert set(drawn.flatten().tolist()) <= {1, 3, 5} and (drawn[:, 0] != drawn[:, 1]).all()
    assert abs((drawn[:, 0] == 3).double().mean() - 0.7) < 0.03
    # As many draws as possible tokens: each of them once.
    assert draw_in_turn(probs[:5], 3).sort(-1).values.tolist() == [[1, 3, 5]] * 5


def test_no_more_children_than_possible_tokens():
    scores = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf], [0.0, 1.0, 2.0, 3.0], [-torch.inf] * 4])
    for do_sample in (False, True):
        sampler = DraftSampler(None, vocab_size=4, do_sample=do_sample)
        first, second, third = draft_tree._choices(sampler, scores, 3)
        assert sorted(first[1]) == [0, 1] and len(set(second[1])) == 3 and third is None


def test_same_seed_same_text(store_costs):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=3)
    store_costs(target, drafter)
    texts = []
    for _ in range(2):
        torch.manual_seed(7)
        output = target.generate(
            torch.tensor([[5, 6, 7]]), assistant_model=drafter, window=COST_AWARE, do_sample=True, max_new_tokens=30
        )
        texts.append((output.tolist(), [cycle.tokens for cycle in drafter.last_trace.cycles]))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("reduced", [False, True], ids=["whole", "reduced"])
def test_half_precision_stays_inside_the_vocabulary(dtype, reduced, store_costs):
    """Texts that repeat themselves, so that looked-up tokens stand in the trees."""
    target = tiny_target("llama").to(dtype)
    drafter = tiny_eagle3(target, draft_vocab_size=48 if reduced else None).to(dtype)
    store_costs(target, drafter, gamma=0.01, slope=0.01)
    text, looked_up = torch.tensor([[5, 17, 3, 60, 9, 44, 21, 8] * 3]), 0
    for seed, window in enumerate((replace(BROAD, proposals="mixed"), replace(COST_AWARE, proposals="mixed"))):
        torch.manual_seed(seed)
        output = target.generate(
            text, assistant_model=drafter, window=window, do_sample=True, temperature=0.8, top_p=0.9, max_new_tokens=40
        )
        assert text.shape[1] < output.shape[1] <= text.shape[1] + 40
        assert 0 <= output.min() and output.max() < 96
        assert drafter.last_trace.drafted > 0
        looked_up += sum(cycle.looked_up for cycle in drafter.last_trace.cycles)
    assert looked_up > 0


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
def test_every_node_is_possible_where_it_stands(options, monkeypatch):
    """Whatever the processors: a node's token has probability in the distribution it is declared to come from."""
    target = tiny_target("llama")
    drafter = Eagle3Drafter.from_target(target, draft_token_ids=torch.arange(0, 96, 2), seed=0)
    grow, seen = tree_decoding.grow_tree, []

    def spy(*args, sampler, **kwargs):
        tree = grow(*args, sampler=sampler, **kwargs)
        for node in tree.nodes:
            scores = tree.draft_scores(node.parent)
            scores = sampler.to_target_vocabulary(scores) if sampler.reduced else scores
            assert scores.shape == (1, 96) and scores.softmax(-1)[0, node.token] > 0 and node.token % 2 == 0
        assert all(len({tree.nodes[i].token for i in below}) == len(below) for below in tree.children.values())
        seen.append(len(tree.nodes))
        return tree

    monkeypatch.setattr(tree_decoding, "grow_tree", spy)
    torch.manual_seed(0)
    output = target.generate(
        torch.tensor([[5, 6, 7]]), assistant_model=drafter, window=BROAD, do_sample=True, max_new_tokens=24, **options
    )
    assert output.shape[1] > 8 and sum(seen) > 0
