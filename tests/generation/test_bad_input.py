# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Every wrong call gives an error that names the argument and the remedy."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, DynamicCache

from ppow_hf import WindowConfig, speculative_generate
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target


@pytest.fixture(scope="module")
def pair():
    target = tiny_target("llama")
    return target, tiny_eagle3(target)


def refuse(pair, prompt, match, **kwargs):
    target, drafter = pair
    kwargs = {"max_new_tokens": 6, "assistant_model": drafter, "window": "fixed:3", **kwargs}
    with pytest.raises(ValueError, match=match):
        target.generate(prompt, **kwargs)


def test_batch(pair, prompt):
    refuse(pair, prompt.repeat(2, 1), "one prompt at a time.*batch of 2")


def test_beams(pair, prompt):
    refuse(pair, prompt, "`num_beams`=3 cannot be combined", num_beams=3)


def test_return_sequences(pair, prompt):
    refuse(pair, prompt, "`num_return_sequences`=2", num_return_sequences=2, do_sample=True)


def test_no_cache(pair, prompt):
    refuse(pair, prompt, "`use_cache=False`", use_cache=False)


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 2}])
def test_two_sources_of_drafts(pair, prompt, options):
    refuse(pair, prompt, next(iter(options)), **options)


def test_filled_user_cache(pair, prompt):
    target, _ = pair
    cache = DynamicCache(config=target.config)
    target(prompt[:, :4], past_key_values=cache)
    refuse(pair, prompt, "`past_key_values` already holds 4 tokens", past_key_values=cache)


def test_another_vocabulary(pair, prompt):
    other = tiny_target("llama", vocab_size=128)
    refuse((other, pair[1]), prompt, "vocabulary of 128 tokens.*`vocab_size`=96")


def test_another_hidden_size(pair, prompt):
    refuse((tiny_target("llama", hidden_size=64), pair[1]), prompt, "64 wide.*`target_hidden_size`=32")


def test_another_target(pair, prompt):
    refuse((tiny_target("llama", num_hidden_layers=5), pair[1]), prompt, "trained for another target")


def test_encoder_decoder(pair):
    config = AutoConfig.for_model(
        "t5", d_model=32, d_ff=64, num_layers=2, num_heads=2, d_kv=16, vocab_size=96, decoder_start_token_id=0
    )
    target = AutoModelForSeq2SeqLM.from_config(config)
    refuse((target, pair[1]), torch.tensor([[5, 6]]), "encoder-decoder")


def test_stateful_target(pair, prompt):
    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=96, state_size=4)
    target = AutoModelForCausalLM.from_config(config)
    refuse((target, pair[1]), prompt, "recurrent state")


@pytest.mark.parametrize(
    ("window", "match"),
    [
        ("fastest", "Unknown window policy 'fastest'"),
        ("fixed:0", "`size` of the window must be an integer of at least 1, got 0"),
        ("fixed:-2", "`size`"),
        ("fixed:many", "expected an integer after the colon"),
        ("confidence:much", "expected a number"),
        ("confidence:1.5", r"`threshold` of the window must be a number in \[0.0, 1.0\]"),
        ("cost_aware:0", "`max_size`"),
        ({"policy": "fixed", "length": 3}, "Unknown window field.*length.*Known fields"),
        ({"policy": "heuristic", "min_size": 5, "max_size": 3}, r"`min_size` of the window \(5\) must not exceed"),
        (7, "`window` must be a WindowConfig"),
    ],
)
def test_windows(pair, prompt, window, match):
    refuse(pair, prompt, match, window=window)


def test_window_without_a_drafter(pair, prompt):
    with pytest.raises(ValueError, match="`window` was given"):
        pair[0].generate(prompt, window="fixed:3", max_new_tokens=4)


def test_a_field_assigned_later_is_checked(pair, prompt):
    window = WindowConfig(policy="fixed", size=3)
    window.size = 0
    refuse(pair, prompt, "`size`", window=window)


def test_errors_come_before_the_target_runs(pair, prompt):
    target, drafter = pair
    runs = []
    handle = target.register_forward_hook(lambda *args: runs.append(1))
    try:
        refuse(pair, prompt, "num_beams", num_beams=2)
        refuse(pair, prompt, "Unknown window policy", window="nonsense")
        refuse(pair, prompt.repeat(2, 1), "one prompt at a time")
    finally:
        handle.remove()
    assert not runs


def test_custom_generate_without_a_drafter(pair, prompt):
    with pytest.raises(ValueError, match="needs a ppow-hf drafter"):
        pair[0].generate(prompt, custom_generate=speculative_generate, max_new_tokens=4)


def test_custom_generate_with_beams(pair, prompt):
    with pytest.raises(ValueError, match="num_beams"):
        pair[0].generate(prompt, custom_generate=speculative_generate, drafter=pair[1], num_beams=2, max_new_tokens=4)


def test_malformed_calibration(pair, prompt):
    refuse(pair, prompt, "6 finite numbers", window={"policy": "fixed", "calibration": {"greedy": [1.0, 2.0]}})


def test_causal_drafter_of_another_vocabulary(prompt):
    drafter = tiny_causal_drafter(tiny_target("llama", vocab_size=64))
    refuse((tiny_target("llama"), drafter), prompt, "share one tokenizer")


def test_another_device(pair, prompt):
    target = pair[0]
    refuse((target, tiny_eagle3(target).to("meta")), prompt, "drafter is on meta, but the target is on cpu")
