# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Trees with looked-up tokens in real decoding: the text of plain `generate`, exact sampling, a drafter that is given
what it slept through, and a record that tells who proposed what.
"""

import json

import pytest
import torch

from ppow_hf import WindowConfig
from ppow_hf.generation import LookupIndex, LookupMatch, Proposal, ProposalSwitch, tree_decoding
from ppow_hf.generation.lookup_graft import LookupGraft
from ppow_hf.generation.tree_config import TreeConfig
from ppow_hf.generation.tree_verification import TreeVerifier
from tests.generation.test_proposals import REPEATING
from tests.generation.test_sampling import other_drafter, reduced_drafter, sampled_deviation, tiny
from tests.generation.test_tree_decoding import Collector, StopAt, compare, drafters
from tests.testing_utils import tiny_causal_drafter, tiny_target

FIXED = WindowConfig(policy="fixed", tree=TreeConfig(max_nodes=12, max_depth=3, branching=3), proposals="mixed")
COST_AWARE = WindowConfig(policy="cost_aware", min_size=0, tree=True, proposals="mixed")
WINDOWS = {"fixed": FIXED, "cost_aware": COST_AWARE}
CHEAP = {"gamma": 0.01, "slope": 0.01}


@pytest.fixture
def ready(store_costs):
    def store(target, **costs):
        found = drafters(target)
        for drafter in found.values():
            store_costs(target, drafter, **{**CHEAP, **costs})
        return found

    return store


@pytest.fixture
def always_a_tree(monkeypatch):
    """Lookup is never verified alone."""
    monkeypatch.setattr(ProposalSwitch, "choose", lambda *args, **kwargs: Proposal())


@pytest.fixture
def oracle(monkeypatch):
    """Lookup that knows the text: of the first `right` tokens of every proposal, none is wrong."""

    def know(text, right, size=12):
        def follow(self, match, max_tokens, path=()):
            wrong, end = len(self.tokens) + right, min(len(self.tokens) + size, len(text))
            places = range(len(self.tokens) + len(path), end)
            return [text[place] if place < wrong else (text[place] + 1) % 96 for place in places][:max_tokens]

        def match_behind(self, path=()):
            return LookupMatch(0, 20, 3, 2) if follow(self, None, 1, path) else None

        monkeypatch.setattr(LookupIndex, "follow", follow)
        monkeypatch.setattr(LookupIndex, "match_behind", match_behind)
        monkeypatch.setattr(LookupIndex, "match", property(match_behind))

    return know


# ---- the same text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(WINDOWS))
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_greedy_text_is_the_same(family, name, ready):
    overrides = {"layer_types": ["full_attention"] * 4} if family == "gemma3_text" else {}
    target = tiny_target(family, **overrides)
    looked_up = accepted = 0
    for drafter in ready(target).values():
        trace = compare(target, drafter, REPEATING, WINDOWS[name], max_new_tokens=60)
        looked_up += sum(cycle.looked_up for cycle in trace.cycles)
        accepted += trace.accepted
    assert looked_up > 0 and accepted > 0


@pytest.mark.parametrize("name", sorted(WINDOWS))
def test_many_prompts(name, ready):
    """Prompts at random, half of them repetitive, on several targets."""
    generator = torch.Generator().manual_seed(0)
    sources = set()
    for seed in range(3):
        target = tiny_target("llama", seed=seed)
        for kind, drafter in ready(target).items():
            for repeats in (1, 3):
                part = torch.randint(5, 96, (1, 7), generator=generator)
                trace = compare(target, drafter, part.repeat(1, repeats), WINDOWS[name], max_new_tokens=40)
                sources |= {cycle.source for cycle in trace.cycles}
            assert kind
    assert sources == {"drafter", "lookup", "mixed"}


@pytest.mark.parametrize("name", sorted(WINDOWS))
@pytest.mark.parametrize("kind", ["eagle3_reduced", "causal"])
def test_end_of_text_and_length(name, kind, ready, prompt):
    for seed in range(2):
        target = tiny_target("llama", seed=seed)
        drafter = ready(target)[kind]
        for eos in ([3], list(range(2, 60))):
            compare(target, drafter, REPEATING, WINDOWS[name], eos_token_id=eos, pad_token_id=0)
    for length in (1, 2, 3, 7, 11):
        trace = compare(target, drafter, REPEATING, WINDOWS[name], max_new_tokens=length)
        left = length - 1
        for cycle in trace.cycles:
            assert cycle.depth < left or (cycle.depth == 0 and cycle.stop == "length")
            left -= cycle.committed
    compare(target, drafter, torch.tensor([[5]]), WINDOWS[name])


def test_end_of_text_and_length_inside_a_looked_up_path(ready, oracle, always_a_tree):
    target = tiny_target("llama")
    plain = target.generate(REPEATING, max_new_tokens=30, do_sample=False)[0].tolist()
    start = REPEATING.shape[1]
    new = plain[start:]
    ends = {token for i, token in enumerate(new) if i >= 4 and token not in new[:i]}
    inside = 0
    for drafter in ready(target).values():
        oracle(plain, right=12)
        for eos in sorted(ends)[:3]:
            last = compare(target, drafter, REPEATING, FIXED, eos_token_id=eos, max_new_tokens=30).cycles[-1]
            assert all(last.parents[i] < 0 or last.tokens[last.parents[i]] != eos for i in range(last.drafted))
            inside += last.bonus is None and last.depth > FIXED.tree.max_depth
        for length in (5, 9, 14):
            cycles = compare(target, drafter, REPEATING, FIXED, max_new_tokens=length).cycles
            # Nothing is looked up beyond the end: the last token is always the target's own.
            assert 3 <= cycles[0].depth <= length - 2 and cycles[-1].bonus is not None
    assert inside > 0


@pytest.mark.parametrize("right", [2, 5, 12])
@pytest.mark.parametrize("name", sorted(WINDOWS))
def test_paths_deeper_than_the_drafters_levels(name, right, ready, oracle, always_a_tree):
    """More looked-up tokens are accepted than the drafter has columns of, and it goes on as if it had drafted them."""
    target = tiny_target("llama")
    plain = target.generate(REPEATING, max_new_tokens=60, do_sample=False)[0].tolist()
    oracle(plain, right)
    for kind, drafter in ready(target).items():
        trace = compare(target, drafter, REPEATING, WINDOWS[name], max_new_tokens=60)
        assert max(cycle.accepted for cycle in trace.cycles) >= min(right, 6), kind
        if right == 12:
            assert any(cycle.accepted > WINDOWS[name].tree.max_depth for cycle in trace.cycles)
        assert_from_scratch(target, drafter, plain, WINDOWS[name].tree.branching)


def test_a_drafter_that_slept_drafts_what_it_would_have_drafted(ready, oracle, monkeypatch):
    """Lookup alone in two cycles of three, right for a few tokens; in between, trees that carry looked-up tokens."""
    target = tiny_target("llama")
    plain = target.generate(REPEATING, max_new_tokens=80, do_sample=False)[0].tolist()
    oracle(plain, right=3, size=5)
    asked = []

    def choose(self, tokens, predicted, limit, can_draft=True):
        asked.append(limit)
        if len(asked) % 3 == 1:
            return Proposal()
        return Proposal("lookup", tokens[:limit], predicted[:limit])

    monkeypatch.setattr(ProposalSwitch, "choose", choose)
    for drafter in ready(target).values():
        asked.clear()
        trace = compare(target, drafter, REPEATING, FIXED, max_new_tokens=80)
        assert {"lookup", "mixed"} <= {cycle.source for cycle in trace.cycles}
        assert all(not cycle.marks["draft"] for cycle in trace.cycles if cycle.source == "lookup")
        assert assert_from_scratch(target, drafter, plain, 3) > 10


def assert_from_scratch(target, drafter, text, branching):
    """Every drafted node is what a fresh drafter proposes there; how many were no looked-up tokens."""
    with torch.no_grad():
        states = target(torch.tensor([text]), output_hidden_states=True).hidden_states
    length, checked = REPEATING.shape[1] + 1, 0
    for cycle in drafter.last_trace.cycles:
        features = None
        if drafter.feature_layer_ids:
            features = torch.cat([states[k][:, : length - 1] for k in drafter.feature_layer_ids], dim=-1)
        strangers = 0
        for node in range(cycle.drafted if cycle.source != "lookup" else 0):
            path, parent = [], cycle.parents[node]
            while parent != -1:
                path.insert(0, cycle.tokens[parent])
                parent = cycle.parents[parent]
            state = drafter.new_state()
            logits = drafter.extend(state, torch.tensor([text[:length]]), features)
            for token in path:
                logits = drafter.step(state, torch.tensor([token]))
            ids = drafter.draft_token_ids
            best = logits[0].topk(branching).indices
            known = cycle.tokens[node] in (best if ids is None else ids[best]).tolist()
            strangers += not known
            checked += known
        assert strangers <= cycle.looked_up, length
        length += cycle.committed
    assert length == len(text)
    return checked


@pytest.mark.parametrize("name", sorted(WINDOWS))
def test_left_padding_and_processors(name, ready):
    target = tiny_target("llama")
    padded = torch.cat([torch.zeros((1, 5), dtype=torch.long), REPEATING], dim=-1)
    mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
    for drafter in ready(target).values():
        trace = compare(target, drafter, padded, WINDOWS[name], attention_mask=mask)
        alone = compare(target, drafter, REPEATING, WINDOWS[name])
        assert [c.tokens for c in trace.cycles] == [c.tokens for c in alone.cycles]
        for options in ({"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 3}, {"suppress_tokens": [17, 60]}):
            compare(target, drafter, REPEATING, WINDOWS[name], **options)


def test_streamer_dict_outputs_and_criteria(ready, oracle):
    target = tiny_target("llama")
    plain_text = target.generate(REPEATING, max_new_tokens=30, do_sample=False)[0].tolist()
    oracle(plain_text, right=6)
    for drafter in ready(target).values():
        streamer = Collector()
        options = {"assistant_model": drafter, "window": COST_AWARE, "max_new_tokens": 20, "do_sample": False}
        output = target.generate(REPEATING, streamer=streamer, **options)
        assert streamer.tokens == output[0].tolist() == plain_text[: len(output[0])] and streamer.ended
    kwargs = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    kwargs |= {"max_new_tokens": 20, "do_sample": False}
    plain = target.generate(REPEATING, **kwargs)
    output = target.generate(REPEATING, assistant_model=drafter, window=COST_AWARE, **kwargs)
    assert torch.equal(output.sequences, plain.sequences) and len(output.hidden_states) == 20
    for a, b in zip(output.scores, plain.scores, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for layer, other in zip(output.past_key_values.layers, plain.past_key_values.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, atol=1e-4, rtol=1e-4)
    prompt, oracle_text = REPEATING[:, :8], target.generate(REPEATING[:, :8], max_new_tokens=20, do_sample=False)
    oracle(oracle_text[0].tolist(), right=9)
    for token in oracle_text[0, 10:14].tolist():
        kwargs = {"max_new_tokens": 20, "do_sample": False, "stopping_criteria": [StopAt(token)]}
        wanted = target.generate(prompt, **kwargs)
        assert torch.equal(target.generate(prompt, assistant_model=drafter, window=FIXED, **kwargs), wanted)


# ---- exact sampling ------------------------------------------------------------------------------------------------

SMALL = WindowConfig(policy="fixed", tree=TreeConfig(max_nodes=6, max_depth=2, branching=2), proposals="mixed")


def count_nodes(monkeypatch):
    """Nodes of all trees, and how many of them are lookup's, from here on."""
    total = {"lookup": 0, "drafter": 0}
    accept = TreeVerifier.accept

    def spy(self, tree, *args):
        for node in tree.nodes:
            total["lookup" if node.looked_up else "drafter"] += 1
        return accept(self, tree, *args)

    monkeypatch.setattr(TreeVerifier, "accept", spy)
    return total


