# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Greedy speculative text equals plain text in float32: every target family, drafter family and policy."""

from contextlib import nullcontext

import pytest
import torch
from transformers import DynamicCache, StoppingCriteria, TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer

from ppow_hf import WindowConfig, speculative_generate
from ppow_hf.generation import attached
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import TARGET_FAMILIES, tiny_causal_drafter, tiny_eagle3, tiny_target

WINDOWS = {
    "fixed": WindowConfig(policy="fixed", size=4),
    "heuristic": WindowConfig(policy="heuristic", size=3),
    "confidence": WindowConfig(policy="confidence", threshold=0.2, min_size=0),
    "divergence": WindowConfig(policy="divergence", size=4, stretch=6.0),
    "divergence_kl": WindowConfig(policy="divergence", divergence_metric="kl", stretch=6.0),
    "cost_aware": WindowConfig(policy="cost_aware", min_size=0),
}


def drafters(target):
    vocab_size = target.config.get_text_config().vocab_size
    return {
        "eagle3": tiny_eagle3(target),
        "eagle3_reduced": tiny_eagle3(target, draft_vocab_size=vocab_size // 2),
        "causal": tiny_causal_drafter(target, num_layers=3),
    }


def compare(target, drafter, prompt, window="fixed:4", **kwargs):
    kwargs = {"do_sample": False, "max_new_tokens": 24, **kwargs}
    plain = target.generate(prompt, **kwargs)
    output = target.generate(prompt, assistant_model=drafter, window=window, **kwargs)
    assert output.tolist() == plain.tolist()
    assert drafter.last_trace.new_tokens == plain.shape[1] - prompt.shape[1]
    return drafter.last_trace


@pytest.mark.parametrize("family", sorted(TARGET_FAMILIES))
def test_families_and_policies(family, prompt, store_costs):
    target = tiny_target(family)
    accepted = 0
    for drafter in drafters(target).values():
        store_costs(target, drafter)
        for window in WINDOWS.values():
            accepted += compare(target, drafter, prompt, window).accepted
    assert accepted > 0  # else nothing but plain decoding was tested


@pytest.mark.parametrize("kind", ["eagle3", "eagle3_reduced", "causal"])
def test_perfect_windows_are_committed_whole(kind, prompt):
    """A drafter that is the target itself is always right: alignment of tokens, features and caches is exact."""
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=4) if kind == "causal" else drafters(target)[kind]
    trace = compare(target, drafter, prompt, "fixed:4")
    if kind == "causal":
        assert all(cycle.accepted == cycle.drafted for cycle in trace.cycles)
        assert trace.cycles[0].committed == 5


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt_neox"])
def test_every_window_is_what_a_fresh_drafter_would_propose(family, prompt):
    """
    Text and features reach the drafter in pieces, over many cycles. Whatever is misaligned costs acceptance, never
    correctness, so equal texts cannot show it: every window is drafted again from scratch.
    """
    target = tiny_target(family)
    for name, drafter in drafters(target).items():
        text = target.generate(
            prompt, assistant_model=drafter, window="fixed:3", max_new_tokens=30, do_sample=False, min_new_tokens=30
        )
        with torch.no_grad():
            states = target(text, output_hidden_states=True).hidden_states
        length = prompt.shape[1] + 1
        for cycle in drafter.last_trace.cycles:
            features = None
            if drafter.feature_layer_ids:
                features = torch.cat([states[k][:, : length - 1] for k in drafter.feature_layer_ids], dim=-1)
            state = drafter.new_state()
            logits = drafter.extend(state, text[:, :length], features)
            tokens = []
            while len(tokens) < cycle.drafted:
                column = logits.argmax(-1)
                token = column if drafter.draft_token_ids is None else drafter.draft_token_ids[column]
                tokens.append(int(token))
                logits = drafter.step(state, token)
            assert tokens == cycle.tokens, (name, length)
            length += cycle.committed
        assert length == text.shape[1]


@pytest.mark.parametrize("kind", ["eagle3", "causal"])
@pytest.mark.parametrize("eos", [[3], [7, 19], list(range(2, 60))])
def test_end_of_text(kind, eos, prompt):
    for seed in range(4):
        target = tiny_target("llama", seed=seed)
        drafter = drafters(target)[kind]
        for window in ("fixed:6", "confidence"):
            compare(target, drafter, prompt, window, eos_token_id=eos, pad_token_id=0)


def test_end_of_text_inside_a_perfect_window(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=4)
    text = target.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
    eos = next(token for i, token in enumerate(text) if i >= 3 and token not in text[:i])
    trace = compare(target, drafter, prompt, "fixed:8", eos_token_id=eos)
    last = trace.cycles[-1]
    assert last.stop == "eos" and last.tokens[-1] == eos and last.accepted == last.drafted and last.bonus is None


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_max_length_is_exact(length, prompt):
    target = tiny_target("llama")
    for drafter in drafters(target).values():
        compare(target, drafter, prompt, "fixed:8", max_new_tokens=length)


