# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How trees are asked for, and every wrong call's error, which names the argument and the remedy."""

import copy
import gc
import pickle
import weakref
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, GenerationMixin

from ppow_hf import AutoDrafter, WindowConfig, speculative_generate
from ppow_hf.generation import attach, install_hook, tree_checks, uninstall_hook
from ppow_hf.generation.hook import _MARKER, check_upstream
from ppow_hf.generation.tree_checks import drafts_trees
from ppow_hf.generation.tree_config import TreeConfig
from tests.generation.test_tree_decoding import FIXED
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target


def test_stored_with_the_drafter(tmp_path, prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=3)
    drafter.generation_config.window = FIXED
    drafter.save_pretrained(tmp_path)
    loaded = AutoDrafter.from_pretrained(tmp_path)
    assert loaded.generation_config.window == FIXED
    target.generate(prompt, assistant_model=loaded, max_new_tokens=12, do_sample=False)
    assert loaded.last_trace.cycles[0].drafted == 10
    # A call's own window goes before it, and a policy's name means a chain.
    target.generate(prompt, assistant_model=loaded, window="fixed:3", max_new_tokens=12, do_sample=False)
    assert loaded.last_trace.window["tree"] is None
    target.generate(prompt, assistant_model=loaded, window={"policy": "fixed", "size": 2}, max_new_tokens=12)
    assert loaded.last_trace.window["tree"] is None


def test_carried_over(prompt, store_costs):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=3)
    store_costs(target, drafter)
    window = WindowConfig(tree=True, carry_over=True)
    options = {"assistant_model": drafter, "max_new_tokens": 30, "do_sample": False, "window": window}
    target.generate(prompt, **options)
    first = [cycle.rate for cycle in drafter.last_trace.cycles]
    target.generate(prompt, **options)
    assert drafter.last_trace.cycles[0].rate != first[0]
    drafter.reset_adaptation()
    target.generate(prompt, **options)
    assert [cycle.rate for cycle in drafter.last_trace.cycles] == first


def refuse(target, drafter, prompt, match, **kwargs):
    with pytest.raises(ValueError, match=match):
        target.generate(prompt, assistant_model=drafter, **{"window": FIXED, "max_new_tokens": 6, **kwargs})


