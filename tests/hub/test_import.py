# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Foreign checkpoints as drafters: every layout, and what is filled in."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from ppow_hf import AutoDrafter
from ppow_hf.hub.importer import import_drafter
from tests.drafters.reference_eagle3 import exact_arithmetic
from tests.hub.foreign_checkpoints import (
    DEFAULT_LAYERS,
    FLAT_CONFIG,
    HEAD_DIM,
    LAYERS,
    SPECULATORS_CONFIG,
    TOP,
    VOCAB,
    H,
    assert_computes,
    eight_layers,
    random_weights,
    reference,
    said,
    speculators_weights,
    write,
)

# Projections that read both the embedding and the hidden state in the first layer, and only the latter further on.
INNER = ("q_proj.weight", "k_proj.weight", "v_proj.weight")


# ---- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["safetensors", "bin", "sharded", "sharded-bin"])
def test_flat_form(tmp_path, monkeypatch, how):
    exact_arithmetic(monkeypatch)
    target, weights = eight_layers(), random_weights()
    drafter = import_drafter(write(tmp_path / "head", FLAT_CONFIG, weights, how), target=target.config)
    assert drafter.state_dict().keys() == weights.keys()
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert drafter.config.aux_layer_ids == DEFAULT_LAYERS
    assert drafter.config.target_num_hidden_layers == LAYERS and drafter.config.target_model_type == "llama"
    assert torch.equal(drafter.draft_token_ids, weights["t2d"].nonzero().squeeze(-1))
    assert said(drafter, "no `rope_theta`", "10000") and said(drafter, "names no feature layers", str(DEFAULT_LAYERS))
    assert_computes(drafter, target, reference(weights, target.get_input_embeddings().weight))


def test_speculators_form(tmp_path, monkeypatch):
    exact_arithmetic(monkeypatch)
    target = eight_layers()
    weights = speculators_weights(target)
    weights["verifier_norm.weight"] = torch.ones(H)
    drafter = import_drafter(write(tmp_path / "head", SPECULATORS_CONFIG, weights), target=target)
    config = drafter.config
    assert (config.norm_before_residual, config.norm_before_fc, config.fc_norm, config.norm_output) == (
        True, True, False, True,
    )  # fmt: skip
    assert config.aux_layer_ids == [1, 3, 6] and config.rms_norm_eps == 1e-6
    assert (
        said(drafter, "rms_norm_eps", "1e-06")
        and said(drafter, "embed_tokens", "equals")
        and said(drafter, "verifier_norm")
    )
    exact = reference(
        weights,
        target.get_input_embeddings().weight,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_theta": 500000.0},
        norm_before_residual=True,
        norm_before_fc=True,
        norm_output=True,
    )
    assert_computes(drafter, target, exact)


def test_speculators_form_needs_no_target(tmp_path):
    weights = speculators_weights(eight_layers())
    drafter = import_drafter(write(tmp_path / "head", SPECULATORS_CONFIG, weights))
    assert drafter.config.target_name_or_path == "org/tiny-target" and drafter.config.target_model_type == "llama"
    assert said(drafter, "embed_tokens", "not compared")


def test_two_layers_and_fc_norm(tmp_path, monkeypatch):
    exact_arithmetic(monkeypatch)
    target = eight_layers()
    second = {
        name.replace("layers.0.", "layers.1."): (len(tensor), H) if name.endswith(INNER) else tensor.shape
        for name, tensor in random_weights("layers.0").items()
        if name.startswith("layers.0.") and "hidden_norm" not in name
    }
    norms = {f"fc_norm.{i}.weight": (H,) for i in range(3)}
    weights = random_weights("layers.0", **second, **norms)
    raw = json.loads(json.dumps(SPECULATORS_CONFIG))
    raw.update(norm_before_fc=False, fc_norm=True, norm_output=False, norm_before_residual=False)
    raw["transformer_layer_config"].update(num_hidden_layers=2, rms_norm_eps=1e-5)
    drafter = import_drafter(write(tmp_path / "head", raw, weights), target=target)
    own = {name.replace("layers.1.", "own.0."): tensor for name, tensor in weights.items()}
    own = {name.replace("layers.0.", "midlayer.").replace("own.0.", "layers.0."): t for name, t in own.items()}
    exact = reference(own, target.get_input_embeddings().weight, fc_norm=True, num_hidden_layers=2)
    exact.weights = {name: tensor.double() for name, tensor in own.items()}
    exact.config.rope_parameters = {"rope_theta": 500000.0}
    assert_computes(drafter, target, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(tmp_path, dtype):
    weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in random_weights().items()}
    config = {**FLAT_CONFIG, "torch_dtype": str(dtype).removeprefix("torch.")}
    output = tmp_path / "drafter"
    drafter = import_drafter(write(tmp_path / "head", config, weights), target=eight_layers().config, output=output)
    loaded = AutoDrafter.from_pretrained(output)
    for name, tensor in weights.items():
        assert torch.equal(drafter.state_dict()[name], tensor) and torch.equal(loaded.state_dict()[name], tensor), name
    assert drafter.dtype == loaded.dtype == dtype
    assert loaded.rotary_emb.inv_freq.dtype == torch.float32