def test_prompt_of_one_token():
    target = tiny_target("llama")
    for drafter in drafters(target).values():
        compare(target, drafter, torch.tensor([[5]]))


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma3_text"])
def test_left_padding(family, prompt):
    target = tiny_target(family)
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
def test_logits_processors(options, prompt, store_costs):
    target = tiny_target("llama")
    for drafter in drafters(target).values():
        store_costs(target, drafter)
        for window in ("fixed:5", "cost_aware", "confidence"):
            compare(target, drafter, prompt, window, **options)


def test_processors_that_leave_the_drafter_nothing(prompt):
    """All tokens of the draft vocabulary forbidden: there is nothing to draft, and nothing breaks."""
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
    drafter = drafters(target)["causal"]
    streamer = Collector()
    output = target.generate(
        prompt, assistant_model=drafter, window="fixed:4", streamer=streamer, max_new_tokens=20, do_sample=False
    )
    assert streamer.tokens == output[0].tolist() and streamer.ended


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("window", ["fixed:4", "tree"])
def test_streamers_of_transformers(window, do_sample, capsys, store_costs):
    """Several tokens come at once. The text that is printed is the one that is returned, with all of them."""
    target, tokenizer = char_target(), char_tokenizer()
    drafter = tiny_causal_drafter(target, num_layers=1)
    store_costs(target, drafter)
    inputs = tokenizer("abcabcabcab", return_tensors="pt", add_special_tokens=False)
    for streamer in (TextStreamer(tokenizer, skip_prompt=True), TextIteratorStreamer(tokenizer, skip_prompt=True)):
        torch.manual_seed(3)
        text = target.generate(
            **inputs, assistant_model=drafter, window=window, streamer=streamer, max_new_tokens=30, do_sample=do_sample
        )
        printed = capsys.readouterr().out
        shown = printed.removesuffix("\n") if type(streamer) is TextStreamer else "".join(streamer)
        assert shown == tokenizer.decode(text[0, inputs["input_ids"].shape[1] :])
        assert len(shown) > 5 and drafter.last_trace.cycles


@pytest.mark.parametrize("implementation", ["dynamic", "offloaded"])
def test_caches(implementation, prompt):
    if implementation == "offloaded" and not torch.cuda.is_available():
        pytest.skip("transformers' offloaded cache needs a GPU")
    for family in ("llama", "gemma3_text"):
        target = tiny_target(family)
        for drafter in drafters(target).values():
            compare(target, drafter, prompt, cache_implementation=implementation)


@pytest.mark.parametrize("way", ["assistant_model", "stored default", "attached", "custom_generate"])
@pytest.mark.parametrize("implementation", ["static", "offloaded_static", "quantized"])
@pytest.mark.parametrize("window", ["fixed:3", "lookup:3", "tree"])
def test_caches_that_rejected_tokens_cannot_be_taken_out_of(window, implementation, way, prompt, store_costs):
    """A growing one is used in their place, by every way in: the text is the same, and so is what else is returned."""
    target = tiny_target("llama")
    drafter = tiny_eagle3(target)
    store_costs(target, drafter)
    options = {"do_sample": False, "max_new_tokens": 16, "return_dict_in_generate": True}
    plain = target.generate(prompt, **options).sequences
    call = {"cache_implementation": implementation, "window": window, "assistant_model": drafter, **options}
    if way == "stored default":
        target.generation_config.cache_implementation = call.pop("cache_implementation")
    elif way == "custom_generate":
        if implementation == "quantized":
            pytest.skip("`generate` makes the cache before it calls a function, and this one needs another package")
        call |= {"custom_generate": speculative_generate, "drafter": call.pop("assistant_model")}
    with attached(target) if way == "attached" else nullcontext():
        output = target.generate(prompt, **call)
    assert torch.equal(output.sequences, plain)
    assert type(output.past_key_values) is DynamicCache
    assert output.past_key_values.get_seq_length() == plain.shape[1] - 1
    assert drafter.last_trace.cycles
    if way == "stored default":
        assert target.generation_config.cache_implementation == implementation  # a call changes no stored default


def test_static_caches_of_targets_with_sliding_windows(prompt):
    target = tiny_target("gemma3_text")
    drafter = tiny_eagle3(target)
    options = {"do_sample": False, "max_new_tokens": 24}
    plain = target.generate(prompt, cache_implementation="static", **options)
    assert torch.equal(
        target.generate(prompt, assistant_model=drafter, cache_implementation="static", window="fixed:3", **options),
        plain,
    )


