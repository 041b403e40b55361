# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Packed verification against plain forward passes over prefix + window, written out here once more."""

import gc
import importlib
import weakref

import pytest
import torch

from ppow_hf.drafters import packed_pass
from ppow_hf.drafters.logits_head import logits_head
from ppow_hf.rl import verification
from ppow_hf.rl.target_prefix import target_prefix
from ppow_hf.rl.target_windows import target_windows
from ppow_hf.rl.verification import verify_windows
from tests.testing_utils import tiny_target

FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "gemma2", "gemma3_text", "gpt_neox", "gpt2", "phi3"]
LENGTHS = (20, 13, 5)
STARTS = [[3, 20, -1, 12], [13, -1, 1, 6], [-1, -1, -1, 5]]


def texts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(2, 96, (len(LENGTHS), max(LENGTHS)), generator=generator)
    attention_mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return input_ids * attention_mask, attention_mask


def some_windows(size=5, group=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    starts, windows = torch.tensor(STARTS), torch.randint(2, 96, (3, 4, group, size), generator=generator)
    # What stands where there is no window must not matter.
    return starts, windows.masked_fill((starts < 0)[..., None, None], -100)


@torch.no_grad()
def naive(target, input_ids, starts, windows, temperature=1.0):
    """One plain pass without a cache per window, each a batch of one: `log_probs` `(B, S, G, K, V)`."""
    size = windows.shape[-1]
    expected = torch.full((*windows.shape, target.config.vocab_size), float("nan"))
    for b, s in (starts >= 0).nonzero().tolist():
        for g in range(windows.shape[2]):
            ids = torch.cat([input_ids[b, : starts[b, s]], windows[b, s, g]])[None]
            logits = target(input_ids=ids, use_cache=False).logits[0, -size - 1 : -1]
            expected[b, s, g] = (logits.float() / temperature).log_softmax(-1)
    return expected


def check(found, expected, windows, starts, ids=None):
    there = starts >= 0
    chosen = expected.gather(-1, windows.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(found.log_probs[there], chosen[there], atol=1e-5, rtol=0)
    assert torch.equal(found.argmax[there], expected.argmax(-1)[there])
    probs = expected.exp() if ids is None else expected.exp()[..., ids]
    torch.testing.assert_close(found.draft_probs[there], probs[there], atol=1e-5, rtol=0)
    for part in (found.log_probs, found.argmax, found.draft_probs):
        assert not part[~there].any()


class Warnings(list):
    def __init__(self, monkeypatch):
        monkeypatch.setattr(verification.logger, "warning_once", self.append)


# Both shorter and longer than the sliding windows of 8 tokens.
@pytest.mark.parametrize("size", [5, 12])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_plain_passes(family, size):
    target = tiny_target(family)
    input_ids, attention_mask = texts()
    starts, windows = some_windows(size)
    prefix = target_prefix(target, input_ids, attention_mask)
    found = verify_windows(target, prefix, starts, windows, packed=True)
    check(found, naive(target, input_ids, starts, windows), windows, starts)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_both_kinds_of_mask(family, implementation):
    if (family, implementation) == ("gemma2", "sdpa"):
        pytest.skip("Gemma 2 caps its attention scores, which sdpa cannot.")
    target = tiny_target(family)
    target.set_attn_implementation(implementation)
    input_ids, attention_mask = texts()
    starts, windows = some_windows()
    prefix = target_prefix(target, input_ids, attention_mask)
    found = verify_windows(target, prefix, starts, windows, packed=True)
    check(found, naive(target, input_ids, starts, windows), windows, starts)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_window_by_window_equals_plain_passes(family):
    target = tiny_target(family)
    input_ids, attention_mask = texts()
    starts, windows = some_windows()
    prefix = target_prefix(target, input_ids, attention_mask, keep_cache=False)
    found = verify_windows(target, prefix, starts, windows, packed=False, chunk_size=7)
    check(found, naive(target, input_ids, starts, windows), windows, starts)


@pytest.mark.parametrize("head", ["plain", "none"])
def test_passes_and_chunks_of_any_size(head, monkeypatch):
    target = tiny_target("gemma3_text")
    if head == "none":
        # By its name in `sys.modules`: the package exports a function of the module's name.
        module = importlib.import_module("ppow_hf.rl.target_prefix")
        monkeypatch.setattr(module, "logits_head", lambda *_: None)
    monkeypatch.setattr(verification, "MAX_PACKED_TOKENS", 13)
    input_ids, attention_mask = texts()
    starts, windows = some_windows()
    prefix = target_prefix(target, input_ids, attention_mask)
    assert prefix.states.shape[-1] == (96 if head == "none" else 32)
    expected = naive(target, input_ids, starts, windows)
    found = verify_windows(target, prefix, starts, windows, packed=True, chunk_size=5)
    check(found, expected, windows, starts)


@pytest.mark.parametrize("packed", [True, False])
def test_draft_vocabulary_temperature_and_layout(packed):
    target = tiny_target("qwen3")
    input_ids, attention_mask = texts()
    starts, windows = some_windows()
    # The same numbers in another memory layout.
    windows = windows.transpose(0, 3).contiguous().transpose(0, 3)
    ids = torch.tensor([90, 3, 7, 50])
    prefix = target_prefix(target, input_ids, attention_mask)
    found = verify_windows(
        target, prefix, starts, windows, draft_token_ids=ids, temperature=0.6, packed=packed, chunk_size=50
    )
    assert found.draft_probs.shape == (3, 4, 3, 5, 4)
    check(found, naive(target, input_ids, starts, windows, 0.6), windows, starts, ids)
    bare = verify_windows(target, prefix, starts, windows, temperature=0.6, keep_draft_probs=False, packed=packed)
    assert bare.draft_probs is None and torch.equal(bare.argmax, found.argmax)
    for temperature in (0.6, 1.0):
        options = {"temperature": temperature, "packed": packed, "keep_plain_log_probs": True}
        both = verify_windows(target, prefix, starts, windows, **options)
        check(both, naive(target, input_ids, starts, windows, temperature), windows, starts)
        plain = verify_windows(target, prefix, starts, windows, packed=packed)
        torch.testing.assert_close(both.plain_log_probs, plain.log_probs, atol=1e-5, rtol=0)


def test_windows_of_one_token_need_no_pass_over_them():
    target = tiny_target()
    input_ids, attention_mask = texts()
    starts, windows = some_windows(size=1)
    prefix = target_prefix(target, input_ids, attention_mask)
    verify_windows(target, prefix, starts, windows)  # The trial of packing runs the target.
    runs = []
    handle = target.base_model.register_forward_hook(lambda *_: runs.append(1))
    found = verify_windows(target, prefix, starts, windows)
    handle.remove()
    assert not runs
    check(found, naive(target, input_ids, starts, windows), windows, starts)


def test_one_pass_for_all_windows_and_none_for_no_windows():
    target = tiny_target()
    prefix = target_prefix(target, *texts())
    starts, windows = some_windows()
    verify_windows(target, prefix, starts, windows)
    shapes = []
    hook = lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape)  # noqa: E731
    handle = target.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    verify_windows(target, prefix, starts, windows)
    # Three of four starts at most are there, of 3 windows, of whose 5 tokens 4 are fed.
    assert shapes == [(3, 3 * 3 * 4)]
    nothing = verify_windows(target, prefix, torch.full_like(starts, -1), windows)
    handle.remove()
    assert len(shapes) == 1 and not nothing.draft_probs.any()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_prefix_is_left_as_it_was(family):
    target = tiny_target(family)
    prefix = target_prefix(target, *texts())
    starts, windows = some_windows()
    before = [(layer.keys, layer.keys.clone(), layer.values.clone()) for layer in prefix.cache.layers]
    first = verify_windows(target, prefix, starts, windows, packed=True)
    target_windows(target, prefix, starts, 5, packed=True)
    second = verify_windows(target, prefix, starts, windows, packed=True)
    assert torch.equal(first.log_probs, second.log_probs) and torch.equal(first.draft_probs, second.draft_probs)
    for layer, (same, keys, values) in zip(prefix.cache.layers, before, strict=True):
        assert layer.keys is same and torch.equal(layer.keys, keys) and torch.equal(layer.values, values)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt2"])
def test_prefix_logits_and_features(family):
    target = tiny_target(family)
    input_ids, attention_mask = texts()
    prefix = target_prefix(target, input_ids, attention_mask, layer_ids=(1, 3))
    with torch.no_grad():
        output = target(input_ids, attention_mask=attention_mask, output_hidden_states=True)
    rows, positions = torch.tensor([0, 1, 2, 0]), torch.tensor([19, 3, 4, 0])
    torch.testing.assert_close(prefix.logits_at(rows, positions), output.logits[rows, positions])
    torch.testing.assert_close(prefix.features, torch.cat([output.hidden_states[k] for k in (1, 3)], dim=-1))
    # A soft cap is part of the head: rows can be projected on their own there too.
    assert prefix.head is not None and prefix.states.shape[-1] == 32


def test_a_head_that_is_more_than_a_matrix_is_noticed():
    target = tiny_target("granite", logits_scaling=3.0)
    input_ids, attention_mask = texts()
    assert logits_head(target, input_ids) is None
    starts, windows = some_windows()
    prefix = target_prefix(target, input_ids, attention_mask)
    found = verify_windows(target, prefix, starts, windows, packed=True)
    check(found, naive(target, input_ids, starts, windows), windows, starts)


# ---------------------------------------------------------------------------------------------------------------------
# Targets that cannot be packed
# ---------------------------------------------------------------------------------------------------------------------


def test_a_target_that_ignores_the_mask_is_detected(monkeypatch):
    # The second layer does without the mask and sees every column: no error, other numbers.
    target = tiny_target()
    layer = target.model.layers[1]
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "attention_mask": blind(kwargs["attention_mask"])}),
        with_kwargs=True,
    )

    def blind(mask):
        # Plain passes, causal by themselves, hand no mask to sdpa.
        return None if mask is None else torch.ones_like(mask)

    input_ids, attention_mask = texts()
    starts, windows = some_windows()
    prefix = target_prefix(target, input_ids, torch.ones_like(attention_mask))
    warnings = Warnings(monkeypatch)
    found = verify_windows(target, prefix, starts, windows)
    assert len(set(warnings)) == 1 and "of their spread away" in warnings[0]
    check(found, naive(target, input_ids, starts, windows), windows, starts)
    with pytest.raises(ValueError, match="packed=True"):
        verify_windows(target, prefix, starts, windows, packed=True)