def test_mixed_precision_is_widened(tmp_path):
    weights = random_weights()
    weights["fc.weight"] = weights["fc.weight"].half()
    weights["lm_head.weight"] = weights["lm_head.weight"].bfloat16()
    drafter = import_drafter(write(tmp_path / "head", FLAT_CONFIG, weights), target=eight_layers().config)
    assert drafter.dtype == torch.float32 and said(drafter, "widened to float32")
    assert torch.equal(drafter.fc.weight.half(), weights["fc.weight"])
    assert torch.equal(drafter.lm_head.weight.bfloat16(), weights["lm_head.weight"])


def test_own_embedding_where_widths_differ(tmp_path, monkeypatch):
    exact_arithmetic(monkeypatch)
    target = eight_layers(hidden_size=48, num_attention_heads=6)
    weights = random_weights(**{"fc.weight": (H, 3 * 48), "embed_tokens.weight": (VOCAB, H)})
    raw = {**FLAT_CONFIG, "target_hidden_size": 48}
    drafter = import_drafter(write(tmp_path / "head", raw, weights), target=target.config)
    assert not drafter.config.shares_target_embedding
    assert_computes(drafter, target, reference(weights, torch.empty(0), target_hidden_size=48))


def test_whole_vocabulary(tmp_path):
    weights = random_weights(**{"lm_head.weight": (VOCAB, H)})
    weights["d2t"], weights["t2d"] = torch.zeros(VOCAB, dtype=torch.long), torch.ones(VOCAB, dtype=torch.bool)
    raw = {**FLAT_CONFIG, "draft_vocab_size": VOCAB}
    drafter = import_drafter(write(tmp_path / "head", raw, weights), target=eight_layers().config)
    assert drafter.draft_token_ids is None and said(drafter, "d2t", "every token to itself")
    del weights["lm_head.weight"], weights["d2t"], weights["t2d"]
    target = eight_layers()
    drafter = import_drafter(write(tmp_path / "headless", {**raw, "draft_vocab_size": None}, weights), target=target)
    assert torch.equal(drafter.lm_head.weight, target.lm_head.weight) and said(drafter, "lm_head", "copied")
    with pytest.raises(ValueError, match="missing weights `lm_head.weight`"):
        import_drafter(tmp_path / "headless", target=target.config)


# ---- what is filled in, converted, left out -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, {"rope_type": "default", "rope_theta": 10000.0}),
        ({"rope_theta": 1e6, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 1e6}),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            {"rope_type": "default", "rope_theta": 5e5},
        ),
        (
            {"rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e4},
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
            {"rope_type": "default", "rope_theta": 1e6},
        ),
    ],
)
def test_rope(tmp_path, fields, expected):
    folder = write(tmp_path / "head", {**FLAT_CONFIG, **fields}, random_weights())
    # The target's own theta must play no part.
    target = eight_layers(rope_parameters={"rope_type": "default", "rope_theta": 777.0})
    drafter = import_drafter(folder, target=target.config)
    assert drafter.config.rope_parameters == expected
    assert said(drafter, "no `rope_theta`") == (fields == {})


def test_stored_frequencies_are_compared(tmp_path):
    weights = random_weights()
    weights["midlayer.self_attn.rotary_emb.inv_freq"] = 1e6 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    folder = write(tmp_path / "head", {**FLAT_CONFIG, "rope_theta": 1e6}, weights)
    assert said(import_drafter(folder, target=eight_layers().config), "frequencies")
    write(folder, FLAT_CONFIG, weights)
    with pytest.raises(ValueError, match=r"rotary frequencies.*10000 but of about 1e\+06"):
        import_drafter(folder, target=eight_layers().config)


@pytest.mark.parametrize(
    "fields, convention, expected, note",
    [
        ({TOP: [1, 3, 6]}, "auto", [1, 3, 6], None),  # vLLM: hidden_states[k]
        ({"eagle_config": {TOP: [0, 2, 5]}}, "auto", [1, 3, 6], "layer outputs"),  # SGLang: output of layer k
        ({"eagle_config": {TOP: [0, 2, 5]}}, "input", [0, 2, 5], None),
        ({TOP: [0, 2, 5]}, "output", [1, 3, 6], None),
        ({TOP: [1, 3, 6], "eagle_config": {TOP: [0, 2, 5]}}, "auto", [1, 3, 6], None),
        ({"eagle_config": {TOP: [1, 3, 4]}}, "auto", DEFAULT_LAYERS, "SpecForge's default"),
        ({"eagle_config": {TOP: DEFAULT_LAYERS}}, "auto", DEFAULT_LAYERS, "vLLM's default"),
        ({TOP: [1, 3, 4]}, "auto", [1, 3, 4], "rarely accepted"),
        ({TOP: [6, 1, 3]}, "auto", [1, 3, 6], "sorted"),
        ({"eagle_config": {TOP: []}}, "auto", DEFAULT_LAYERS, "names no feature layers"),
    ],
)
def test_layer_ids(tmp_path, fields, convention, expected, note):
    folder = write(tmp_path / "head", {**FLAT_CONFIG, "rope_theta": 1e4, **fields}, random_weights())
    drafter = import_drafter(folder, target=eight_layers().config, layer_id_convention=convention)
    assert drafter.config.aux_layer_ids == expected == list(drafter.feature_layer_ids)
    assert said(drafter, note) if note else not drafter.import_report.notes


