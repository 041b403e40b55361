# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Targets whose rotary frequencies depend on the length of a pass: the same text up to there, and no text beyond."""

import pytest
import torch

from ppow_hf import CostModel, LookupDrafter, WindowConfig, speculative_generate
from ppow_hf.generation.changing_rope import changing_ropes
from ppow_hf.generation.tree_config import TreeConfig
from tests.testing_utils import tiny_causal_drafter, tiny_target

LIMIT = 32
WINDOWS = ["fixed:4", WindowConfig(policy="fixed", tree=TreeConfig(8, 3, 3)), "lookup:4"]
LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [1.5, 3.0, 6.0, 8.0], "rope_theta": 10000.0}
LONGROPE |= {"rope_type": "longrope", "original_max_position_embeddings": LIMIT}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": LIMIT}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
TARGETS = {
    "phi3 longrope": ("phi3", {"original_max_position_embeddings": LIMIT, "rope_parameters": LONGROPE}),
    "llama longrope": ("llama", {"rope_parameters": LONGROPE | {"factor": 8.0}}),
    "llama dynamic": ("llama", {"max_position_embeddings": LIMIT, "rope_parameters": DYNAMIC}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
}
CHANGING = [name for name in TARGETS if "yarn" not in name]


@pytest.fixture(scope="module")
def pairs():
    """Each target, and a drafter of all its layers, so that windows are accepted."""
    targets = {name: tiny_target(family, num_hidden_layers=2, **values) for name, (family, values) in TARGETS.items()}
    return {name: (target, tiny_causal_drafter(target, 2)) for name, target in targets.items()}


def prompts(length, count=2):
    return [torch.randint(2, 96, (1, length), generator=torch.Generator().manual_seed(s)) for s in range(count)]


def agree(pair, prompt, window, **options):
    target, drafter = pair
    options = {"do_sample": False, **options}
    text = target.generate(prompt, assistant_model=drafter, window=window, **options)
    return torch.equal(text, target.generate(prompt, **options))


@pytest.mark.parametrize("window", WINDOWS, ids=["chain", "tree", "lookup"])
@pytest.mark.parametrize("name", CHANGING)
def test_the_same_text_up_to_the_limit_and_no_text_beyond(pairs, name, window):
    pair, longest = pairs[name], LIMIT + 1 - 8
    assert all(agree(pair, prompt, window, max_new_tokens=longest) for prompt in prompts(8))
    target, drafter = pair
    match = rf"`max_new_tokens`={longest + 1} behind a prompt of 8 tokens.*at most `max_new_tokens={longest}`"
    passes = []
    handle = target.register_forward_pre_hook(lambda *args: passes.append(1))
    try:
        with pytest.raises(ValueError, match=match):
            target.generate(prompts(8)[0], assistant_model=drafter, window=window, max_new_tokens=longest + 1)
        with pytest.raises(ValueError, match=match):
            target.generate(
                prompts(8)[0],
                custom_generate=speculative_generate,
                drafter=drafter,
                window=window,
                max_new_tokens=longest + 1,
            )
    finally:
        handle.remove()
    assert not passes


@pytest.mark.parametrize("window", WINDOWS[:2], ids=["chain", "tree"])
@pytest.mark.parametrize("name", ["phi3 longrope", "llama longrope"])
def test_behind_a_long_prompt_the_frequencies_of_longrope_stay(pairs, name, window):
    assert all(agree(pairs[name], prompt, window, max_new_tokens=20) for prompt in prompts(LIMIT + 1))


def test_no_window_goes_on_behind_a_long_prompt_under_dynamic_frequencies(pairs):
    target, drafter = pairs["llama dynamic"]
    with pytest.raises(ValueError, match="Give a shorter prompt, or leave out `assistant_model`"):
        target.generate(prompts(40)[0], assistant_model=drafter, window="fixed:4", max_new_tokens=4)


def test_padding_is_no_text(pairs):
    pair, prompt = pairs["llama longrope"], prompts(8)[0]
    padded = torch.cat([torch.zeros((1, 3), dtype=torch.long), prompt], dim=-1)
    mask = (torch.arange(11)[None] >= 3).long()
    assert agree(pair, padded, "fixed:4", attention_mask=mask, max_new_tokens=LIMIT + 1 - 11)
    embeds = pair[0].get_input_embeddings()(prompt).detach()
    with pytest.raises(ValueError, match="`max_new_tokens`=26 behind a prompt of 8 tokens"):
        pair[0].generate(inputs_embeds=embeds, assistant_model=pair[1], window="fixed:4", max_new_tokens=26)


@pytest.mark.parametrize("window", WINDOWS[:2], ids=["chain", "tree"])
def test_other_scalings_have_no_limit(pairs, window):
    assert changing_ropes(pairs["llama yarn"][0]) == []
    assert all(agree(pairs["llama yarn"], prompt, window, max_new_tokens=50) for prompt in prompts(8))


def test_each_kind_of_layer_has_its_own():
    default = {"rope_type": "default", "rope_theta": 10000.0}
    target = tiny_target("gemma3_text", rope_parameters={"full_attention": DYNAMIC, "sliding_attention": default})
    assert changing_ropes(target) == [("dynamic", 256)]


@pytest.mark.parametrize("name", CHANGING)
def test_costs_are_measured_below_the_limit(pairs, name):
    target, drafter = pairs[name]
    for assistant in (drafter, LookupDrafter.from_target(target)):
        assert CostModel.measure(target, assistant, repetitions=1).overhead > 0