def test_a_target_that_ignores_positions_is_detected(monkeypatch):
    target = tiny_target()
    target.model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "position_ids": None}), with_kwargs=True
    )
    prefix = target_prefix(target, *texts())
    warnings = Warnings(monkeypatch)
    verify_windows(target, prefix, *some_windows())
    assert len(warnings) == 1 and "of their spread away" in warnings[0]


@pytest.mark.parametrize("family", ["bloom", "mamba", "gpt_neo"])
def test_architectures_that_fall_back_with_one_warning(family, monkeypatch):
    overrides = {"bloom": {"n_head": 4, "n_layer": 2}, "mamba": {"state_size": 4}}
    if family == "gpt_neo":
        overrides[family] = {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]]}
    target = tiny_target(family, **overrides[family])
    input_ids, attention_mask = texts()
    starts, windows = some_windows()
    prefix = target_prefix(target, input_ids, attention_mask)
    assert prefix.cache is None
    warnings = Warnings(monkeypatch)
    found = verify_windows(target, prefix, starts, windows)
    assert len(warnings) == 1 and type(target).__name__ in warnings[0]
    check(found, naive(target, input_ids, starts, windows), windows, starts)
    with pytest.raises(ValueError, match="packed=True"):
        verify_windows(target, prefix, starts, windows, packed=True)