def test_overrides_win(tmp_path):
    folder = write(tmp_path / "head", {**FLAT_CONFIG, "norm_output": True}, random_weights())
    drafter = import_drafter(
        folder,
        aux_layer_ids=[1, 2, 3],
        norm_output=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    assert drafter.config.aux_layer_ids == [1, 2, 3] and drafter.config.rope_parameters["rope_theta"] == 5e5
    assert not drafter.config.norm_output and not said(drafter, "rope_theta")


@pytest.mark.parametrize("lost", ["d2t", "t2d"])
def test_a_lost_vocabulary_map_is_rebuilt(tmp_path, lost):
    weights = random_weights()
    full = {name: weights[name].clone() for name in ("d2t", "t2d")}
    del weights[lost]
    drafter = import_drafter(write(tmp_path / "head", FLAT_CONFIG, weights), target=eight_layers().config)
    assert torch.equal(drafter.d2t, full["d2t"]) and torch.equal(drafter.t2d, full["t2d"])
    assert said(drafter, f"`{lost}` was missing")


def test_unknown_fields_and_sliding_windows_are_said(tmp_path):
    raw = {**FLAT_CONFIG, "frobnication": 3, "layer_types": ["sliding_attention"], "sliding_window": 2048}
    drafter = import_drafter(write(tmp_path / "head", raw, random_weights()), target=eight_layers().config)
    assert said(drafter, "`frobnication`") and said(drafter, "last 2048 tokens")


def test_zero_bias_of_the_output_projection_is_dropped(tmp_path):
    biases = {f"midlayer.self_attn.{p}_proj.bias": (n,) for p, n in (("q", 32), ("k", 16), ("v", 16))}
    weights = random_weights(**biases)
    weights["midlayer.self_attn.o_proj.bias"] = torch.zeros(H)
    raw = {**FLAT_CONFIG, "attention_bias": True}
    drafter = import_drafter(write(tmp_path / "head", raw, weights), target=eight_layers().config)
    assert said(drafter, "o_proj.bias", "zero")
    weights["midlayer.self_attn.o_proj.bias"][3] = 0.5
    with pytest.raises(ValueError, match="unknown weights `midlayer.self_attn.o_proj.bias`.*not zero"):
        import_drafter(write(tmp_path / "head", raw, weights), target=eight_layers().config)


# ---- the saved folder -----------------------------------------------------------------------------------------------


def test_output_is_a_drafter_with_its_provenance(tmp_path):
    folder = write(tmp_path / "head", FLAT_CONFIG, random_weights())
    (folder / "LICENSE").write_text("Some licence.")
    (folder / "provenance.json").write_text('{"data": "ShareGPT"}')
    target, output = eight_layers(), tmp_path / "out" / "drafter"
    drafter = import_drafter(folder, target=target, output=output)
    loaded = AutoDrafter.from_pretrained(output)
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded.config.to_diff_dict() == AutoDrafter.from_pretrained(output).config.to_diff_dict()
    assert (output / "LICENSE").read_text() == "Some licence."
    provenance = json.loads((output / "provenance.json").read_text())
    assert provenance["data"] == "ShareGPT" and provenance["imported_from"]["source"] == "head"
    assert provenance["imported_from"]["notes"] == drafter.import_report.notes
    assert str(tmp_path) not in (output / "provenance.json").read_text() + (output / "config.json").read_text()
    with pytest.raises(FileExistsError, match="`output`.*not empty"):
        import_drafter(folder, target=target, output=output)


def test_from_the_hub_cache(tmp_path):
    """What the real client finds in its cache, offline; and what it says of a repository it does not have."""
    cache = Path(constants.HF_HUB_CACHE) / "models--org--head"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    weights = random_weights()
    write(cache / "snapshots" / ("0" * 40), FLAT_CONFIG, weights, "sharded")
    drafter = import_drafter("org/head", target=eight_layers().config, output=tmp_path / "out")
    assert torch.equal(drafter.fc.weight, weights["fc.weight"])
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["imported_from"]["source"] == "org/head"
    with pytest.raises(OSError, match="neither a folder here nor a Hub repository"):
        import_drafter("org/no-such-head")


def test_an_imported_drafter_decodes(tmp_path):
    target = eight_layers()
    drafter = import_drafter(write(tmp_path / "head", FLAT_CONFIG, random_weights()), target=target)
    inputs = torch.tensor([[5, 9, 33, 2]])
    plain = target.generate(inputs, max_new_tokens=12, do_sample=False)
    assert torch.equal(target.generate(inputs, max_new_tokens=12, do_sample=False, assistant_model=drafter), plain)