@pytest.mark.parametrize("window", [SMALL, COST_AWARE], ids=["fixed", "cost_aware"])
def test_sampling_is_exact(window, store_costs, monkeypatch):
    target, drafter = tiny(0), other_drafter()
    # Costs at which some looked-up tokens stand in trees, some alone, and some are left out.
    store_costs(target, drafter, gamma=0.1, slope=0.06)
    total = count_nodes(monkeypatch)
    assert sampled_deviation(target, drafter, window, samples=700) < 4
    assert total["lookup"] > 100 and total["drafter"] > 100


def test_sampling_with_processors_and_a_reduced_vocabulary_is_exact(store_costs, monkeypatch, always_a_tree):
    target = tiny(0)
    drafter = reduced_drafter(target)
    store_costs(target, drafter)
    total = count_nodes(monkeypatch)
    assert sampled_deviation(target, drafter, SMALL, temperature=0.7, top_k=3, samples=600) < 4
    assert total["lookup"] > 100 and total["drafter"] > 100


def test_the_test_detects_looked_up_tokens_declared_as_drawn(store_costs, monkeypatch, always_a_tree):
    """A looked-up child accepted as if the drafter had drawn it."""
    target, drafter = tiny(0), other_drafter()
    store_costs(target, drafter)
    grow = tree_decoding.grow_tree

    def declare(*args, **kwargs):
        tree = grow(*args, **kwargs)
        for below in tree.children.values():
            if below[0] >= 0 and tree.nodes[below[0]].parent in tree.expansions:
                for rank, child in enumerate(below):
                    tree.nodes[child].rank = rank
                tree.expansions[tree.nodes[below[0]].parent].excluded = None
        return tree

    monkeypatch.setattr(tree_decoding, "grow_tree", declare)
    assert sampled_deviation(target, drafter, SMALL, samples=400) > 5


