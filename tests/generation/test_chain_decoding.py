# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The loop of plain greedy decoding gives what transformers' own loop gives, and is taken only where it does."""

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ppow_hf import LookupDrafter, speculative_generate
from ppow_hf.generation import DraftSampler, dispatch, hook
from ppow_hf.generation.chain_verification import verify_favourites
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", [96, 1, 1000, 49152])
def test_windows_are_accepted_as_far_as_they_are_the_first_maxima(width, dtype):
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(7, width, generator=generator).to(dtype)
    logits[1] = logits[1].round()  # many equal maxima
    logits[2] = 0.0
    logits[4, width // 2 :] = -torch.inf
    logits[5, -1] = 50.0
    own = [row.tolist().index(max(row.tolist())) for row in logits]
    for drafted in range(7):
        for wrong in range(drafted + 1):
            window = own[:drafted]
            if wrong < drafted and width > 1:
                window[wrong] = (window[wrong] + 1) % width
            candidates = torch.tensor([[5, 3, *window]])
            chosen, tokens, scores = verify_favourites(candidates, None, logits[None, : drafted + 1])
            accepted = wrong if width > 1 else drafted
            assert tokens == own[: accepted + 1] == chosen[: accepted + 1].tolist()
            assert torch.equal(scores, logits[None, : drafted + 1])


@pytest.mark.parametrize("mapped", [False, True])
def test_a_favourite_is_what_drawing_greedily_gives(mapped):
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(40) * 2 + 1 if mapped else None
    sampler = DraftSampler(ids, vocab_size=96)
    for scale in (0.01, 1.0, 10.0, 80.0):
        logits = scale * torch.randn(1, 40 if mapped else 96, generator=generator)
        assert sampler.simple(logits)
        scores = sampler.scores(logits, None)
        column, token, stats = sampler.draw(scores)
        mine = sampler.favourite(logits)
        assert torch.equal(mine[0], scores) and torch.equal(mine[1], column) and torch.equal(mine[2], token)
        assert list(mine[3]) == pytest.approx(stats[0].tolist(), rel=1e-4, abs=1e-5)
        exact = logits.double().log_softmax(-1)
        assert mine[3][2] == pytest.approx(-(exact.exp() * exact).sum().item(), abs=2e-5)
    logits[0, 1:] = -torch.inf  # a drafter without doubt
    assert sampler.favourite(logits)[3] == (1.0, 0.0, 0.0, 1 if mapped else 0, 1.0)


class Recorder(BaseStreamer):
    def __init__(self):
        self.parts, self.ended = [], 0

    def put(self, value):
        self.parts.append(value.flatten().tolist())

    def end(self):
        self.ended += 1


class Ends(StoppingCriteria):
    """A criterion of the user's own, that looks at the text."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([input_ids.shape[1] >= 20], device=input_ids.device)


@pytest.fixture
def calls(monkeypatch):
    """Records the calls of the loop."""
    seen, original = [], dispatch.decode_greedily

    def spy(*args, **kwargs):
        seen.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(dispatch, "decode_greedily", spy)
    return seen


def both(monkeypatch, calls, target, drafter, prompt, **kwargs):
    """Text, stream and trace of a call by our loop and by transformers'."""
    results = []
    for ours in (True, False):
        streamer = Recorder()
        with monkeypatch.context() as patch:
            if not ours:
                patch.setattr(dispatch, "is_text", lambda *args, **kwargs: False)
            before = len(calls)
            output = target.generate(
                prompt, assistant_model=drafter, do_sample=False, streamer=streamer, **{"max_new_tokens": 24, **kwargs}
            )
        assert (len(calls) > before) == ours
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        cycles = [(c.tokens, c.accepted, c.committed, c.bonus, c.stop, c.source) for c in drafter.last_trace.cycles]
        results.append((sequences.tolist(), streamer.parts, streamer.ended, cycles))
    assert results[0] == results[1]
    return results[0]


def drafters(target):
    return [tiny_eagle3(target), tiny_causal_drafter(target, num_layers=4), LookupDrafter.from_target(target)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "mistral", "qwen3"])
