# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Decoding with trees: the text of plain `generate` in float32, whatever the call asks for; chains where nothing
branches."""

import json

import pytest
import torch
from transformers import DynamicCache, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ppow_hf import CostModel, WindowConfig, speculative_generate
from ppow_hf.generation import attached, install_hook, uninstall_hook
from ppow_hf.generation.stored_costs import cost_model_key
from ppow_hf.generation.tree_config import TreeConfig
from tests.generation.test_tree_attention import FULL_ATTENTION
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

FIXED = WindowConfig(policy="fixed", tree=TreeConfig(max_nodes=10, max_depth=4, branching=3))
COST_AWARE = WindowConfig(policy="cost_aware", min_size=0, tree=True)


def drafters(target):
    vocab_size = target.config.get_text_config().vocab_size
    return {
        "eagle3": tiny_eagle3(target),
        "eagle3_reduced": tiny_eagle3(target, draft_vocab_size=vocab_size // 2),
        "causal": tiny_causal_drafter(target, num_layers=3),
    }


def compare(target, drafter, prompt, window=FIXED, **kwargs):
    kwargs = {"do_sample": False, "max_new_tokens": 24, **kwargs}
    plain = target.generate(prompt, **kwargs)
    output = target.generate(prompt, assistant_model=drafter, window=window, **kwargs)
    assert output.tolist() == plain.tolist()
    trace = drafter.last_trace
    assert trace.new_tokens == plain.shape[1] - prompt.shape[1]
    return trace


@pytest.mark.parametrize("family", FULL_ATTENTION)
def test_families(family, prompt, store_costs):
    target = tiny_target(family, **FULL_ATTENTION[family])
    accepted = beyond_first = 0
    for drafter in drafters(target).values():
        store_costs(target, drafter)
        for window in (FIXED, COST_AWARE):
            trace = compare(target, drafter, prompt, window)
            accepted += trace.accepted
            beyond_first += sum(path_ranks(cycle) for cycle in trace.cycles)
    # Paths were accepted, and some of them not along first children.
    assert accepted > 0 and beyond_first > 0


def path_ranks(cycle):
    """How many accepted nodes have an elder sibling: accepted nodes come first, so it stands behind them."""
    return sum(cycle.parents[cycle.accepted :].count(cycle.parents[i]) > 0 for i in range(cycle.accepted))


FIGURES = ("drafted", "accepted", "committed", "tokens", "bonus", "predicted", "confidence", "features", "outcomes")
FIGURES += ("divergence", "rate", "stop")


def traces(target, drafter, prompt, windows, **options):
    """Texts and traces of one prompt under several windows."""
    found = []
    for window in windows:
        output = target.generate(prompt, assistant_model=drafter, window=window, **options)
        found.append((output.tolist(), drafter.last_trace))
    return found


@pytest.mark.parametrize("kind", ["eagle3", "eagle3_reduced", "causal"])
@pytest.mark.parametrize("policy", ["fixed:1", "fixed:4", "cost_aware"])
def test_branching_one_is_the_chain(kind, policy, prompt, store_costs):
    accepted = 0
    for seed in range(3):
        target = tiny_target("llama", seed=seed)
        drafter = drafters(target)[kind]
        # Cheap enough that the cost-aware window is now and then longer than one token.
        store_costs(target, drafter, gamma=0.01, slope=0.005)
        chain = WindowConfig.parse(policy, WindowConfig(min_size=0))
        limit = TreeConfig(max_nodes=chain.limit, max_depth=chain.limit, branching=1)
        tree = WindowConfig(policy=chain.policy, min_size=0, tree=limit)
        options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": 3}
        (text, ours), (chain_text, theirs) = traces(target, drafter, prompt, [tree, chain], **options)
        assert text == chain_text and len(ours.cycles) == len(theirs.cycles)
        for ours_cycle, their_cycle in zip(ours.cycles, theirs.cycles, strict=True):
            for figure in FIGURES:
                assert getattr(ours_cycle, figure) == getattr(their_cycle, figure), figure
            assert ours_cycle.depth == ours_cycle.drafted
            assert ours_cycle.parents == list(range(-1, ours_cycle.drafted - 1))
        assert ours.acceptance_length == theirs.acceptance_length and ours.mean_window == theirs.mean_window
        accepted += ours.accepted
    assert accepted > 0


def test_a_tree_accepts_more_than_its_chain(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=3)
    chain = WindowConfig(policy="fixed", size=4)
    tree = WindowConfig(policy="fixed", tree=TreeConfig(max_nodes=20, max_depth=4, branching=4))
    options = {"max_new_tokens": 60, "do_sample": False}
    (_, with_tree), (_, with_chain) = traces(target, drafter, prompt, [tree, chain], **options)
    assert with_tree.acceptance_length > with_chain.acceptance_length


def test_the_drafter_that_is_the_target_is_always_right(prompt):
    target = tiny_target("llama")
    trace = compare(target, tiny_causal_drafter(target, num_layers=4), prompt)
    assert all(cycle.accepted == cycle.depth for cycle in trace.cycles)
    assert all(cycle.depth > 1 for cycle in trace.cycles[:-2])


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3_text"])
def test_every_tree_is_what_a_fresh_drafter_would_propose(family, prompt):
    """Misaligned text, features or caches cost acceptance, never correctness: trees are drafted again from scratch."""
    target = tiny_target(family, **FULL_ATTENTION[family])
    for name, drafter in drafters(target).items():
        text = target.generate(prompt, assistant_model=drafter, window=FIXED, max_new_tokens=24, do_sample=False)
        with torch.no_grad():
            states = target(text, output_hidden_states=True).hidden_states
        length = prompt.shape[1] + 1
        for cycle in drafter.last_trace.cycles:
            features = None
            if drafter.feature_layer_ids:
                features = torch.cat([states[k][:, : length - 1] for k in drafter.feature_layer_ids], dim=-1)
            for node in range(cycle.drafted):
                path, parent = [], cycle.parents[node]
                while parent != -1:
                    path.insert(0, cycle.tokens[parent])
                    parent = cycle.parents[parent]
                state = drafter.new_state()
                logits = drafter.extend(state, text[:, :length], features)
                for token in path:
                    logits = drafter.step(state, torch.tensor([token]))
                ids = drafter.draft_token_ids
                best = logits[0].topk(3).indices
                assert cycle.tokens[node] in (best if ids is None else ids[best]).tolist(), (name, length)
            length += cycle.committed
        assert length == text.shape[1]


@pytest.mark.parametrize("kind", ["eagle3", "causal"])
@pytest.mark.parametrize("eos", [[3], [7, 19], list(range(2, 60))])
def test_end_of_text(kind, eos, prompt):
    for seed in range(4):
        target = tiny_target("llama", seed=seed)
        compare(target, drafters(target)[kind], prompt, eos_token_id=eos, pad_token_id=0)


def test_end_of_text_inside_a_tree(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=4)
    text = target.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
    inside = 0
    for eos in {token for i, token in enumerate(text) if i >= 2 and token not in text[:i]}:
        last = compare(target, drafter, prompt, eos_token_id=eos).cycles[-1]
        assert all(last.parents[i] < 0 or last.tokens[last.parents[i]] != eos for i in range(last.drafted))
        if last.bonus is None:
            assert last.tokens[last.accepted - 1] == eos and last.accepted == last.committed
            inside += 1
    assert inside > 0


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_max_length_is_exact(length, prompt):
    target = tiny_target("llama")
    for drafter in drafters(target).values():
        trace = compare(target, drafter, prompt, max_new_tokens=length)
        left = length - 1
        for cycle in trace.cycles:
            assert cycle.depth < left or (cycle.depth == 0 and cycle.stop == "length")
            left -= cycle.committed


def test_prompt_of_one_token():
    target = tiny_target("llama")
    for drafter in drafters(target).values():
        compare(target, drafter, torch.tensor([[5]]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_left_padding(family, implementation, prompt):
    target = tiny_target(family, **FULL_ATTENTION[family])
    target.set_attn_implementation(implementation)
    padded = torch.cat([torch.zeros((1, 5), dtype=torch.long), prompt], dim=-1)
    mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
    for name, drafter in drafters(target).items():
        trace = compare(target, drafter, padded, attention_mask=mask)
        unpadded = compare(target, drafter, prompt)
        assert trace.prompt_length == prompt.shape[1], name
        # The drafter sees the same text either way, so it proposes the same tokens.
        assert [c.tokens for c in trace.cycles] == [c.tokens for c in unpadded.cycles], name


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 10, "eos_token_id": list(range(2, 50))},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": list(range(10, 60))},
        {"bad_words_ids": [[7], [11, 12]]},
        {"renormalize_logits": True},
        {"forced_eos_token_id": 9, "eos_token_id": 9},
    ],
    ids=lambda options: next(iter(options)),
)
def test_logits_processors(options, prompt):
    target = tiny_target("llama")
    for drafter in drafters(target).values():
        compare(target, drafter, prompt, **options)


def test_processors_that_leave_the_drafter_nothing(prompt):
    target = tiny_target("llama")
    drafter = drafters(target)["eagle3_reduced"]
    trace = compare(target, drafter, prompt, suppress_tokens=drafter.draft_token_ids.tolist())
    assert trace.drafted == 0 and {cycle.stop for cycle in trace.cycles[:-1]} == {"no_support"}


class Collector(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_streamer(prompt):
    target = tiny_target("llama")
    streamer = Collector()
    drafter = drafters(target)["causal"]
    output = target.generate(
        prompt, assistant_model=drafter, window=FIXED, streamer=streamer, max_new_tokens=20, do_sample=False
    )
    assert streamer.tokens == output[0].tolist() and streamer.ended


@pytest.mark.parametrize("kind", ["eagle3", "causal"])
def test_dict_outputs(kind, prompt):
    target = tiny_target("llama")
    options = {"output_scores": True, "output_logits": True, "output_hidden_states": True}
    options |= {"return_dict_in_generate": True, "max_new_tokens": 15, "do_sample": False, "repetition_penalty": 1.2}
    plain = target.generate(prompt, **options)
    output = target.generate(prompt, assistant_model=drafters(target)[kind], window=FIXED, **options)
    assert torch.equal(output.sequences, plain.sequences)
    assert len(output.scores) == len(plain.scores) == 15
    for a, b in zip(output.scores + output.logits, plain.scores + plain.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert len(output.hidden_states) == len(plain.hidden_states) == 15
    for a, b in zip(output.hidden_states, plain.hidden_states, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    cache, wanted = output.past_key_values, plain.past_key_values
    assert cache.get_seq_length() == wanted.get_seq_length()
    for layer, other in zip(cache.layers, wanted.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, atol=1e-4, rtol=1e-4)


class StopAt(StoppingCriteria):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        assert scores is None or len(scores) == input_ids.shape[1] - 8
        return torch.tensor([self.token in input_ids[0, 8:].tolist()])


@pytest.mark.parametrize("scores", [False, True])
def test_stopping_criteria_end_the_text_where_plain_decoding_would(scores, prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=4)
    text = target.generate(prompt, max_new_tokens=30, do_sample=False)[0, 8:].tolist()
    options = {"max_new_tokens": 30, "do_sample": False, "return_dict_in_generate": True, "output_scores": scores}
    for token in text[2:9]:
        options["stopping_criteria"] = [StopAt(token)]
        plain = target.generate(prompt, **options)
        output = target.generate(prompt, assistant_model=drafter, window=FIXED, **options)
        assert torch.equal(output.sequences, plain.sequences)
        assert drafter.last_trace.new_tokens == plain.sequences.shape[1] - 8
        assert output.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()


def test_empty_user_cache(prompt):
    target = tiny_target("llama")
    drafter = drafters(target)["eagle3"]
    plain = target.generate(prompt, max_new_tokens=10, do_sample=False)
    cache = DynamicCache(config=target.config)
    output = target.generate(
        prompt, assistant_model=drafter, past_key_values=cache, window=FIXED, max_new_tokens=10, do_sample=False
    )
    assert torch.equal(output, plain) and cache.get_seq_length() == output.shape[1] - 1


def test_prompt_as_embeddings(prompt):
    target = tiny_target("llama")
    embeds = target.get_input_embeddings()(prompt)
    plain = target.generate(inputs_embeds=embeds, max_new_tokens=20, do_sample=False)
    for drafter in drafters(target).values():
        output = target.generate(
            inputs_embeds=embeds, assistant_model=drafter, window=FIXED, max_new_tokens=20, do_sample=False
        )
        assert torch.equal(output, plain) and drafter.last_trace.drafted > 0


def test_learned_positions_are_not_overrun():
    target = tiny_target("gpt2", n_positions=24)
    drafter = tiny_causal_drafter(target, num_layers=1)
    tested = 0
    for start in range(5, 25):
        prompt = torch.tensor([[start, 17, 3, 60]])
        text = target.generate(prompt, max_new_tokens=20, do_sample=False)[0, 4:].tolist()
        if text[-1] in text[:-1]:
            continue
        options = {"max_length": 60, "do_sample": False, "eos_token_id": text[-1]}
        plain = target.generate(prompt, **options)
        output = target.generate(prompt, assistant_model=drafter, window=FIXED, **options)
        assert plain.shape[1] == 24 and torch.equal(output, plain)
        tested += 1
    assert tested


@pytest.mark.parametrize("kind", ["eagle3", "causal"])
def test_custom_generate_needs_no_hook(kind, prompt):
    target = tiny_target("llama")
    drafter = drafters(target)[kind]
    plain = target.generate(prompt, max_new_tokens=20, do_sample=False)
    uninstall_hook()
    try:
        streamer = Collector()
        options = {"max_new_tokens": 20, "do_sample": False, "window": FIXED}
        output = target.generate(
            prompt, custom_generate=speculative_generate, drafter=drafter, token_streamer=streamer, **options
        )
        assert torch.equal(output, plain) and streamer.tokens == plain[0].tolist() and streamer.ended
        assert drafter.last_trace.window["tree"]["max_nodes"] == 10
        with attached(target):
            output = target.generate(prompt, assistant_model=drafter, streamer=Collector(), **options)
        assert torch.equal(output, plain) and drafter.last_trace.window["tree"]["max_nodes"] == 10
    finally:
        install_hook()


def test_the_trace(prompt, store_costs):
    target = tiny_target("llama")
    drafter = drafters(target)["causal"]
    store_costs(target, drafter)
    for window in (FIXED, COST_AWARE):
        output = target.generate(prompt, assistant_model=drafter, window=window, max_new_tokens=40, do_sample=False)
        trace = drafter.last_trace
        values = json.loads(json.dumps(trace.to_dict()))
        assert values["window"]["tree"] == window.tree.to_dict()
        text = output[0, prompt.shape[1] + 1 :].tolist()
        committed = []
        for cycle, entry in zip(trace.cycles, values["cycles"], strict=True):
            assert cycle.drafted == len(cycle.tokens) == len(cycle.parents) <= window.tree.max_nodes
            assert cycle.parents[: cycle.accepted] == list(range(-1, cycle.accepted - 1))
            assert all(-1 <= parent < cycle.drafted for parent in cycle.parents)
            assert cycle.depth <= window.tree.max_depth and len(cycle.outcomes) <= len(cycle.predicted)
            assert len(cycle.predicted) == len(cycle.confidence) == len(cycle.features)
            assert entry["depth"] == cycle.depth and entry["parents"] == cycle.parents
            assert set(entry["seconds"]) == {"draft", "verify", "other"}
            assert entry["seconds"]["verify"] > 0 and entry["seconds"]["other"] > 0
            committed += cycle.tokens[: cycle.accepted] + ([] if cycle.bonus is None else [cycle.bonus])
        assert committed == text
        assert trace.seconds["draft"] > 0 and trace.prefill_seconds > 0
        predicted, confidence, outcomes = trace.calibration_pairs()
        assert len(predicted) == len(confidence) == len(outcomes) == len(trace.calibration_records()) > 0


def test_bfloat16_runs(prompt):
    target = tiny_target("llama").to(torch.bfloat16)
    for drafter in drafters(target).values():
        output = target.generate(prompt, assistant_model=drafter, window=FIXED, max_new_tokens=20)
        assert output.shape[1] == prompt.shape[1] + 20


def test_cost_model_is_found_by_its_key(prompt, cache_folder):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    dear = CostModel(5.0, [1.0, 2.0], 0.0, 0.03, key=cost_model_key(target, drafter))
    dear.save(cache_folder)
    target.generate(prompt, assistant_model=drafter, window=COST_AWARE, max_new_tokens=12, do_sample=False)
    assert drafter.last_trace.drafted == 0 and drafter.last_trace.cost["gamma"] == 5.0
