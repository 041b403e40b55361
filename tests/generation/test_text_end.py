# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Whatever ends a text ends it where it ends plain decoding: every window, every loop, every way to call."""

from contextlib import contextmanager

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import DynamicCache, PreTrainedTokenizerFast, StoppingCriteria, StoppingCriteriaList
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer

from ppow_hf import LookupDrafter, WindowConfig, speculative_generate
from ppow_hf.generation import TreeConfig, attached, install_hook, uninstall_hook
from ppow_hf.generation.text_end import OwnEnd, TextEnd
from tests.generation.scripted import ScriptedDrafter, ScriptedTarget, streams
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

WINDOWS = {
    "fixed": "fixed:5",
    "cost_aware": WindowConfig(policy="cost_aware", min_size=0),
    "heuristic": "heuristic:4",
    "confidence": WindowConfig(policy="confidence", threshold=0.05),
    "divergence": WindowConfig(policy="divergence", size=4, stretch=6.0),
    "mixed": "mixed",
    "lookup": "lookup",
    "lookup_fixed": "lookup:5",
    "tree": WindowConfig(policy="fixed", tree=TreeConfig(max_nodes=10, max_depth=4, branching=3)),
    "mixed_tree": "mixed_tree:8",
}
REPEATING = torch.tensor([[5, 17, 3, 60, 9, 44, 5, 17, 3, 60, 9, 44, 5, 17, 3]])
NEW = 30


@pytest.fixture(scope="module")
def tokenizer():
    """96 tokens of one or two letters, so that a stop string may begin or end within a token."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(first + second for first in letters[:3] for second in letters)][:96]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made)


class Collector(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], 0

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended += 1


class StopAt(StoppingCriteria):
    """Ends the text behind the first of some tokens, and remembers what it was asked."""

    def __init__(self, tokens, start):
        self.tokens, self.start, self.asked = set(tokens), start, []

    def __call__(self, input_ids, scores, **kwargs):
        self.asked.append((input_ids[0].tolist(), None if scores is None else len(scores)))
        found = not self.tokens.isdisjoint(input_ids[0, self.start :].tolist())
        return torch.tensor([found], device=input_ids.device)


class Long(StoppingCriteria):
    """Ends the text at a length, which only it knows."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([input_ids.shape[1] >= self.length], device=input_ids.device)


@contextmanager
def route(name, target, drafter):
    """The ways to call: what `generate` is given for the drafter, with the hook in or out."""
    if name == "hook":
        yield {"assistant_model": drafter}
        return
    uninstall_hook()
    try:
        if name == "custom_generate":
            yield {"custom_generate": speculative_generate, "drafter": drafter}
        else:
            with attached(target):
                yield {"assistant_model": drafter}
    finally:
        install_hook()


def plain_text(target, prompt, **kwargs):
    return target.generate(prompt, **{"max_new_tokens": NEW, "do_sample": False, **kwargs})


# ---- greedy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_stop_strings(family, name, tokenizer, store_costs):
    target = tiny_target(family)
    if "tree" in name and family == "mistral":
        pytest.skip("sliding windows take no trees")
    drafter = tiny_causal_drafter(target, num_layers=4)
    store_costs(target, drafter, gamma=0.001)
    text = tokenizer.decode(plain_text(target, REPEATING)[0, REPEATING.shape[1] :])
    longest = 0
    for place in range(3, 20, 2):
        options = {"stop_strings": [text[place : place + 3]], "tokenizer": tokenizer}
        plain = plain_text(target, REPEATING, **options)
        assert plain.shape[1] < REPEATING.shape[1] + NEW
        output = plain_text(target, REPEATING, assistant_model=drafter, window=WINDOWS[name], **options)
        assert output.tolist() == plain.tolist()
        longest = max(longest, *(cycle.drafted for cycle in drafter.last_trace.cycles), 0)
        assert drafter.last_trace.new_tokens == plain.shape[1] - REPEATING.shape[1]
    assert longest > 1  # else nothing could have run past the end


@pytest.mark.parametrize("name", ["lookup", "lookup_fixed", "mixed"])
def test_stop_strings_in_a_text_that_repeats_itself(name, tokenizer, store_costs):
    """Lookup is right about all of it, and so proposes what lies behind the end."""
    script = streams(120)["loop"]
    target, prompt = ScriptedTarget(script), torch.tensor([script[:45]])
    # The drafter, where there is one, is wrong.
    drafter = ScriptedDrafter(script, [0.5] * len(script), [False] * len(script))
    drafter = drafter if name == "mixed" else LookupDrafter.from_target(target)
    store_costs(target, drafter)
    text, beyond = tokenizer.decode(script[45 : 45 + NEW]), 0
    for place in range(4, 24, 3):
        options = {"stop_strings": [text[place : place + 4]], "tokenizer": tokenizer}
        plain = plain_text(target, prompt, **options)
        assert plain.shape[1] < 45 + NEW
        output = plain_text(target, prompt, assistant_model=drafter, window=WINDOWS[name], **options)
        assert output.tolist() == plain.tolist()
        beyond += sum(cycle.looked_up > cycle.accepted for cycle in drafter.last_trace.cycles)
    assert beyond > 3