def test_texts_streams_and_cycles_are_those_of_transformers(family, monkeypatch, calls, prompt):
    target = tiny_target(family)
    for drafter in drafters(target):
        both(monkeypatch, calls, target, drafter, prompt, window="fixed:4")


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("max_new_tokens", [2, 3, 5, 11])
def test_the_length_cuts_in_the_same_place(kind, max_new_tokens, monkeypatch, calls, prompt):
    target = tiny_target()
    drafter = drafters(target)[kind]
    sequences, *_ = both(monkeypatch, calls, target, drafter, prompt, window="fixed:4", max_new_tokens=max_new_tokens)
    assert len(sequences[0]) == prompt.shape[1] + max_new_tokens


@pytest.mark.parametrize("kind", [0, 1])
def test_the_end_of_the_text_cuts_in_the_same_place(kind, monkeypatch, calls, prompt):
    target = tiny_target()
    drafter = drafters(target)[kind]
    text = target.generate(prompt, do_sample=False, max_new_tokens=24)[0, prompt.shape[1] :].tolist()
    for end in sorted(set(text), key=text.index)[:6]:
        sequences, *_ = both(
            monkeypatch, calls, target, drafter, prompt, window="fixed:4", eos_token_id=[end, 95], pad_token_id=0
        )
        assert sequences[0][prompt.shape[1] :] == text[: text.index(end) + 1]


def test_padding_and_position_ids(monkeypatch, calls, prompt):
    target = tiny_target()
    padded = torch.nn.functional.pad(prompt, (3, 0), value=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    alone = target.generate(prompt, do_sample=False, max_new_tokens=24)[0, prompt.shape[1] :].tolist()
    for drafter in drafters(target):
        for kwargs in ({"attention_mask": mask}, {"attention_mask": mask, "position_ids": positions}):
            sequences, *_ = both(monkeypatch, calls, target, drafter, padded, window="fixed:3", **kwargs)
            assert sequences[0][padded.shape[1] :] == alone


@pytest.mark.parametrize("length", [1, 2, 8])
def test_token_types(length, calls, prompt):
    """Every new token has the type of the prompt's last."""
    target, prompt = tiny_target("gpt2"), prompt[:, :length]
    drafter, types = tiny_causal_drafter(target, num_layers=4), torch.arange(length)[None] + 3
    options = {"token_type_ids": types, "do_sample": False, "max_new_tokens": 24}
    plain = target.generate(prompt, **options)
    assert plain.tolist() == target.generate(prompt, assistant_model=drafter, window="fixed:5", **options).tolist()
    assert len(calls) == 1


def test_criteria_of_the_user(monkeypatch, calls, prompt):
    target = tiny_target()
    criteria = StoppingCriteriaList([Ends()])
    plain = target.generate(prompt, do_sample=False, max_new_tokens=24, stopping_criteria=criteria)
    for drafter in drafters(target):
        # Here the other loop is ours, too: transformers' asks once per cycle.
        sequences, *_ = both(monkeypatch, calls, target, drafter, prompt, window="fixed:4", stopping_criteria=criteria)
        assert sequences == plain.tolist() and len(sequences[0]) == 20


def test_outputs_as_a_dictionary(monkeypatch, calls, prompt):
    target = tiny_target()
    drafter = tiny_eagle3(target)
    kwargs = {"max_new_tokens": 12, "return_dict_in_generate": True, "window": "fixed:3"}
    both(monkeypatch, calls, target, drafter, prompt, **kwargs)
    output = target.generate(prompt, assistant_model=drafter, do_sample=False, **kwargs)
    # The last token has not been through the target.
    assert output.past_key_values.get_seq_length() == output.sequences.shape[1] - 1


WAYS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True},
    "warped": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
    "penalised": {"do_sample": False, "repetition_penalty": 1.3},
    "sampled and penalised": {"do_sample": True, "repetition_penalty": 1.3},
    "kept from its end": {"do_sample": True, "min_new_tokens": 9, "eos_token_id": list(range(40)), "pad_token_id": 0},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("window", ["fixed:4", "confidence"])
