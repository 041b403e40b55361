# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Casting for a while, fingerprints and public names."""

import pytest
import torch

from ppow_hf import AutoDrafter, WindowConfig
from ppow_hf.evaluation.precision import cast_floating, fingerprint, parse_dtype, public_name, settings_hash
from tests.testing_utils import tiny_eagle3, tiny_target


def test_cast_gives_back_every_tensor_as_it_was():
    target = tiny_target()
    drafter = tiny_eagle3(target)
    drafter.bind_target(target)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    buffers = {name: buffer.dtype for name, buffer in target.named_buffers()}
    with cast_floating((target, drafter, None), torch.bfloat16):
        assert target.dtype == drafter.dtype == torch.bfloat16
        assert {name: buffer.dtype for name, buffer in target.named_buffers()} == buffers
    assert target.dtype == drafter.dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_cast_is_undone_after_an_error_and_keeps_shared_weights_shared():
    target = tiny_target()
    target.lm_head.weight = target.get_input_embeddings().weight
    with pytest.raises(RuntimeError), cast_floating((target, target), torch.bfloat16):
        assert target.lm_head.weight.data_ptr() == target.get_input_embeddings().weight.data_ptr()
        raise RuntimeError
    assert target.dtype == torch.float32
    assert target.lm_head.weight.data_ptr() == target.get_input_embeddings().weight.data_ptr()


def test_fingerprint_sees_another_model():
    assert fingerprint(tiny_target(seed=0)) == fingerprint(tiny_target(seed=0))
    assert fingerprint(tiny_target(seed=0)) != fingerprint(tiny_target(seed=1))
    assert fingerprint(None) is None


def test_settings_are_configuration_and_window(tmp_path):
    target = tiny_target()
    drafter = tiny_eagle3(target)
    same = settings_hash(drafter)
    drafter.save_pretrained(tmp_path)
    # Where it lies, and in which dtype, changes nothing.
    assert settings_hash(AutoDrafter.from_pretrained(tmp_path, dtype=torch.bfloat16)) == same
    weights = fingerprint(drafter)
    drafter.generation_config.window = WindowConfig(max_size=3)
    other_window = settings_hash(drafter)
    drafter.config.norm_before_residual = not drafter.config.norm_before_residual
    assert len({same, other_window, settings_hash(drafter)}) == 3
    assert fingerprint(drafter) == weights and settings_hash(None) is None


def test_dtype_names():
    assert parse_dtype(None, torch.bfloat16) == torch.bfloat16
    assert parse_dtype("float32", torch.bfloat16) == torch.float32
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        parse_dtype("int8", torch.bfloat16)


def test_public_name_hides_paths(tmp_path):
    target = tiny_target()
    assert public_name(target, "org/name") == "org/name"
    assert public_name(target, str(tmp_path / "my-model")) == "my-model"
    target.config._name_or_path = ""
    assert public_name(target) == "LlamaForCausalLM"
    assert public_name(None) is None
