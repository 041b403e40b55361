# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Targets that do not fit are refused by name, before anything is computed."""

import json
import logging

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, T5Config, T5ForConditionalGeneration

from ppow_hf import AutoDrafter, CausalLMDrafter, Eagle3Drafter, LookupDrafter
from ppow_hf.drafters import modeling_drafter

from ..testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

VOCAB = 96
MAKERS = {"eagle3": tiny_eagle3, "causal_lm": tiny_causal_drafter}


def tiny_t5():
    config = T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)


def tiny_mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, state_size=4, num_hidden_layers=4))


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize(("make", "message"), [(tiny_t5, "encoder-decoder"), (tiny_mamba, "recurrent state")])
def test_unfit_kinds_of_target(family, make, message):
    drafter = MAKERS[family](tiny_target(vocab_size=VOCAB))
    with pytest.raises(ValueError, match=message):
        drafter.bind_target(make())


@pytest.mark.parametrize(("make", "message"), [(tiny_t5, "encoder-decoder"), (tiny_mamba, "recurrent state")])
def test_no_drafter_is_built_for_unfit_kinds_of_target(make, message):
    with pytest.raises(ValueError, match=message):
        Eagle3Drafter.from_target(make())
    with pytest.raises(ValueError, match=message):
        CausalLMDrafter.from_target(make(), num_layers=1)
    with pytest.raises(ValueError, match=message):
        CausalLMDrafter.from_causal_lm(make())


def test_hidden_size():
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB))
    with pytest.raises(ValueError, match=r"hidden states are 48 wide.*`target_hidden_size`=32"):
        drafter.bind_target(tiny_target(vocab_size=VOCAB, hidden_size=48))


def test_hidden_size_with_own_embedding():
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB), hidden_size=48)
    with pytest.raises(ValueError, match=r"hidden states are 48 wide.*`target_hidden_size`=32"):
        drafter.bind_target(tiny_target(vocab_size=VOCAB, hidden_size=48))


def test_another_targets_depth():
    first = tiny_target(vocab_size=VOCAB)
    first.config._name_or_path = "org/the-right-target"
    drafter = tiny_eagle3(first)
    with pytest.raises(ValueError, match=r"trained for another target: `org/the-right-target` has 4 layers.* 6"):
        drafter.bind_target(tiny_target(vocab_size=VOCAB, num_hidden_layers=6))


def test_another_targets_architecture():
    drafter = tiny_eagle3(tiny_target("llama", vocab_size=VOCAB))
    with pytest.raises(ValueError, match=r"trained for a `llama` target.*is a `qwen2`"):
        drafter.bind_target(tiny_target("qwen2", vocab_size=VOCAB))


def test_the_recorded_target_survives_saving(tmp_path):
    tiny_eagle3(tiny_target("llama", vocab_size=VOCAB)).save_pretrained(tmp_path)
    drafter = AutoDrafter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"trained for a `llama` target"):
        drafter.bind_target(tiny_target("qwen2", vocab_size=VOCAB))


def test_layer_ids_beyond_the_target():
    """A checkpoint that records no target is checked by its layer ids."""
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB))
    drafter.config.target_num_hidden_layers = None
    with pytest.raises(ValueError, match=r"`aux_layer_ids` must be .* in \[0, 2\] for a target of 3 layers"):
        drafter.bind_target(tiny_target(vocab_size=VOCAB, num_hidden_layers=3))


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize(
    ("name", "warned"),
    [("other/sibling", True), ("mirror/Trained-For", False), ("a/folder/trained-for", False), ("", False)],
)
def test_a_sibling_of_the_recorded_target_is_warned_about(family, name, warned, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    modeling_drafter.logger.warning_once.cache_clear()
    drafter = MAKERS[family](tiny_target(vocab_size=VOCAB))
    drafter.config.target_name_or_path = "org/trained-for"
    sibling = tiny_target(vocab_size=VOCAB, seed=1)
    sibling.name_or_path = sibling.config._name_or_path = name
    with caplog.at_level("WARNING"), monkeypatch.context() as patch:
        patch.setattr(modeling_drafter.logger, "disabled", False)
        patch.setattr(modeling_drafter.logger, "level", logging.WARNING)
        drafter.bind_target(sibling)
        drafter.bind_target(sibling)
    assert caplog.text.count("`org/trained-for`") == warned  # once, however often it is bound


def test_a_refused_target_changes_nothing():
    target = tiny_target(vocab_size=VOCAB)
    drafter = tiny_eagle3(target)
    for other in (tiny_target(vocab_size=80), tiny_target(vocab_size=VOCAB, num_hidden_layers=6)):
        with pytest.raises(ValueError):
            drafter.bind_target(other)
    tokens = torch.arange(VOCAB)
    assert torch.equal(drafter._embed(tokens), target.get_input_embeddings()(tokens))


def test_causal_lm_drafters_saved_before_the_width_was_recorded(tmp_path):
    drafter = tiny_causal_drafter(tiny_target("llama", vocab_size=VOCAB))
    drafter.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("target_hidden_size") == 32
    path.write_text(json.dumps(config))
    drafter = AutoDrafter.from_pretrained(tmp_path)
    assert drafter.config.target_hidden_size is None
    drafter.bind_target(tiny_target("llama", vocab_size=VOCAB, hidden_size=48))


def test_causal_lm_drafters_that_record_no_target_serve_any_with_their_vocabulary():
    drafter = CausalLMDrafter.from_causal_lm(tiny_target("llama", vocab_size=VOCAB))
    for family in ("llama", "qwen2"):
        drafter.bind_target(tiny_target(family, vocab_size=VOCAB, num_hidden_layers=6, hidden_size=48))


def test_lookup_drafters_serve_any_target_with_their_vocabulary():
    drafter = LookupDrafter.from_target(tiny_target("llama", vocab_size=VOCAB))
    drafter.bind_target(tiny_target("qwen2", vocab_size=VOCAB, num_hidden_layers=6, hidden_size=48))


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_hidden_layers": 6}, r"trained for another target: `org/the-right-target` has 4 layers.* 6"),
        ({"family": "qwen2"}, r"trained for a `llama` target.*is a `qwen2`"),
        ({"hidden_size": 48}, r"hidden states are 48 wide.*`target_hidden_size`=32"),
    ],
)
def test_causal_lm_drafters_made_of_a_target_are_for_that_target(other, message, saved, tmp_path):
    target = tiny_target(vocab_size=VOCAB)
    target.config._name_or_path = "org/the-right-target"
    drafter = tiny_causal_drafter(target)
    if saved:
        drafter.save_pretrained(tmp_path)
        drafter = AutoDrafter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        drafter.bind_target(tiny_target(vocab_size=VOCAB, **other))
    drafter.bind_target(target)