def test_other_attention_implementations_fall_back(monkeypatch):
    target = tiny_target()
    prefix = target_prefix(target, *texts())
    monkeypatch.setattr(target.config, "_attn_implementation_internal", "flash_attention_2")
    assert "flash_attention_2" in packed_pass.cannot_pack(target)
    monkeypatch.undo()
    no_cache = target_prefix(target, *texts(), keep_cache=False)
    warnings = Warnings(monkeypatch)
    starts, windows = some_windows()
    found = verify_windows(target, no_cache, starts, windows)
    assert len(warnings) == 1 and "keep_cache" in warnings[0]
    packed = verify_windows(target, prefix, starts, windows, packed=True)
    torch.testing.assert_close(found.log_probs, packed.log_probs, atol=1e-5, rtol=0)


def test_the_warning_is_given_once(monkeypatch):
    given = []
    monkeypatch.setattr(verification.logger, "warning", lambda *args, **kwargs: given.append(args[0]))
    target = tiny_target("bloom", n_head=4, n_layer=2)
    prefix = target_prefix(target, *texts())
    starts, windows = some_windows()
    # It remembers messages for the whole process.
    type(verification.logger).warning_once.cache_clear()
    for _ in range(3):
        verify_windows(target, prefix, starts, windows)
    assert len(given) == 1