# ---- record, memory, refusals --------------------------------------------------------------------------------------


def test_the_trace_tells_who_proposed(ready):
    target = tiny_target("llama")
    sources = set()
    for drafter in ready(target).values():
        for window in (FIXED, COST_AWARE):
            trace = compare(target, drafter, REPEATING, window, max_new_tokens=80)
            for cycle in trace.cycles:
                sources.add(cycle.source)
                assert cycle.drafted == len(cycle.tokens) == len(cycle.parents)
                assert cycle.parents[: cycle.accepted] == list(range(-1, cycle.accepted - 1))
                assert len(cycle.predicted) - cycle.looked_up == len(cycle.confidence) == len(cycle.features)
                if cycle.source == "lookup":
                    assert cycle.looked_up == cycle.drafted == cycle.depth and not cycle.marks["draft"]
                else:
                    assert (cycle.looked_up > 0) == (cycle.source == "mixed")
            predicted, confidence, outcomes = trace.calibration_pairs()
            assert len(predicted) == len(confidence) == len(outcomes) == len(trace.calibration_records())
            assert json.loads(json.dumps(trace.to_dict()))["window"]["proposals"] == "mixed"
    assert sources == {"drafter", "lookup", "mixed"}


def test_what_is_learnt_can_be_carried_over_and_reset(store_costs):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=3)
    store_costs(target, drafter, **CHEAP)

    def estimates(window):
        compare(target, drafter, REPEATING, window, max_new_tokens=50)
        return [(cycle.source, cycle.predicted, cycle.rate, cycle.divergence) for cycle in drafter.last_trace.cycles]

    fresh, kept = WindowConfig.parse("mixed_tree"), WindowConfig(tree=True, proposals="mixed", carry_over=True)
    assert estimates(fresh) == estimates(fresh) == (first := estimates(kept))
    assert estimates(kept) != first
    drafter.reset_adaptation()
    assert estimates(kept) == first


