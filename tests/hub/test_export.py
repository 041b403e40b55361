# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Drafters in the forms of other engines: names, fields, refusals, and the way back without loss."""

import json
import shlex

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import CliRunner

from ppow_hf import AutoDrafter, WindowConfig
from ppow_hf.hub.exporter import export_drafter
from ppow_hf.hub.importer import import_drafter
from tests.drafters.reference_eagle3 import randomize_
from tests.hub.foreign_checkpoints import DRAFT_VOCAB, LAYERS, VOCAB
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

IDS = "eagle_aux_hidden_state_layer_ids"
# What every engine that reads the flat form looks for: eagle3_flat's own list is not used here.
FLAT_NAMES = {
    "fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d",
    *(f"midlayer.{n}.weight" for n in ("input_layernorm", "hidden_norm", "post_attention_layernorm")),
    *(f"midlayer.self_attn.{n}_proj.weight" for n in "qkvo"),
    *(f"midlayer.mlp.{n}_proj.weight" for n in ("gate", "up", "down")),
}  # fmt: skip


def make(seed: int = 0, target_options: dict | None = None, dtype=torch.float32, **options):
    """A target of 8 layers, and a drafter with random weights in every parameter."""
    target = tiny_target(num_hidden_layers=LAYERS, vocab_size=VOCAB, **(target_options or {}))
    options.setdefault("draft_vocab_size", DRAFT_VOCAB)
    drafter = randomize_(tiny_eagle3(target, seed=seed, **options), seed)
    for parameter in drafter.parameters():  # Not `.to(dtype)`, which would round the rotary frequencies.
        parameter.data = parameter.data.to(dtype)
    drafter.config.dtype = dtype
    drafter.config.target_name_or_path = "org/tiny-target"
    return target, drafter


def files(folder):
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def drafts(drafter, target):
    """Logits of a prompt and a six-token window."""
    drafter.bind_target(target)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, VOCAB, (1, 6), generator=generator)
    features = torch.randn(1, 5, drafter.fc.in_features, generator=generator).to(drafter.dtype)
    state = drafter.new_state()
    found = [drafter.extend(state, tokens, features)]
    for token in (4, 8, 15, 16, 23):
        found.append(drafter.step(state, torch.tensor([token])))
    return torch.stack(found)


def assert_same(back, drafter, target):
    ours, theirs = drafter.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    fields = {k: v for k, v in drafter.config.to_dict().items() if k not in ("architectures", "_name_or_path")}
    assert fields == {k: v for k, v in back.config.to_dict().items() if k in fields}
    assert torch.equal(drafts(back, target), drafts(drafter, target))


# ---- round trips ----------------------------------------------------------------------------------------------------

ALL = ("eagle", "sglang", "vllm", "speculators")
# Options, and the formats that can express them.
PORTABLE = {
    "plain": ({}, ALL),
    "whole vocabulary": ({"draft_vocab_size": VOCAB}, ALL),
    "bfloat16": ({"dtype": torch.bfloat16}, ALL),
    "float16": ({"dtype": torch.float16}, ALL),
    "theta": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, ALL),
    "multi-head": ({"num_attention_heads": 4, "num_key_value_heads": 4}, ALL),
    "narrow": ({"hidden_size": 48, "num_attention_heads": 6}, ("eagle", "sglang", "vllm")),
    "own layers": ({"aux_layer_ids": [1, 3, 6]}, ("sglang", "vllm", "speculators")),
    "two features": ({"aux_layer_ids": [3, 6]}, ("sglang", "vllm", "speculators")),
    "embedding output": ({"aux_layer_ids": [0, 3, 6]}, ("vllm", "speculators")),
    "head_dim": ({"head_dim": 12}, ("sglang", "vllm", "speculators")),
    "scaled rope": (
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e4}},
        ("sglang", "vllm", "speculators"),
    ),
    "norm_before_fc": ({"norm_before_fc": True}, ("sglang", "vllm", "speculators")),
    "EAGLE-3.1": ({"fc_norm": True, "norm_output": True}, ("sglang", "vllm", "speculators")),
    "norm_before_residual": ({"norm_before_residual": True}, ("vllm", "speculators")),
    "three layers": ({"num_hidden_layers": 3}, ("vllm", "speculators")),
    "biases": ({"attention_bias": True, "mlp_bias": True}, ("vllm", "speculators")),
}


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize("case", PORTABLE)
def test_round_trip_or_refusal(tmp_path, case, format):
    options, formats = PORTABLE[case]
    target, drafter = make(**options)
    if format not in formats:
        with pytest.raises(ValueError, match=f"cannot be exported as '{format}'.*These formats take it: {formats[0]}"):
            export_drafter(drafter, tmp_path / "out", format, target=target)
        assert not list(tmp_path.iterdir())
        return
    export_drafter(drafter, tmp_path / "out", format, target=target)
    # Without a target: everything needed is in the folder.
    assert_same(import_drafter(tmp_path / "out"), drafter, target)