def test_the_trial_runs_once_per_target_leaves_the_generator_and_keeps_no_target_alive(monkeypatch):
    target = tiny_target("qwen2")
    prefix = target_prefix(target, *texts())
    starts, windows = some_windows()
    trials = []
    compare = verification._compare
    monkeypatch.setattr(verification, "_compare", lambda *args: (trials.append(1), compare(*args))[1])
    state = torch.get_rng_state()
    for _ in range(2):
        verify_windows(target, prefix, starts, windows)
    assert trials == [1] and torch.equal(state, torch.get_rng_state())
    reference = weakref.ref(target)
    del target, prefix
    gc.collect()
    assert reference() is None


def test_a_target_in_training_mode_is_tried_without_dropout():
    target = tiny_target("llama", attention_dropout=0.5).train()
    prefix = target_prefix(target.eval(), *texts())
    target.train()
    starts, windows = some_windows()
    assert verification.use_packing(target, prefix, True)  # raises where the trial fails
    assert all(module.training for module in target.modules())
    target.eval()
    verify_windows(target, prefix, starts, windows, packed=True)


def test_a_trial_that_broke_off_is_tried_again(monkeypatch):
    target = tiny_target("llama")
    prefix = target_prefix(target, *texts())

    def out_of_memory(*args):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(verification, "_compare", out_of_memory)
        with pytest.raises(ValueError, match="out of memory"):
            verification.use_packing(target, prefix, True)
    assert verification.use_packing(target, prefix, True)


# ---------------------------------------------------------------------------------------------------------------------
# The target's own windows
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def naive_greedy(target, text, size):
    tokens, log_probs = [], []
    for _ in range(size):
        logits = target(input_ids=text[None], use_cache=False).logits[0, -1].float()
        tokens.append(int(logits.argmax()))
        log_probs.append(float(logits.log_softmax(-1).max()))
        text = torch.cat([text, logits.argmax()[None]])
    return torch.tensor(tokens), torch.tensor(log_probs)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "gpt2", "qwen3_moe"])