@pytest.mark.parametrize("way", ["custom_generate", "attached", "hook"])
@pytest.mark.parametrize("window", ["fixed:5", "lookup:5", WINDOWS["tree"]], ids=["chain", "lookup", "tree"])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.2}], ids=["plain", "processed"])
def test_every_way_to_call(options, window, way):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=4)
    text, start = plain_text(target, REPEATING, **options)[0].tolist(), REPEATING.shape[1]
    for token in text[start + 2 : start + 9]:
        plain_criterion, criterion, streamer = StopAt([token], start), StopAt([token], start), Collector()
        plain = plain_text(target, REPEATING, stopping_criteria=[plain_criterion], **options)
        with route(way, target, drafter) as how:
            how["token_streamer" if way == "custom_generate" else "streamer"] = streamer
            output = plain_text(target, REPEATING, stopping_criteria=[criterion], window=window, **how, **options)
        assert output.tolist() == plain.tolist()
        # Criteria that count or remember are asked neither more nor less often.
        assert criterion.asked == plain_criterion.asked
        assert streamer.tokens == output[0].tolist() and streamer.ended == 1


@pytest.mark.parametrize("way", ["custom_generate", "attached"])
def test_stop_strings_without_the_hook(way, tokenizer):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=4)
    text = tokenizer.decode(plain_text(target, REPEATING)[0, REPEATING.shape[1] :])
    words = [text[6:9], text[11:14]]
    plain = plain_text(target, REPEATING, stop_strings=words, tokenizer=tokenizer)
    options = {"stop_strings": words, "tokenizer": tokenizer}
    if way == "custom_generate":  # `generate` keeps the tokenizer from functions
        options = {"stopping_criteria": [StopStringCriteria(tokenizer, words)]}
    with route(way, target, drafter) as how:
        output = plain_text(target, REPEATING, window="fixed:5", **how, **options)
    assert output.tolist() == plain.tolist() and plain.shape[1] < REPEATING.shape[1] + NEW