def test_round_trip_of_the_window(tmp_path):
    target, drafter = make()
    drafter.generation_config.window = WindowConfig.parse("fixed:3")
    report = export_drafter(drafter, tmp_path / "out")
    assert any("fixed size" in note for note in report.notes)
    assert import_drafter(tmp_path / "out").generation_config.window == drafter.generation_config.window


def test_from_folder_to_folder(tmp_path):
    target, drafter = make()
    drafter.save_pretrained(tmp_path / "drafter")
    (tmp_path / "drafter" / "LICENSE").write_text("Licence of the drafter.")
    (tmp_path / "drafter" / "provenance.json").write_text("{}")
    report = export_drafter(tmp_path / "drafter", tmp_path / "out", "sglang")
    assert (tmp_path / "out" / "LICENSE").read_text() == "Licence of the drafter."
    assert any("LICENSE, provenance.json" in note for note in report.notes)
    assert_same(import_drafter(tmp_path / "out", output=tmp_path / "back"), drafter, target)
    assert_same(AutoDrafter.from_pretrained(tmp_path / "back"), drafter, target)


# ---- what the files say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["eagle", "sglang", "vllm"])
def test_flat_files(tmp_path, format):
    _, drafter = make(rope_parameters={"rope_type": "default", "rope_theta": 5e5}, dtype=torch.bfloat16)
    export_drafter(drafter, tmp_path / "out", format)
    config, weights = files(tmp_path / "out")
    assert weights.keys() == FLAT_NAMES and weights["t2d"].dtype == torch.bool and weights["d2t"].dtype == torch.int64
    assert config["architectures"] == ["LlamaForCausalLMEagle3"] and config["model_type"] == "llama"
    assert config["draft_vocab_size"] == DRAFT_VOCAB and config["vocab_size"] == VOCAB
    assert config["rope_theta"] == 5e5 and config["rope_scaling"] is None
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5}
    assert config["tie_word_embeddings"] is False and config["norm_before_residual"] is False
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    # Default layers: no list at all, so that no engine reads it in its own way. Null would be a size to some.
    assert IDS not in config and "eagle_config" not in config and "target_hidden_size" not in config
    assert "norm_output" not in config  # False means something else to SpecForge.
    parsed = LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"})
    assert parsed.rope_parameters == config["rope_parameters"] and parsed.head_dim == 8


def test_both_numberings_of_own_layers(tmp_path):
    _, drafter = make(aux_layer_ids=[1, 3, 6])
    report = export_drafter(drafter, tmp_path / "out", "sglang")
    config, _ = files(tmp_path / "out")
    # vLLM: hidden_states[k]. SGLang: output of layer k, one lower.
    assert config[IDS] == [1, 3, 6] and config["eagle_config"][IDS] == [0, 2, 5]
    assert config["eagle_config"]["use_aux_hidden_state"] is True
    assert any("[0, 2, 5]" in note for note in report.notes)
    _, drafter = make(aux_layer_ids=[3, 6])
    export_drafter(drafter, tmp_path / "two", "vllm")
    assert files(tmp_path / "two")[0]["num_aux_hidden_states"] == 2


def test_own_embedding_is_written(tmp_path):
    _, drafter = make(hidden_size=48, num_attention_heads=6)
    export_drafter(drafter, tmp_path / "out", "vllm")
    config, weights = files(tmp_path / "out")
    assert config["target_hidden_size"] == 32 and config["hidden_size"] == 48
    assert torch.equal(weights["embed_tokens.weight"], drafter.embed_tokens.weight)


