# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Rotary embeddings: types and parameters are transformers' own, and a fresh drafter's are its target's."""

import pytest
import torch

from ppow_hf import AutoDrafter, Eagle3Drafter, Eagle3DrafterConfig

from ..testing_utils import TARGET_FAMILIES, tiny_eagle3, tiny_target

TYPES = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 20000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    "dynamic": {
        "rope_type": "dynamic",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 256,
    },
}

# Gemma 3 has one table per kind of attention; four layers would otherwise all be sliding ones.
GEMMA3_LAYERS = {"layer_types": ["sliding_attention", "full_attention"] * 2}


def tables(rotary, positions: int, first: int = 0, **kwargs):
    return rotary(torch.zeros(1, 1, 8), torch.arange(first, positions)[None], **kwargs)


def assert_same_tables(drafter: Eagle3Drafter, rotary, **kwargs):
    # Short first: dynamic types change their frequencies once a context is longer than the model was made for.
    for positions in (5, 200, 600, 5):
        for mine, theirs in zip(
            tables(drafter.rotary_emb, positions), tables(rotary, positions, **kwargs), strict=True
        ):
            assert torch.equal(mine, theirs), positions


@pytest.mark.parametrize("rope_type", TYPES)
def test_types_come_from_the_target(rope_type, tmp_path):
    target = tiny_target(vocab_size=96, rope_parameters=dict(TYPES[rope_type]))
    drafter = tiny_eagle3(target)
    for name, value in TYPES[rope_type].items():
        assert drafter.config.rope_parameters[name] == value
    assert_same_tables(drafter, target.model.rotary_emb)
    drafter.save_pretrained(tmp_path)
    assert_same_tables(AutoDrafter.from_pretrained(tmp_path), target.model.rotary_emb)


def test_the_types_really_differ():
    """The comparison above means something: every type has its own table."""
    found = []
    for parameters in TYPES.values():
        target = tiny_target(vocab_size=96, rope_parameters=dict(parameters))
        found.append(torch.cat(tables(tiny_eagle3(target).rotary_emb, 600)))
    for i in range(len(found)):
        for j in range(i):
            assert not torch.equal(found[i], found[j])


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e6])
def test_theta_of_the_target(theta):
    target = tiny_target(vocab_size=96, rope_parameters={"rope_type": "default", "rope_theta": theta})
    drafter = tiny_eagle3(target)
    assert drafter.config.rope_parameters["rope_theta"] == theta
    expected = 1.0 / theta ** (torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(drafter.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("family", [name for name in TARGET_FAMILIES if name not in ("gpt2", "gpt_neox")])
def test_every_family_keeps_its_full_attention_tables(family):
    options = GEMMA3_LAYERS if family == "gemma3_text" else {}
    target = tiny_target(family, vocab_size=96, **options)
    by_layer_type = {"layer_type": "full_attention"} if options else {}
    assert_same_tables(tiny_eagle3(target), target.model.rotary_emb, **by_layer_type)


def test_gemma3_takes_the_theta_of_full_attention():
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    target = tiny_target("gemma3_text", vocab_size=96, rope_parameters=parameters, **GEMMA3_LAYERS)
    drafter = tiny_eagle3(target)
    assert drafter.config.rope_parameters["rope_theta"] == 1e6
    assert_same_tables(drafter, target.model.rotary_emb, layer_type="full_attention")


@pytest.mark.parametrize("family", ["gpt_neox", "phi3"])
def test_partly_rotated_targets_get_whole_heads(family):
    parameters = {"rope_type": "default", "rope_theta": 30000.0, "partial_rotary_factor": 0.5}
    target = tiny_target(family, vocab_size=96, rope_parameters=parameters)
    drafter = tiny_eagle3(target)
    assert drafter.config.rope_parameters["rope_theta"] == 30000.0
    assert drafter.rotary_emb.inv_freq.shape == (4,)


def test_targets_without_rope_get_the_default():
    drafter = tiny_eagle3(tiny_target("gpt2", vocab_size=96))
    assert drafter.config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_longrope(partial):
    pairs = int(4 * partial)
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + i for i in range(pairs)],
        "long_factor": [2.0 + i for i in range(pairs)],
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": partial,
    }
    target = tiny_target("phi3", vocab_size=96, rope_parameters=parameters)
    drafter = tiny_eagle3(target)
    if partial == 1.0:
        assert_same_tables(drafter, target.model.rotary_emb)
    else:
        assert drafter.config.rope_parameters["rope_type"] == "default"


def test_loading_in_bfloat16_keeps_exact_frequencies(tmp_path):
    """Frequencies rounded to bfloat16 would misplace tokens far into a text."""
    drafter = tiny_eagle3(tiny_target(vocab_size=96))
    drafter.save_pretrained(tmp_path)
    loaded = AutoDrafter.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(loaded.rotary_emb.inv_freq, drafter.rotary_emb.inv_freq)


def test_rope_of_a_config_is_its_own():
    parameters = {"rope_type": "linear", "rope_theta": 7000.0, "factor": 2.0}
    config = Eagle3DrafterConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=64, vocab_size=96, rope_parameters=parameters
    )
    assert config.rope_parameters == parameters
    expected = 1.0 / 7000.0 ** (torch.arange(0, 8, 2) / 8) / 2.0
    torch.testing.assert_close(Eagle3Drafter(config).rotary_emb.inv_freq, expected)


def test_changing_the_drafter_leaves_the_targets_rope_alone():
    target = tiny_target(vocab_size=96, rope_parameters=dict(TYPES["llama3"]))
    drafter = tiny_eagle3(target)
    drafter.config.rope_parameters["factor"] = 2.0
    assert target.config.rope_parameters["factor"] == 8.0