def test_target_windows_equal_greedy_continuation(family, packed):
    target = tiny_target(family)
    input_ids, attention_mask = texts()
    # The first text follows the target from its eighth token on, with one token changed.
    input_ids[0, 8:] = naive_greedy(target, input_ids[0, :8], 12)[0]
    input_ids[0, 16] = (input_ids[0, 16] + 1) % 96
    starts = torch.tensor([[8, 10, 13, 16, 18, 20, -1], [-1, 1, 3, 13, 12, -1, 2], [-1, 5, -1, -1, -1, -1, -1]])
    prefix = target_prefix(target, input_ids, attention_mask)
    tokens, log_probs = target_windows(target, prefix, starts, 6, packed=packed, chunk_size=5)
    for b, s in (starts >= 0).nonzero().tolist():
        expected, expected_log_probs = naive_greedy(target, input_ids[b, : starts[b, s]], 6)
        assert torch.equal(tokens[b, s], expected), (b, s)
        torch.testing.assert_close(log_probs[b, s], expected_log_probs, atol=1e-5, rtol=0)
    assert not tokens[starts < 0].any() and not log_probs[starts < 0].any()


def test_target_windows_run_the_target_only_where_the_text_is_not_its_own():
    target = tiny_target()
    input_ids, attention_mask = texts()
    input_ids[0, 8:] = naive_greedy(target, input_ids[0, :8], 12)[0]
    prefix = target_prefix(target, input_ids, attention_mask)
    target_windows(target, prefix, torch.tensor([[3], [3], [3]]), 5)
    runs = []
    handle = target.base_model.register_forward_hook(lambda *_: runs.append(1))
    # From 8 to 15 the text decides every token; at 17 the last but one is known as well, the last is not.
    target_windows(target, prefix, torch.tensor([[8, 15], [-1, -1], [-1, -1]]), 5)
    assert not runs
    target_windows(target, prefix, torch.tensor([[8, 17], [-1, -1], [-1, -1]]), 5)
    handle.remove()
    assert len(runs) == 1


def test_target_windows_to_the_end_of_learned_positions():
    target = tiny_target("gpt2", max_position_embeddings=20)
    input_ids, attention_mask = texts()
    starts = torch.tensor([[16, 3], [13, 6], [-1, 5]])
    prefix = target_prefix(target, input_ids, attention_mask)
    tokens, _ = target_windows(target, prefix, starts, 5, packed=True)
    for b, s in (starts >= 0).nonzero().tolist():
        assert torch.equal(tokens[b, s], naive_greedy(target, input_ids[b, : starts[b, s]], 5)[0])


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


def test_bad_input():
    target = tiny_target()
    input_ids, attention_mask = texts()
    prefix = target_prefix(target, input_ids, attention_mask)
    starts, windows = some_windows()
    for wrong in (0, -2, 14):
        bad = starts.clone()
        bad[1, 2] = wrong
        with pytest.raises(ValueError, match=rf"starts\[1, 2\]` is {wrong}"):
            verify_windows(target, prefix, bad, windows)
        with pytest.raises(ValueError, match=rf"starts\[1, 2\]` is {wrong}"):
            target_windows(target, prefix, bad, 5)
    with pytest.raises(ValueError, match="shape"):
        verify_windows(target, prefix, starts[:, :2], windows)
    with pytest.raises(ValueError, match="at least one window"):
        verify_windows(target, prefix, starts, windows[..., :0])
    with pytest.raises(ValueError, match="temperature"):
        verify_windows(target, prefix, starts, windows, temperature=0)
    with pytest.raises(ValueError, match="chunk_size"):
        verify_windows(target, prefix, starts, windows, chunk_size=0)
    with pytest.raises(ValueError, match="`packed` must be"):
        verify_windows(target, prefix, starts, windows, packed="yes")
    with pytest.raises(ValueError, match="window_size"):
        target_windows(target, prefix, starts, 0)
    with pytest.raises(ValueError, match="on the right"):
        target_prefix(target, input_ids, attention_mask.flip(-1))
    with pytest.raises(ValueError, match="training mode"):
        target_prefix(tiny_target().train(), input_ids, attention_mask)