def test_short_forms():
    assert WindowConfig.parse("mixed_tree") == WindowConfig(tree=True, proposals="mixed")
    assert WindowConfig.parse("mixed_tree:7") == WindowConfig(tree=TreeConfig(max_nodes=7), proposals="mixed")
    base = WindowConfig.parse("mixed_tree:7", WindowConfig(policy="fixed", max_size=9, lookup_size=5))
    assert (base.policy, base.max_size, base.lookup_size) == ("cost_aware", 9, 5)
    assert WindowConfig.from_dict(base.to_dict()) == base
    assert (
        WindowConfig.parse("tree", base).proposals == "drafter"
        and WindowConfig.parse("tree", base).tree.max_nodes == 7
    )
    assert (
        WindowConfig.parse("mixed", base).tree is None and WindowConfig.parse("fixed:2", base).proposals == "drafter"
    )
    assert WindowConfig.coerce("mixed_tree:5").tree.max_nodes == 5
    with pytest.raises(ValueError, match="expected an integer of at least 1"):
        WindowConfig.parse("mixed_tree:x")
    with pytest.raises(ValueError, match="`'mixed'`, got 'lookup'"):
        WindowConfig(tree=True, proposals="lookup")


def test_no_graft_without_lookup(prompt, monkeypatch, store_costs):
    """The drafter's own tree looks nothing up."""
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    store_costs(target, drafter)
    monkeypatch.setattr(LookupGraft, "weigh", None)
    monkeypatch.setattr(LookupIndex, "extend", None)
    trace = compare(target, drafter, prompt, "tree")
    assert {cycle.source for cycle in trace.cycles} == {"drafter"}