def test_refusals(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    refuse(
        target, drafter, prompt, "`output_attentions=True` cannot be combined with draft trees", output_attentions=True
    )
    refuse(
        target, drafter, prompt, "'offloaded' cannot be combined with draft trees", cache_implementation="offloaded"
    )
    refuse(target, drafter, prompt.repeat(2, 1), "one prompt at a time")
    filled = DynamicCache(config=target.config)
    with torch.no_grad():
        target(prompt[:, :4], past_key_values=filled)
    refuse(target, drafter, prompt, "`past_key_values` already holds 4 tokens", past_key_values=filled)
    sliding = tiny_target("mistral")
    refuse(sliding, tiny_causal_drafter(sliding), prompt, "sliding-window attention.*Leave `tree` out")
    gpt2 = tiny_target("gpt2")
    types = torch.zeros_like(prompt)
    refuse(gpt2, tiny_causal_drafter(gpt2), prompt, "`token_type_ids` cannot be combined", token_type_ids=types)
    refuse(
        target,
        drafter,
        prompt,
        "policies cost_aware and fixed, got 'confidence'",
        window={"policy": "confidence", "tree": True},
    )
    refuse(target, drafter, prompt, "`num_beams`=2", num_beams=2)


def test_a_drafter_without_trees_is_refused(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)

    class ChainsOnly(type(drafter)):
        step_tree = type(drafter).__mro__[1].step_tree

    drafter.__class__ = ChainsOnly
    refuse(target, drafter, prompt, "`ChainsOnly` drafts chains only")


def with_attention(name):
    """A target, and a drafter for it whose own attention takes no mask of ours."""
    target = tiny_target("llama")
    if name == "causal":
        drafter = tiny_causal_drafter(target)
        drafter.model.set_attn_implementation("flex_attention")
    else:
        drafter = tiny_eagle3(target)
        # Past transformers' check: flash attention is not installed here, and is not called before it is refused.
        drafter.config._attn_implementation = name.removeprefix("eagle3_")
    return target, drafter


class Streamed:
    """A streamer that counts what it is given."""

    def __init__(self):
        self.count = 0

    def put(self, value):
        self.count += 1

    def end(self):
        pass


@pytest.mark.parametrize("name", ["causal", "eagle3_flash_attention_2", "eagle3_flex_attention"])
def test_the_attention_of_the_drafter_is_checked_before_any_token(name, prompt):
    target, drafter = with_attention(name)
    streamer = Streamed()
    match = 'This drafter.* cannot draft a tree: .*takes no mask of ours.*Load it with `attn_implementation="sdpa"`'
    refuse(target, drafter, prompt, match, streamer=streamer)
    assert streamer.count == 0 and not drafts_trees(drafter)
    with pytest.raises(ValueError, match=match):
        drafter.check_tree()


@pytest.mark.parametrize("name", ["causal", "eagle3_flex_attention"])
def test_own_trees_that_the_attention_of_the_drafter_cannot_draft_are_chains(name, prompt, monkeypatch):
    target, drafter = with_attention(name)
    drafter.generation_config.window = FIXED
    warnings = []
    monkeypatch.setattr(tree_checks.logger, "warning_once", warnings.append)
    plain = target.generate(prompt, max_new_tokens=12, do_sample=False)
    output = target.generate(prompt, assistant_model=drafter, max_new_tokens=12, do_sample=False)
    assert torch.equal(output, plain)
    assert drafter.last_trace.window["tree"] is None and drafter.last_trace.drafted > 0
    assert set(warnings) == {warnings[0]} and "Chains are drafted" in warnings[0] and "This drafter" in warnings[0]
    assert drafter.generation_config.window == FIXED


def test_what_is_carried_over_belongs_to_its_target(prompt):
    """Two targets of one shape, without a cost model that could tell them apart."""
    target, other = tiny_target("llama"), tiny_target("llama", seed=9)
    for tree in (None, TreeConfig(max_nodes=6, branching=2)):
        drafter = tiny_causal_drafter(target, num_layers=3)
        window = WindowConfig(policy="fixed", tree=tree, carry_over=True)
        options = {"assistant_model": drafter, "max_new_tokens": 30, "do_sample": False, "window": window}
        target.generate(prompt, **options)
        first = [cycle.divergence for cycle in drafter.last_trace.cycles]
        other.generate(prompt, **options)
        assert drafter.last_trace.cycles[0].divergence == first[0]
        target.generate(prompt, **options)
        assert drafter.last_trace.cycles[0].divergence != first[0]
        fresh = copy.deepcopy(drafter)
        target.generate(prompt, **options | {"assistant_model": fresh})
        assert [cycle.divergence for cycle in fresh.last_trace.cycles] == first
        pickle.loads(pickle.dumps(drafter))


def test_what_is_carried_over_does_not_keep_its_target(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    window = WindowConfig(policy="fixed", carry_over=True)
    target.generate(prompt, assistant_model=drafter, window=window, max_new_tokens=6, do_sample=False)
    reference = weakref.ref(target)
    del target
    gc.collect()
    assert reference() is None and not drafter._adaptation


class Nested(Streamed):
    """A streamer that calls a function in the middle of the text."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def put(self, value):
        super().put(value)
        if self.count == 3:
            self.call()


@pytest.mark.parametrize("window", ["fixed:3", "cost_aware", "mixed", "tree:8", "mixed_tree"])
@pytest.mark.parametrize("kind", ["causal", "eagle3"])
def test_one_drafter_in_two_nested_generations(kind, window, prompt, store_costs):
    """With two targets, in the middle of each other's text, and what is carried over in place."""
    target, other = tiny_target("llama"), tiny_target("llama", seed=3)
    drafter = tiny_causal_drafter(target) if kind == "causal" else tiny_eagle3(target, draft_vocab_size=48)
    for each in (target, other):
        store_costs(each, drafter)
    window = replace(WindowConfig.coerce(window), carry_over=True)
    options = {"max_new_tokens": 24, "do_sample": False}
    plain, plain_other = target.generate(prompt, **options), other.generate(prompt[:, :6], **options)
    options |= {"assistant_model": drafter, "window": window}
    inner = []
    for _ in range(2):
        streamer = Nested(lambda: inner.append(other.generate(prompt[:, :6], **options)))
        assert torch.equal(target.generate(prompt, streamer=streamer, **options), plain)
    assert len(inner) == 2 and all(torch.equal(output, plain_other) for output in inner)


def test_the_hook_needs_the_assisted_loop(monkeypatch):
    """`generate` looks the loop up on the class, under this name, and passes what `decode_with_trees` takes."""
    assert hasattr(GenerationMixin._assisted_decoding, _MARKER)
    monkeypatch.setattr(GenerationMixin, "_assisted_decoding", lambda self, input_ids: None)
    with pytest.raises(RuntimeError, match=r"_assisted_decoding` no longer takes \['logits_processor', "):
        check_upstream()
    monkeypatch.delattr(GenerationMixin, "_assisted_decoding")
    with pytest.raises(RuntimeError, match="_assisted_decoding` is gone"):
        check_upstream()


def test_chains_and_other_assistants_keep_transformers_loop(prompt):
    target = tiny_target("llama")
    assistant = tiny_target("llama", seed=1, num_hidden_layers=2)
    plain = target.generate(prompt, max_new_tokens=12, do_sample=False)
    output = target.generate(prompt, assistant_model=assistant, max_new_tokens=12, do_sample=False)
    assert torch.equal(output, plain)
    drafter = tiny_causal_drafter(target)
    target.generate(prompt, assistant_model=drafter, window="fixed:3", max_new_tokens=12, do_sample=False)
    assert all(cycle.parents == [] and cycle.depth == 0 for cycle in drafter.last_trace.cycles)


CALLS = {
    "sliding window": ("mistral", {}),
    "unknown input": ("gpt2", {"token_type_ids": True}),
    "custom_generate": ("mistral", {"custom_generate": speculative_generate}),
}


@pytest.mark.parametrize("name", CALLS)
def test_where_only_the_drafters_own_window_has_a_tree_chains_take_its_place(prompt, name, caplog):
    family, options = CALLS[name]
    options = dict(options)
    target = tiny_target(family)
    drafter = tiny_causal_drafter(target)
    drafter.generation_config.window = FIXED
    if "token_type_ids" in options:
        options["token_type_ids"] = torch.zeros_like(prompt)
    plain = {key: value for key, value in options.items() if key != "custom_generate"}
    call = {**options, "drafter" if "custom_generate" in options else "assistant_model": drafter}
    shared = {"max_new_tokens": 10, "do_sample": False}
    expected = target.generate(prompt, **plain, **shared)
    tree_checks.logger.warning_once.cache_clear()
    found = target.generate(prompt, **call, **shared)
    assert torch.equal(expected, found)
    assert drafter.last_trace.window["tree"] is None and drafter.last_trace.window["policy"] == "fixed"
    assert drafter.generation_config.window == FIXED
    assert "Chains are drafted in place of the trees" in caplog.text


def test_trees_where_one_target_is_attached(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    drafter.generation_config.window = FIXED
    uninstall_hook()
    try:
        attach(target)
        expected = target.generate(prompt, max_new_tokens=10, do_sample=False)
        found = target.generate(prompt, assistant_model=drafter, max_new_tokens=10, do_sample=False)
        assert torch.equal(expected, found) and drafter.last_trace.window["tree"] is not None
        assert any(cycle.depth > 1 for cycle in drafter.last_trace.cycles)
        refuse(target, drafter, prompt, "`num_beams`=2", num_beams=2)
    finally:
        install_hook()