def test_speculators_files(tmp_path):
    target, drafter = make(num_hidden_layers=2, attention_bias=True)
    export_drafter(drafter, tmp_path / "out", "speculators", target=target, speculative_tokens=7)
    config, weights = files(tmp_path / "out")
    first = {name.replace("midlayer.", "layers.0.") for name in FLAT_NAMES}
    second = {n.replace(".0.", ".1.") for n in first if n.startswith("layers") and "hidden_norm" not in n}
    biases = {f"layers.{i}.self_attn.{n}_proj.bias" for i in (0, 1) for n in "qkvo"}
    assert weights.keys() == first | second | biases | {"embed_tokens.weight"}
    assert not weights["layers.1.self_attn.o_proj.bias"].any() and weights["layers.1.self_attn.q_proj.bias"].any()
    assert torch.equal(weights["layers.0.hidden_norm.weight"], drafter.midlayer.hidden_norm.weight)
    assert torch.equal(weights["layers.1.input_layernorm.weight"], drafter.layers[0].input_layernorm.weight)
    assert torch.equal(weights["embed_tokens.weight"], target.get_input_embeddings().weight)
    assert "model_type" not in config  # vLLM takes a file with one for another form.
    assert config["speculators_model_type"] == "eagle3" and config[IDS] == [2, 4, 5]
    assert config["norm_before_residual"] is False and config["norm_output"] is False
    spec = config["speculators_config"]
    assert spec["proposal_methods"][0]["speculative_tokens"] == 7
    assert spec["verifier"] == {"name_or_path": "org/tiny-target", "architectures": ["LlamaForCausalLM"]}
    layers = config["transformer_layer_config"]
    assert layers["model_type"] == "llama" and layers["num_hidden_layers"] == 2 and layers["vocab_size"] == VOCAB


def test_the_embedding_is_in_the_drafters_dtype(tmp_path):
    target, drafter = make(dtype=torch.bfloat16)
    drafter.bind_target(target)
    export_drafter(drafter, tmp_path / "out", "speculators")  # From the target it is bound to.
    weight = files(tmp_path / "out")[1]["embed_tokens.weight"]
    assert torch.equal(weight, target.get_input_embeddings().weight.bfloat16())


def test_a_target_given_as_a_folder(tmp_path):
    target, drafter = make()
    target.save_pretrained(tmp_path / "target")  # No tokenizer: none is needed.
    export_drafter(drafter, tmp_path / "out", "speculators", target=tmp_path / "target")
    config, weights = files(tmp_path / "out")
    assert torch.equal(weights["embed_tokens.weight"], target.get_input_embeddings().weight)
    assert str(tmp_path) not in json.dumps(config)


def test_a_short_context_is_said(tmp_path):
    target, drafter = make(max_position_embeddings=128)
    report = export_drafter(drafter, tmp_path / "out", "sglang", target=target.config)
    assert any("128 tokens and the target for 256" in note for note in report.notes)
    assert not export_drafter(drafter, tmp_path / "vllm", "vllm", target=target.config).notes


