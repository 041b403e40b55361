# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Mixed proposals and lookup in real decoding: the same text, exact sampling, a record that tells who proposed what.
"""

import json
from dataclasses import replace

import pytest
import torch

from ppow_hf import CausalLMDrafter, CostModel, LookupDrafter, WindowConfig
from ppow_hf.generation import LookupProposer, Proposal, ProposalSwitch
from ppow_hf.generation.stored_costs import cost_model_key
from tests.generation.scripted import COSTS, ScriptedTarget, drafter_of_quality
from tests.generation.test_sampling import exact_distribution, other_drafter, reduced_drafter, sampled_deviation, tiny
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

# Costs at which looked-up tokens followed by the drafter pay: few of the former, a nearly free drafter.
CHEAP_DRAFTER = {"gamma": 0.001, "slope": 0.05}
WINDOWS = {
    "lookup": (WindowConfig(proposals="lookup"), {}),
    "lookup_fixed": (WindowConfig.parse("lookup:6"), {}),
    "mixed": (WindowConfig(proposals="mixed"), {}),
    "mixed_leading": (WindowConfig(proposals="mixed", lookup_size=3), CHEAP_DRAFTER),
    "mixed_fixed": (WindowConfig(proposals="mixed", policy="fixed", size=3), {}),
    "mixed_divergence": (WindowConfig(proposals="mixed", policy="divergence", divergence_metric="kl"), {}),
}
REPEATING = torch.tensor([[5, 17, 3, 60, 9, 44, 5, 17, 3, 60, 9, 44, 5, 17, 3]])


def drafters(target):
    return {
        "eagle3": tiny_eagle3(target),
        "eagle3_reduced": tiny_eagle3(target, draft_vocab_size=48),
        "causal": tiny_causal_drafter(target, num_layers=3),
        "lookup": LookupDrafter.from_target(target),
    }


def compare(target, drafter, prompt, window, **kwargs):
    kwargs = {"do_sample": False, "max_new_tokens": 40, **kwargs}
    plain = target.generate(prompt, **kwargs)
    output = target.generate(prompt, assistant_model=drafter, window=window, **kwargs)
    assert output.tolist() == plain.tolist()
    trace = drafter.last_trace
    assert trace.new_tokens == plain.shape[1] - prompt.shape[1]
    return trace


@pytest.fixture
def ready(store_costs):
    def store(target, costs):
        found = drafters(target)
        for drafter in found.values():
            store_costs(target, drafter, **costs)
        return found

    return store


# ---- the same text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(WINDOWS))
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma3_text"])
def test_greedy_text_is_the_same(family, name, ready):
    window, costs = WINDOWS[name]
    target = tiny_target(family)
    looked_up = accepted = 0
    for drafter in ready(target, costs).values():
        trace = compare(target, drafter, REPEATING, window, max_new_tokens=60)
        looked_up += sum(cycle.looked_up for cycle in trace.cycles)
        accepted += sum(min(cycle.accepted, cycle.looked_up) for cycle in trace.cycles)
    assert looked_up > 0 and (accepted > 0 or family != "llama")


@pytest.mark.parametrize("name", ["lookup", "mixed", "mixed_leading"])
def test_end_of_text_and_length(name, ready, prompt):
    window, costs = WINDOWS[name]
    for seed in range(2):
        target = tiny_target("llama", seed=seed)
        for drafter in ready(target, costs).values():
            for eos in ([3], list(range(2, 60))):
                compare(target, drafter, prompt, window, eos_token_id=eos, pad_token_id=0)
    for length in (1, 2, 3, 7):
        for drafter in ready(target, costs).values():
            compare(target, drafter, REPEATING, window, max_new_tokens=length)


@pytest.mark.parametrize("window", ["lookup:8", "lookup", "mixed"])
def test_nothing_is_looked_up_behind_the_end_of_the_text(window, cache_folder):
    """The prompt quotes a text that ended, and what stood behind it."""
    phrase = [5, 17, 3, 60, 9, 44]
    script = [*phrase, 7, 21, 8, *phrase, 7, 21, 8]
    target, drafter = ScriptedTarget(script), drafter_of_quality(script, 0.5)
    replace(COSTS["flat"], key=cost_model_key(target, drafter)).save(cache_folder)
    trace = compare(target, drafter, torch.tensor([script[:11]]), window, eos_token_id=7)
    assert trace.cycles[-1].source == "lookup" and trace.cycles[-1].stop == "eos"
    assert trace.cycles[-1].tokens == [60, 9, 44, 7] and trace.cycles[-1].bonus is None


@pytest.mark.parametrize("name", ["lookup", "mixed", "mixed_leading"])
def test_left_padding_and_processors(name, ready):
    window, costs = WINDOWS[name]
    target = tiny_target("llama")
    padded = torch.cat([torch.zeros((1, 5), dtype=torch.long), REPEATING], dim=-1)
    mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
    for drafter in ready(target, costs).values():
        trace = compare(target, drafter, padded, window, attention_mask=mask)
        alone = compare(target, drafter, REPEATING, window)
        # Lookup and drafter see the text without its padding.
        assert [c.tokens for c in trace.cycles] == [c.tokens for c in alone.cycles]
        for options in ({"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 3}, {"suppress_tokens": [17, 60]}):
            compare(target, drafter, REPEATING, window, **options)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_drafter_that_slept_proposes_what_it_would_have_proposed(family, monkeypatch):
    """
    Text and features wait while lookup proposes, here the right tokens, in two cycles of three. Every window of the
    drafter is drafted again from scratch: what was dropped or kept wrongly in between would show.
    """
    target = tiny_target(family)
    options = {"max_new_tokens": 90, "do_sample": False}
    plain = target.generate(REPEATING, **options)[0].tolist()
    asked = []

    def propose(self, limit, can_draft=True):
        asked.append(limit)
        place = len(self.index)
        if len(asked) % 3 == 1:
            return Proposal()
        # Wrong at the end now and then, so that some of it is rejected.
        tokens = plain[place : place + 4] if len(asked) % 2 else [*plain[place : place + 2], 0]
        return Proposal("lookup", tokens[:limit], [0.9] * len(tokens[:limit]))

    monkeypatch.setattr(LookupProposer, "propose", propose)
    window = WindowConfig(proposals="mixed", policy="fixed", size=3)
    for name, drafter in drafters(target).items():
        if name == "lookup":
            continue
        monkeypatch.setattr(CostModel, "for_models", lambda target, drafter: COSTS["flat"])
        asked.clear()
        text = target.generate(REPEATING, assistant_model=drafter, window=window, **options)
        assert text[0].tolist() == plain
        cycles = drafter.last_trace.cycles
        slept = [
            c for a, b, c in zip(cycles, cycles[1:], cycles[2:], strict=False) if {a.source, b.source} == {"lookup"}
        ]
        assert sum(cycle.source == "drafter" and cycle.drafted == 3 for cycle in slept) > 3, name
        with torch.no_grad():
            states = target(text, output_hidden_states=True).hidden_states
        length = REPEATING.shape[1] + 1
        for cycle in cycles:
            if cycle.source == "drafter":
                features = None
                if drafter.feature_layer_ids:
                    features = torch.cat([states[k][:, : length - 1] for k in drafter.feature_layer_ids], dim=-1)
                state = drafter.new_state()
                logits = drafter.extend(state, text[:, :length], features)
                for token in cycle.tokens:
                    column = logits.argmax(-1)
                    own = column if drafter.draft_token_ids is None else drafter.draft_token_ids[column]
                    assert int(own) == token, (name, length)
                    logits = drafter.step(state, own)
            length += cycle.committed
        assert length == text.shape[1]


def test_looked_up_tokens_can_lead_a_drafted_window(ready, monkeypatch):
    """The drafter goes on behind looked-up tokens: from the text with them, whoever chose them."""
    monkeypatch.setattr(ProposalSwitch, "choose", leading_two)
    target = tiny_target("llama")
    mixed = 0
    for drafter in ready(target, {}).values():
        for policy in ("fixed", "cost_aware", "confidence"):
            window = WindowConfig(proposals="mixed", policy=policy, size=4, min_size=0, threshold=0.1)
            trace = compare(target, drafter, REPEATING, window, max_new_tokens=60)
            for cycle in trace.cycles:
                assert len(cycle.tokens) == cycle.drafted == len(cycle.predicted)
                assert len(cycle.confidence) == len(cycle.features) == cycle.drafted - cycle.looked_up
                mixed += cycle.source == "mixed" and cycle.accepted > cycle.looked_up
    assert mixed > 0


def leading_two(self, tokens, predicted, limit, can_draft=True):
    count = min(2, limit - 1, len(tokens) - 1)
    return Proposal("mixed", tokens[:count], predicted[:count]) if count > 0 and can_draft else Proposal()


# ---- exact sampling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lookup_fixed", "mixed"])
def test_sampling_is_exact(name, store_costs):
    window, _ = WINDOWS[name]
    target, drafter = tiny(0), other_drafter()
    # Costs at which the choice falls now on one, now on the other.
    store_costs(target, drafter, gamma=0.5, slope=0.02)
    sources = count_sources(drafter)
    assert sampled_deviation(target, drafter, window) < 4
    assert sources()[0] > 100 and (name == "lookup_fixed" or sources()[1] > 100)


def test_sampling_with_processors_and_leading_tokens_is_exact(store_costs, monkeypatch):
    monkeypatch.setattr(ProposalSwitch, "choose", leading_two)
    target = tiny(0)
    drafter = reduced_drafter(target)
    store_costs(target, drafter)
    window = WindowConfig(proposals="mixed", policy="fixed", size=3)
    assert sampled_deviation(target, drafter, window, temperature=0.8, top_k=3, samples=600) < 4


def count_sources(drafter):
    """Tokens looked up, and tokens drafted, over all calls from here on."""
    kept = []
    make = type(drafter).make_candidate_generator

    def spy(target, **kwargs):
        generator = make(drafter, target, **kwargs)
        kept.append(generator.trace)
        return generator

    drafter.make_candidate_generator = spy

    def totals():
        cycles = [cycle for trace in kept for cycle in trace.cycles]
        looked_up = sum(cycle.looked_up for cycle in cycles)
        return looked_up, sum(cycle.drafted for cycle in cycles) - looked_up

    return totals


def test_the_test_detects_proposals_declared_as_drawn(monkeypatch, store_costs):
    """A looked-up token declared with a soft distribution, as if it had been drawn from it."""
    logits = Proposal.logits
    monkeypatch.setattr(Proposal, "logits", lambda self, *args: logits(self, *args).clamp(min=-1.0))
    target, drafter = tiny(0), other_drafter()
    store_costs(target, drafter)
    assert sampled_deviation(target, drafter, "lookup:3", samples=500) > 5


def test_declared_logits_are_one_hot():
    logits = Proposal("lookup", [3, 0, 3]).logits(5, torch.device("cpu"))
    assert logits.softmax(-1).tolist() == [[[0, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]]


def test_exact_distribution_is_one():
    assert exact_distribution(tiny(0)).sum() == pytest.approx(1.0)


# ---- the record ----------------------------------------------------------------------------------------------------


def test_the_trace_tells_who_proposed(ready):
    target = tiny_target("llama")
    found = ready(target, {})
    for name, drafter in found.items():
        assert {c.source for c in compare(target, drafter, REPEATING, "lookup").cycles} == {"lookup"}
        trace = compare(target, drafter, REPEATING, "mixed", max_new_tokens=80)
        told = 0
        for cycle in trace.cycles:
            assert cycle.source in ("drafter", "lookup", "mixed")
            assert cycle.looked_up == {"drafter": 0, "lookup": cycle.drafted}.get(cycle.source, cycle.looked_up)
            if cycle.source == "lookup":
                # The drafter's calibration learns nothing from tokens that are not its own.
                assert cycle.confidence == cycle.features == cycle.outcomes == [] and not cycle.marks["draft"]
            told += cycle.source == "drafter"
        if name != "lookup":
            assert told and trace.calibration_records()
        predicted, confidence, outcomes = trace.calibration_pairs()
        assert len(predicted) == len(confidence) == len(outcomes) == len(trace.calibration_records())
        stored = json.loads(json.dumps(trace.to_dict()))["cycles"]
        assert [c["source"] for c in stored] == [c.source for c in trace.cycles]
        assert [c["looked_up"] for c in stored] == [c.looked_up for c in trace.cycles]


def test_records_of_a_mixed_window_are_the_drafters_own(ready, monkeypatch):
    monkeypatch.setattr(ProposalSwitch, "choose", leading_two)
    target = tiny_target("llama")
    drafter = ready(target, {})["causal"]
    trace = compare(target, drafter, REPEATING, WindowConfig(proposals="mixed", policy="fixed", size=5))
    pairs = []
    for cycle in trace.cycles:
        judged = max(0, min(cycle.accepted + 1, cycle.drafted) - cycle.looked_up)
        if cycle is not trace.cycles[-1]:
            assert len(cycle.outcomes) == judged
        pairs += list(zip(cycle.predicted[cycle.looked_up :], cycle.outcomes, strict=False))
    predicted, _, outcomes = trace.calibration_pairs()
    assert list(zip(predicted, outcomes, strict=True)) == pairs and 0 < sum(outcomes) < len(outcomes)


def test_lookup_alone_asks_nothing_of_the_drafter(prompt, store_costs):
    target = tiny_target("llama")
    drafter = tiny_eagle3(target)
    store_costs(target, drafter)
    drafter.extend = drafter.step = None
    seen = []
    handle = target.register_forward_hook(lambda module, args, output: seen.append(output.hidden_states))
    target.generate(prompt, assistant_model=drafter, window="lookup", max_new_tokens=20, do_sample=False)
    handle.remove()
    assert seen and all(states is None for states in seen)
    assert drafter.last_trace.seconds["draft"] == 0


# ---- carrying over -------------------------------------------------------------------------------------------------


def test_what_is_learnt_can_be_carried_over_and_reset(store_costs):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=3)
    store_costs(target, drafter)

    def estimates(window):
        compare(target, drafter, REPEATING, window, max_new_tokens=50)
        return [(cycle.source, cycle.predicted, cycle.rate, cycle.divergence) for cycle in drafter.last_trace.cycles]

    fresh = WindowConfig(proposals="mixed")
    assert estimates(fresh) == estimates(fresh)
    kept = WindowConfig(proposals="mixed", carry_over=True)
    first = estimates(kept)
    assert first == estimates(fresh)
    second = estimates(kept)
    assert second[0][2] != first[0][2] and second != first
    # Another window has learnt nothing yet, and neither has sampling.
    other = estimates(WindowConfig(proposals="mixed", carry_over=True, max_size=6))
    assert other[0][2:] == first[0][2:]
    drafter.reset_adaptation()
    assert estimates(kept) == first


def test_a_copy_has_its_own_memory(store_costs):
    import copy

    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=3)
    store_costs(target, drafter)
    window = WindowConfig(carry_over=True)
    compare(target, drafter, REPEATING, window)
    twin = copy.deepcopy(drafter)
    twin.reset_adaptation()
    compare(target, drafter, REPEATING, window)
    rate = drafter.last_trace.cycles[0].rate
    compare(target, twin, REPEATING, window)
    assert twin.last_trace.cycles[0].rate == pytest.approx(1.4) != rate


# ---- the configuration ---------------------------------------------------------------------------------------------


def test_short_forms():
    base = WindowConfig(policy="fixed", size=3, max_size=9)
    assert WindowConfig.parse("mixed", base) == replace(base, proposals="mixed")
    assert WindowConfig.parse("lookup", base) == replace(base, policy="cost_aware", proposals="lookup")
    assert WindowConfig.parse("lookup:7", base) == replace(base, size=7, proposals="lookup")
    # Naming a policy asks for the drafter.
    for proposals in ("mixed", "lookup"):
        for text in ("fixed:4", "cost_aware", "tree:5"):
            assert WindowConfig.parse(text, WindowConfig(proposals=proposals)).proposals == "drafter"
    for text in ("mixed:3", "lookup:", "lookup:x", "lookup:-1", "lookup:2.5"):
        with pytest.raises(ValueError, match="expected 'mixed', 'lookup', or an integer"):
            WindowConfig.parse(text)
    with pytest.raises(ValueError, match="`size`"):
        WindowConfig.parse("lookup:0")


@pytest.mark.parametrize(
    "values, named",
    [
        ({"proposals": "tree"}, "`proposals`.*drafter, lookup, mixed"),
        ({"proposals": None}, "`proposals`"),
        ({"lookup_size": 0}, "`lookup_size`"),
        ({"lookup_size": 2.0}, "`lookup_size`"),
        ({"carry_over": 1}, "`carry_over`"),
        ({"proposals": "lookup", "tree": True}, "`tree`.*`proposals='drafter'` or `'mixed'`"),
    ],
)
def test_bad_values_are_named(values, named):
    with pytest.raises(ValueError, match=named):
        WindowConfig(**values)


def test_it_is_saved_with_the_drafter(tmp_path):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    drafter.generation_config.window = WindowConfig(proposals="mixed", lookup_size=7, carry_over=True)
    drafter.save_pretrained(tmp_path)
    assert CausalLMDrafter.from_pretrained(tmp_path).generation_config.window == drafter.generation_config.window


@pytest.mark.parametrize("window", ["confidence", "heuristic", "divergence"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_lookup_takes_as_many_tokens_as_pay_under_every_adaptive_policy(window, do_sample, store_costs):
    """And measures what that depends on, whichever drafter it proposes for."""
    target = tiny_target("llama")
    ids = torch.tensor([[5, 17, 3, 60, 9, 44] * 3])
    options = {"max_new_tokens": 16, "do_sample": do_sample}
    for drafter, given in (
        (LookupDrafter.from_target(target), window),
        (tiny_eagle3(target), WindowConfig(window, proposals="lookup")),
    ):
        costs = store_costs(target, drafter)
        text = target.generate(ids, assistant_model=drafter, window=given, **options)
        trace = drafter.last_trace
        assert trace.window["policy"] == window and trace.window["proposals"] == "lookup"
        assert trace.cost == costs.to_dict() and trace.drafted > 0
        if not do_sample:
            assert torch.equal(text, target.generate(ids, **options))


@pytest.mark.parametrize("policy", ["cost_aware", "divergence", "confidence", "heuristic", "fixed"])
def test_costs_are_needed_wherever_something_has_to_pay(policy):
    needed = {proposals: WindowConfig(policy, proposals=proposals).needs_costs for proposals in ("lookup", "drafter")}
    assert needed == {"lookup": policy != "fixed", "drafter": policy == "cost_aware"}
    assert WindowConfig(policy, proposals="mixed").needs_costs