def same(found, wanted, names):
    for name in names:
        mine, theirs = getattr(found, name), getattr(wanted, name)
        assert len(mine) == len(theirs), name
        for a, b in zip(mine, theirs, strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    assert found.past_key_values.get_seq_length() == wanted.past_key_values.get_seq_length()
    for mine, theirs in zip(found.past_key_values.layers, wanted.past_key_values.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine.values, theirs.values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("kind", ["eagle3", "causal", "lookup"])
def test_outputs_and_cache_end_with_the_text(kind, family):
    target = tiny_target(family)
    make = {"eagle3": tiny_eagle3, "lookup": LookupDrafter.from_target, "causal": lambda t: tiny_causal_drafter(t, 4)}
    drafter, start = make[kind](target), REPEATING.shape[1]
    options = {"output_scores": True, "output_logits": True, "output_hidden_states": True, "repetition_penalty": 1.1}
    options |= {"return_dict_in_generate": True}
    text = plain_text(target, REPEATING, **options).sequences[0].tolist()
    for token in text[start + 2 : start + 6]:
        plain = plain_text(target, REPEATING, stopping_criteria=[StopAt([token], start)], **options)
        criterion = StopAt([token], start)
        how = {"assistant_model": drafter, "window": "fixed:5", "stopping_criteria": [criterion]}
        output = plain_text(target, REPEATING, **how, **options)
        assert output.sequences.tolist() == plain.sequences.tolist()
        same(output, plain, ["scores", "logits", "hidden_states"])
        assert all(known == len(asked) - start for asked, known in criterion.asked)


def test_attentions():
    target = tiny_target("llama")
    target.set_attn_implementation("eager")
    drafter, start = tiny_causal_drafter(target, num_layers=4), REPEATING.shape[1]
    options = {"return_dict_in_generate": True, "output_attentions": True}
    token = plain_text(target, REPEATING)[0, start + 6].item()
    plain = plain_text(target, REPEATING, stopping_criteria=[StopAt([token], start)], **options)
    how = {"assistant_model": drafter, "window": "fixed:5", "stopping_criteria": [StopAt([token], start)]}
    output = plain_text(target, REPEATING, **how, **options)
    assert output.sequences.tolist() == plain.sequences.tolist()
    same(output, plain, ["attentions"])


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_the_users_cache_serves_the_next_turn(family):
    target = tiny_target(family)
    drafter, start = tiny_causal_drafter(target, num_layers=4), REPEATING.shape[1]
    token = plain_text(target, REPEATING)[0, start + 6].item()
    texts = []
    for how in ({}, {"assistant_model": drafter, "window": "fixed:5"}):
        cache = DynamicCache(config=target.config)
        criteria = {"stopping_criteria": [StopAt([token], start)], "past_key_values": cache}
        text = plain_text(target, REPEATING, **criteria, **how)
        assert cache.get_seq_length() == text.shape[1] - 1
        turn = torch.cat([text, torch.tensor([[7, 21, 8]])], dim=-1)
        texts.append(plain_text(target, turn, past_key_values=cache).tolist())
    assert texts[0] == texts[1]


def test_other_inputs(prompt):
    """Padding, positions, token types and embeddings, in the loop that asks about every token."""
    target, gpt2 = tiny_target("llama"), tiny_target("gpt2")
    padded = torch.cat([torch.zeros((1, 5), dtype=torch.long), prompt], dim=-1)
    mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    embeds = target.get_input_embeddings()(prompt).detach()
    calls = [
        (target, padded, {"attention_mask": mask}),
        (target, padded, {"attention_mask": mask, "position_ids": positions}),
        (target, None, {"inputs_embeds": embeds}),
        (gpt2, prompt, {"token_type_ids": torch.full_like(prompt, 3)}),
    ]
    for model, ids, inputs in calls:
        drafter = tiny_causal_drafter(model, num_layers=4)
        # Embeddings have no token ids: the text then begins behind them.
        start = 0 if ids is None else ids.shape[1]
        for options in ({}, {"suppress_tokens": [1, 2]}):
            texts = [
                plain_text(model, ids, stopping_criteria=[Long(start + 9)], **inputs, **options, **how).tolist()
                for how in ({}, {"assistant_model": drafter, "window": "fixed:5"})
            ]
            assert texts[0] == texts[1] and len(texts[0][0]) == start + 9
            # Of a prompt given as embeddings this drafter sees nothing.
            assert drafter.last_trace.accepted > 1 or (ids is None and drafter.last_trace.drafted > 1)


@pytest.mark.parametrize("window", ["fixed:5", WINDOWS["tree"]], ids=["chain", "tree"])
def test_criteria_of_the_users_that_are_of_the_calls_own_kinds(window, prompt):
    """They take the place of the call's own, with other limits."""
    target = tiny_target("llama")
    drafter, start = tiny_causal_drafter(target, num_layers=4), prompt.shape[1]
    text = plain_text(target, prompt)[0].tolist()
    for criterion in (MaxLengthCriteria(start + 6), EosTokenCriteria(text[start + 6]), EosTokenCriteria([95, 94])):
        plain = plain_text(target, prompt, stopping_criteria=[criterion], eos_token_id=95)
        how = {"assistant_model": drafter, "window": window}
        output = plain_text(target, prompt, stopping_criteria=[criterion], eos_token_id=95, **how)
        assert output.tolist() == plain.tolist()


@pytest.mark.parametrize("window", ["fixed:5", "lookup:5", WINDOWS["tree"]], ids=["chain", "lookup", "tree"])
@pytest.mark.parametrize("sampled", [False, True])
def test_max_time(sampled, window):
    target = tiny_target("llama")
    drafter, start = tiny_causal_drafter(target, num_layers=4), REPEATING.shape[1]
    how = {"assistant_model": drafter, "window": window, "do_sample": sampled, "max_new_tokens": 200}
    torch.manual_seed(0)
    # No time at all: as in plain decoding, what the prompt's pass gives is kept.
    output = target.generate(REPEATING, max_time=0.0, **how)
    assert output.shape[1] == plain_text(target, REPEATING, max_time=0.0).shape[1] == start + 1
    texts = []
    for time in (None, 0.05):
        torch.manual_seed(0)
        texts.append(target.generate(REPEATING, max_time=time, **how)[0].tolist())
    whole, cut = texts
    assert start < len(cut) <= len(whole) and cut == whole[: len(cut)]


# ---- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["hook", "custom_generate", "attached"])
@pytest.mark.parametrize("kind", ["eagle3", "causal", "lookup", "tree"])
def test_a_sampled_text_is_cut_and_nothing_else(kind, way):
    """By the same seed, the text without the criterion, up to the token that meets it."""
    target = tiny_target("llama")
    make = {"eagle3": tiny_eagle3, "lookup": LookupDrafter.from_target}
    drafter = make.get(kind, lambda t: tiny_causal_drafter(t, num_layers=4))(target)
    window = WINDOWS["tree"] if kind == "tree" else "fixed:5"
    start, cut_within = REPEATING.shape[1], 0
    options = {"do_sample": True, "top_p": 0.9, "return_dict_in_generate": True, "output_scores": True}
    options |= {"max_new_tokens": NEW, "window": window, "output_logits": True}
    with route(way, target, drafter) as how:
        for seed in range(4):
            torch.manual_seed(seed)
            whole = target.generate(REPEATING, **how, **options)
            ends = list(range(0, 96, 7))
            text = whole.sequences[0].tolist()
            first = next((i for i in range(start, len(text)) if text[i] in ends), len(text) - 1)
            streamer = {"token_streamer" if way == "custom_generate" else "streamer": Collector()}
            torch.manual_seed(seed)
            found = target.generate(REPEATING, stopping_criteria=[StopAt(ends, start)], **streamer, **how, **options)
            assert found.sequences[0].tolist() == text[: first + 1]
            (collected,) = streamer.values()
            assert collected.tokens == text[: first + 1] and collected.ended == 1
            assert len(found.scores) == len(found.logits) == first + 1 - start
            for a, b in zip(found.scores + found.logits, whole.scores + whole.logits, strict=False):
                assert a.shape == b.shape
            for a, b in zip(found.scores, whole.scores, strict=False):
                torch.testing.assert_close(a, b)
            assert found.past_key_values.get_seq_length() == first
            trace = drafter.last_trace
            assert trace.new_tokens == first + 1 - start
            cut_within += any(c.bonus is None or c.committed < c.accepted + 1 for c in trace.cycles)
    assert cut_within or kind != "causal"


# ---- when it is asked ----------------------------------------------------------------------------------------------


class Counted(StoppingCriteriaList):
    calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return super().__call__(*args, **kwargs)


def test_the_calls_own_criteria_are_asked_once_per_cycle(prompt):
    config = tiny_target("llama").generation_config
    config.max_length, config.eos_token_id = 20, [3, 9]
    new = torch.tensor([[1, 4, 5, 6]])
    own = [MaxLengthCriteria(20), EosTokenCriteria([3]), MaxTimeCriteria(100.0)]
    for criteria, asked in (
        (own, 1),
        ([*own, StopAt([70], 8)], 4),
        ([MaxLengthCriteria(19)], 4),
        ([EosTokenCriteria([3, 70])], 4),
    ):
        counted = Counted(criteria)
        text, ended = TextEnd(counted, config).extend(prompt, new)
        assert counted.calls == asked and not ended
        assert text.tolist() == torch.cat([prompt, new], dim=-1).tolist()
    text, ended = TextEnd(Counted([StopAt([4], 8)]), config).extend(prompt, new)
    assert ended and text[0, 8:].tolist() == [1, 4]


def test_synced_gpus_are_refused(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    options = {"assistant_model": drafter, "window": "fixed:3", "max_new_tokens": 6, "synced_gpus": True}
    with pytest.raises(ValueError, match="`synced_gpus=True` cannot be combined.*`stopping_criteria`"):
        target.generate(prompt, stopping_criteria=[StopAt([1], 8)], **options)


def test_length_and_end_tokens_are_decided_on_the_host():
    """As the criteria themselves would have it, and only where there is nothing else to ask."""
    ends = [3, 9]
    criteria = StoppingCriteriaList([MaxLengthCriteria(8), EosTokenCriteria([3, 9]), MaxLengthCriteria(9)])
    own = OwnEnd.of(criteria)
    for length in (6, 7, 8, 9):
        for last in (3, 4, 9):
            text = torch.full((1, length), 1)
            text[0, -1] = last
            assert own.met(length, last) == bool(criteria(text, None).all()) == (length >= 8 or last in ends)
    assert OwnEnd.of(StoppingCriteriaList([MaxLengthCriteria(8), MaxTimeCriteria(5.0)])) is None
    assert OwnEnd.of(StoppingCriteriaList([MaxLengthCriteria(8, max_position_embeddings=7)])) is None  # it would warn
    assert OwnEnd.of(StoppingCriteriaList([MaxLengthCriteria(8, max_position_embeddings=8)])) is not None
    assert OwnEnd.of(StoppingCriteriaList([EosTokenCriteria([3])])) is None

    class Asked(StoppingCriteriaList):
        pass

    assert OwnEnd.of(Asked(criteria)) is None