def test_texts_and_outputs_are_those_of_transformers(way, window, monkeypatch, prompt):
    """Under one seed, token for token, and everything that can be returned of them."""
    target = tiny_target(attn_implementation="eager")  # gives attentions
    outputs = {f"output_{name}": True for name in ("scores", "logits", "hidden_states", "attentions")}
    options = {"max_new_tokens": 20, "return_dict_in_generate": True, **outputs, **WAYS[way]}
    seen, original = [], dispatch.decode_chains
    monkeypatch.setattr(dispatch, "decode_chains", lambda *args, **kw: seen.append(1) or original(*args, **kw))
    for drafter in drafters(target)[: None if window == "fixed:4" else 2]:  # lookup knows no confidence
        results = []
        for ours in (True, False):
            with monkeypatch.context() as patch:
                if not ours:
                    patch.setattr(dispatch, "is_text", lambda *args, **kwargs: False)
                torch.manual_seed(5)
                results.append(target.generate(prompt, assistant_model=drafter, window=window, **options))
            assert len(seen) == 1
        seen.clear()
        mine, theirs = results
        assert mine.sequences.tolist() == theirs.sequences.tolist()
        for name in ("scores", "logits", "hidden_states", "attentions"):
            one, other = getattr(mine, name), getattr(theirs, name)
            assert len(one) == len(other) == mine.sequences.shape[1] - prompt.shape[1]
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_without_the_hook(calls, prompt):
    target = tiny_target()
    drafter = tiny_eagle3(target)
    plain = target.generate(prompt, do_sample=False, max_new_tokens=16)
    hook.uninstall_hook()
    try:
        options = {"window": "fixed:3", "do_sample": False, "max_new_tokens": 16}
        text = target.generate(prompt, custom_generate=speculative_generate, drafter=drafter, **options)
    finally:
        hook.install_hook()
    assert text.tolist() == plain.tolist()
    assert len(calls) == 1


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": True},
        {"repetition_penalty": 1.2},
        {"min_new_tokens": 5, "eos_token_id": 7},
        {"return_dict_in_generate": True, "output_scores": True},
        {"return_dict_in_generate": True, "output_hidden_states": True},
        {"inputs_embeds": None},
    ],
)
def test_everything_else_is_left_to_other_loops(kwargs, calls, prompt):
    target = tiny_target()
    drafter = tiny_eagle3(target)
    if "inputs_embeds" in kwargs:
        kwargs = {"inputs_embeds": target.get_input_embeddings()(prompt).detach()}
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "window": "fixed:2", **kwargs}
    target.generate(None if "inputs_embeds" in kwargs else prompt, assistant_model=drafter, **options)
    assert not calls


GEMMA3N = {
    "head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
    "laurel_rank": 4,
    "altup_num_inputs": 2,
    "num_kv_shared_layers": 2,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "activation_sparsity_pattern": [0.0] * 4,
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gemma3n_text"])
@pytest.mark.parametrize("length", [3, 12])
def test_attentions_are_those_of_plain_decoding(family, attention, length):
    """Also of layers that see the last eight tokens alone; and none, where the implementation gives none."""
    target = tiny_target(family, attn_implementation=attention, **(GEMMA3N if family == "gemma3n_text" else {}))
    shares = family == "gemma3n_text"  # some of its layers have no keys of their own
    drafter = LookupDrafter.from_target(target) if shares else tiny_causal_drafter(target, num_layers=4)
    ids = torch.tensor([[7, 8, 9] * (length // 3)])
    options = {"max_new_tokens": 14, "do_sample": False, "return_dict_in_generate": True, "output_attentions": True}
    plain = target.generate(ids, **options)
    own = target.generate(ids, assistant_model=drafter, window="lookup:4" if shares else "fixed:4", **options)
    assert drafter.last_trace.drafted > 0 and torch.equal(own.sequences, plain.sequences)
    assert shares or drafter.last_trace.accepted > 0
    assert len(own.attentions) == len(plain.attentions) == 14
    for mine, theirs in zip(own.attentions, plain.attentions, strict=True):
        assert len(mine) == len(theirs) == (4 if attention == "eager" else 0)
        for layer, other in zip(mine, theirs, strict=True):
            assert layer.shape == other.shape and (layer - other).abs().max() < 1e-5