@pytest.mark.parametrize("kind", ["eagle3", "causal"])
def test_dict_outputs(kind, prompt):
    target = tiny_target("llama")
    drafter = drafters(target)[kind]
    options = {"output_scores": True, "output_logits": True, "output_hidden_states": True}
    options |= {"return_dict_in_generate": True, "max_new_tokens": 15, "do_sample": False}
    plain = target.generate(prompt, **options)
    output = target.generate(prompt, assistant_model=drafter, window="fixed:4", **options)
    assert torch.equal(output.sequences, plain.sequences)
    assert len(output.scores) == len(plain.scores) == 15
    for a, b in zip(output.scores + output.logits, plain.scores + plain.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert len(output.hidden_states) == len(plain.hidden_states) == 15
    for a, b in zip(output.hidden_states, plain.hidden_states, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    assert output.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()


class StopAt(StoppingCriteria):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([self.token in input_ids[0, 8:].tolist()])


def test_stopping_criteria_end_the_text(prompt):
    target = tiny_target("llama")
    drafter = drafters(target)["causal"]
    text = target.generate(prompt, max_new_tokens=30, do_sample=False)[0, 8:].tolist()
    token = text[6]
    output = target.generate(
        prompt,
        assistant_model=drafter,
        window="fixed:4",
        stopping_criteria=[StopAt(token)],
        max_new_tokens=30,
        do_sample=False,
    )
    assert output[0, 8:].tolist() == text[: text.index(token) + 1]
    assert drafter.last_trace.new_tokens == text.index(token) + 1


def test_empty_user_cache(prompt):
    target = tiny_target("llama")
    drafter = drafters(target)["eagle3"]
    compare(target, drafter, prompt)
    plain = target.generate(prompt, max_new_tokens=10, do_sample=False)
    cache = DynamicCache(config=target.config)
    output = target.generate(
        prompt, assistant_model=drafter, past_key_values=cache, window="fixed:3", max_new_tokens=10, do_sample=False
    )
    assert torch.equal(output, plain)


def test_prompt_as_embeddings(prompt):
    target = tiny_target("llama")
    embeds = target.get_input_embeddings()(prompt)
    plain = target.generate(inputs_embeds=embeds, max_new_tokens=20, do_sample=False)
    for drafter in drafters(target).values():
        output = target.generate(
            inputs_embeds=embeds, assistant_model=drafter, window="fixed:3", max_new_tokens=20, do_sample=False
        )
        assert torch.equal(output, plain)
        assert drafter.last_trace.drafted > 0


def test_learned_positions_are_not_overrun():
    target = tiny_target("gpt2", n_positions=24)
    drafter = tiny_causal_drafter(target, num_layers=1)
    tested = 0
    for start in range(5, 25):
        prompt = torch.tensor([[start, 17, 3, 60]])
        text = target.generate(prompt, max_new_tokens=20, do_sample=False)[0, 4:].tolist()
        eos = text[-1]
        if eos in text[:-1]:
            continue
        # Plain decoding ends at the last position there is; a window beyond it would crash.
        options = {"max_length": 60, "do_sample": False, "eos_token_id": eos}
        plain = target.generate(prompt, **options)
        output = target.generate(prompt, assistant_model=drafter, window="fixed:8", **options)
        assert plain.shape[1] == 24 and torch.equal(output, plain)
        tested += 1
    assert tested


def test_skipped_cycles_are_caught_up(prompt):
    """A policy may draft nothing for a while; tokens and features then wait and are committed together."""
    target = tiny_target("llama")
    for name, drafter in drafters(target).items():
        generator_of = type(drafter).make_candidate_generator

        def make(target, drafter=drafter, generator_of=generator_of, **kwargs):
            generator = generator_of(drafter, target, **kwargs)
            sizes = iter([0, 0, 3, 0, 2, 0, 0, 0] * 10)
            generator.policy.target_size = lambda: next(sizes)
            return generator

        steady = compare(target, drafter, prompt, "fixed:3")
        drafter.make_candidate_generator = make
        trace = compare(target, drafter, prompt, "fixed:3")
        assert {0, 3, 2} >= {cycle.drafted for cycle in trace.cycles}
        assert trace.cycles[0].drafted == 0 and trace.drafted > 0, name
        # After a gap the drafter proposes what it would have proposed without one.
        position = 1 + sum(cycle.committed for cycle in trace.cycles[:2])
        offset = 1
        for cycle in steady.cycles:
            if offset == position:
                assert cycle.tokens == trace.cycles[2].tokens, name
            offset += cycle.committed


@pytest.mark.parametrize("kind", ["eagle3", "causal"])
def test_custom_generate(kind, prompt):
    target = tiny_target("llama")
    drafter = drafters(target)[kind]
    plain = target.generate(prompt, max_new_tokens=20, do_sample=False)
    streamer = Collector()
    output = target.generate(
        prompt,
        custom_generate=speculative_generate,
        drafter=drafter,
        window="fixed:3",
        token_streamer=streamer,
        max_new_tokens=20,
        do_sample=False,
    )
    assert torch.equal(output, plain)
    assert streamer.tokens == plain[0].tolist() and streamer.ended
    assert drafter.last_trace.new_tokens == 20 and drafter.last_trace.window["size"] == 3
    assert "_get_candidate_generator" not in target.__dict__


def test_bfloat16_runs(prompt):
    target = tiny_target("llama").to(torch.bfloat16)
    for drafter in drafters(target).values():
        output = target.generate(prompt, assistant_model=drafter, window="fixed:3", max_new_tokens=20)
        assert output.shape[1] == prompt.shape[1] + 20