def test_a_causal_lm_drafter_is_a_plain_model(tmp_path):
    target = tiny_target(vocab_size=VOCAB)
    drafter = tiny_causal_drafter(target)
    report = export_drafter(drafter, tmp_path / "out", "vllm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.equal(model(tokens).logits, drafter.model(tokens).logits)
    assert torch.equal(AutoDrafter.from_pretrained(tmp_path / "out").model(tokens).logits, model(tokens).logits)
    assert "draft_model" in report.usage[0]
    with pytest.raises(ValueError, match="plain causal LM it exports for format='sglang'"):
        export_drafter(drafter, tmp_path / "other", "speculators")


def test_commands_can_be_pasted(tmp_path):
    _, drafter = make()
    report = export_drafter(drafter, tmp_path / "out", "eagle3", speculative_tokens=4)
    assert report.form == "eagle"
    sglang, vllm = (shlex.split(command) for command in report.usage)
    options = json.loads(vllm[vllm.index("--speculative-config") + 1])
    assert options == {"method": "eagle3", "model": str(tmp_path / "out"), "num_speculative_tokens": 4}
    assert sglang[sglang.index("--speculative-num-draft-tokens") + 1] == "5"  # The root is counted there.


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_bad_arguments(tmp_path):
    target, drafter = make()
    with pytest.raises(ValueError, match="`format` must be one of eagle, sglang, vllm, speculators, got 'gguf'"):
        export_drafter(drafter, tmp_path / "out", "gguf")
    with pytest.raises(ValueError, match="`speculative_tokens` must be a positive whole number, got 0"):
        export_drafter(drafter, tmp_path / "out", speculative_tokens=0)
    _, unbound = make()
    unbound._set_shared_embedding(None)
    for given in (None, target.config):
        with pytest.raises(ValueError, match="copy of the target's embedding: pass `target`"):
            export_drafter(unbound, tmp_path / "out", "speculators", target=given)
    other = tiny_target(num_hidden_layers=LAYERS + 1, vocab_size=VOCAB)
    with pytest.raises(ValueError, match="has 9 where the drafter was made for `target_num_hidden_layers`=8"):
        export_drafter(drafter, tmp_path / "out", "speculators", target=other)
    drafter.config.target_name_or_path = None
    with pytest.raises(ValueError, match="none on record: pass `target`"):
        export_drafter(drafter, tmp_path / "out", "speculators", target=target)
    with pytest.raises(ValueError, match="EAGLE asserts|silu|SiLU"):
        export_drafter(make(hidden_act="gelu")[1], tmp_path / "out", "vllm")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="`output`.*not empty"):
        export_drafter(drafter, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_nothing_half_written(tmp_path, monkeypatch):
    from ppow_hf.hub import checkpoint_files

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "save_file", fail)
    with pytest.raises(OSError, match="disk is full"):
        export_drafter(make()[1], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_unknown_number_of_target_layers_counts_as_custom(tmp_path):
    _, drafter = make()
    drafter.config.target_num_hidden_layers = None
    with pytest.raises(ValueError, match="number of layers is not recorded"):
        export_drafter(drafter, tmp_path / "out", "eagle")
    export_drafter(drafter, tmp_path / "out", "sglang")
    assert files(tmp_path / "out")[0]["eagle_config"][IDS] == [1, 3, 4]


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def app():
    import typer

    from ppow_hf.hub.exchange_commands import export, import_

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("export")(export)
    app.command("import")(import_)
    return app


def run(app, *arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_commands(tmp_path, app, monkeypatch, caplog):
    from rich.console import Console

    from ppow_hf.hub import exchange_commands

    monkeypatch.setattr(exchange_commands, "console", Console(width=300, highlight=False))
    monkeypatch.setattr(exchange_commands.logger, "level", exchange_commands.logger.level)  # Set back afterwards.
    target, drafter = make(aux_layer_ids=[1, 3, 6])
    target.save_pretrained(tmp_path / "target")
    drafter.save_pretrained(tmp_path / "drafter")
    result = run(app, "export", tmp_path / "drafter", "-o", tmp_path / "out", "--format", "sglang")
    assert result.exit_code == 0 and "[0, 2, 5]" in result.output and "--speculative-algorithm EAGLE3" in result.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for name in ("rope_theta", "rope_parameters", "ppow_hf"):
        del config[name]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    result = run(app, "import", tmp_path / "out", "-o", tmp_path / "back", "--target", tmp_path / "target")
    assert result.exit_code == 0 and "no `rope_theta`" in result.output and "[1, 3, 6]" in result.output
    back = AutoDrafter.from_pretrained(tmp_path / "back")
    assert not caplog.records  # The notes are printed, not logged as well.
    assert back.config.target_name_or_path == "target" and torch.equal(back.fc.weight, drafter.fc.weight)
    result = run(
        app, "import", tmp_path / "out", "-o", tmp_path / "third", "--aux-layers", "2,4,5", "--rope-theta", "7000"
    )
    third = AutoDrafter.from_pretrained(tmp_path / "third")
    assert third.config.aux_layer_ids == [2, 4, 5] and third.config.rope_parameters["rope_theta"] == 7000
    for command in ("export", "import"):
        assert "--seed" in run(app, command, "--help").output
    with pytest.raises(ValueError, match="`--aux-layers` takes"):
        run(app, "import", tmp_path / "out", "-o", tmp_path / "fourth", "--aux-layers", "two")
