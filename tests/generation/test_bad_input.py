# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Every wrong call gives an error that names the argument and the remedy."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    QuantizedCache,
    StaticCache,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from ppow_hf import CausalLMDrafter, LookupDrafter, WindowConfig, speculative_generate
from tests.testing_utils import SilentLlama, tiny_causal_drafter, tiny_eagle3, tiny_target


@pytest.fixture(scope="module")
def pair():
    target = tiny_target("llama")
    return target, tiny_eagle3(target)


def refuse(pair, prompt, match, **kwargs):
    target, drafter = pair
    kwargs = {"max_new_tokens": 6, "assistant_model": drafter, "window": "fixed:3", **kwargs}
    with pytest.raises(ValueError, match=match):
        target.generate(prompt, **kwargs)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("window", ["fixed:3", "cost_aware", "mixed", "tree", "mixed_tree"])
def test_a_target_that_keeps_its_hidden_states_to_itself(prompt, window, do_sample):
    silent = SilentLlama(tiny_target("llama").config).eval()
    match = "returned no `hidden_states`.*`output_hidden_states=True`, or a `CausalLMDrafter`"
    refuse((silent, tiny_eagle3(silent)), prompt, match, window=window, do_sample=do_sample)
    drafter = tiny_causal_drafter(silent, num_layers=1)
    options = {"do_sample": False, "max_new_tokens": 6}
    text = silent.generate(prompt, assistant_model=drafter, window="fixed:3", **options)
    assert torch.equal(text, silent.generate(prompt, **options))


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


def test_a_static_cache_of_the_users(pair, prompt):
    cache = StaticCache(config=pair[0].config, max_cache_len=32)
    refuse(pair, prompt, "`past_key_values` is a StaticCache.*Pass a `DynamicCache`", past_key_values=cache)


@pytest.mark.parametrize("window", ["fixed:3", "lookup:3", "tree"])
def test_a_quantized_cache_of_the_users(pair, prompt, window):
    cache = QuantizedCache("fp8", pair[0].config)
    match = "`past_key_values` is a QuantizedCache.*Pass a `DynamicCache`"
    refuse(pair, prompt, match, past_key_values=cache, window=window)
    assert cache.get_seq_length() == 0  # before any pass


SYNTHID = SynthIDTextWatermarkingConfig(keys=[654, 400, 836, 123, 340, 443, 597], ngram_len=3)


@pytest.mark.parametrize("window", ["fixed:3", "lookup:3", "tree"])
def test_processors_that_remember_their_calls(pair, prompt, window):
    """Guidance keeps a cache of its own, SynthID the tokens it was asked about: with windows they change texts."""
    target, drafter = pair
    refuse(pair, prompt, "`guidance_scale`=1.5 cannot be combined.*Leave it out", guidance_scale=1.5, window=window)
    match = "`watermarking_config` of SynthID cannot be combined.*`WatermarkingConfig`"
    refuse(pair, prompt, match, watermarking_config=SYNTHID, do_sample=True, window=window)
    processors = [
        (UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, target), "guidance_scale"),
        (SYNTHID.construct_processor(96, "cpu"), "watermarking_config"),
    ]
    for processor, name in processors:
        match = f"`logits_processor` has a {type(processor).__name__}.*`{name}`"
        refuse(pair, prompt, match, logits_processor=[processor], window=window)
        with pytest.raises(ValueError, match=match):
            target.generate(
                prompt,
                custom_generate=speculative_generate,
                drafter=drafter,
                window=window,
                logits_processor=[processor],
                max_new_tokens=6,
            )


@pytest.mark.parametrize("options", [{"guidance_scale": 1}, {"watermarking_config": WatermarkingConfig(bias=4.0)}])
def test_guidance_of_one_and_watermarks_by_the_text_alone_are_taken(pair, prompt, options):
    target, drafter = pair[0], tiny_causal_drafter(pair[0], num_layers=4)
    options = {"max_new_tokens": 24, "do_sample": False, **options}
    plain = target.generate(prompt, **options)
    for window in ("fixed:4", "tree:8"):
        window = WindowConfig(policy="fixed", tree={"max_nodes": 8}) if "tree" in window else window
        output = target.generate(prompt, assistant_model=drafter, window=window, **options)
        assert torch.equal(output, plain) and drafter.last_trace.accepted > 0


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
    refuse((tiny_target("llama"), drafter), prompt, r"96 tokens.*`vocab_size`=64.*`resize_token_embeddings\(96\)`")


@pytest.mark.parametrize("width", [80, 112])
def test_the_remedy_for_another_padding_of_one_tokenizer(prompt, width):
    target, small = tiny_target("llama"), tiny_target("llama", vocab_size=width, num_hidden_layers=2)
    refuse((target, CausalLMDrafter.from_causal_lm(small)), prompt, "Models of one tokenizer may pad it")
    small.resize_token_embeddings(96)
    drafter = CausalLMDrafter.from_causal_lm(small)
    plain = target.generate(prompt, max_new_tokens=16, do_sample=False)
    output = target.generate(prompt, assistant_model=drafter, window="fixed:3", max_new_tokens=16, do_sample=False)
    assert torch.equal(output, plain) and drafter.last_trace.drafted > 0


def test_eagle3_and_lookup_drafters_of_another_vocabulary(pair, prompt):
    """There is no table to resize: theirs is the target's, or none."""
    other = tiny_target("llama", vocab_size=128)
    refuse(
        (other, pair[1]), prompt, r"128 tokens.*`vocab_size`=96.*trained for another target.*`from_target\(target\)`"
    )
    lookup = LookupDrafter.from_target(pair[0])
    refuse((other, lookup), prompt, r"128 tokens.*`LookupDrafter.from_target\(target\)`")


def test_another_device(pair, prompt):
    target = pair[0]
    refuse((target, tiny_eagle3(target).to("meta")), prompt, "drafter is on meta, but the target is on cpu")


def test_a_target_in_training_mode_without_a_cache_is_refused():
    target = tiny_target()
    drafter = tiny_causal_drafter(target)
    target.gradient_checkpointing_enable()
    target.train()
    ids = torch.tensor([[3, 4, 5]])
    for window in (None, "fixed:4", "tree"):
        with pytest.raises(ValueError, match=r"`target` is in training mode with gradient checkpointing.*target.eval"):
            target.generate(ids, assistant_model=drafter, window=window, max_new_tokens=8)
    target.eval()
    target.generate(ids, assistant_model=drafter, window="fixed:2", max_new_tokens=8)


def test_a_vocabulary_that_was_resized_after_binding_is_noticed():
    target = tiny_target()
    drafter = tiny_eagle3(target)
    ids = torch.tensor([[3, 4, 5]])
    options = {"assistant_model": drafter, "max_new_tokens": 5, "do_sample": False}
    target.generate(ids, **options)
    target.resize_token_embeddings(104)
    with pytest.raises(ValueError, match="vocabulary|104"):
        target.generate(ids, **options)
