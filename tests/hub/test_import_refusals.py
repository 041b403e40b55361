# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Foreign checkpoints that are refused, each with an error that names what is wrong."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from ppow_hf.hub.importer import import_drafter
from tests.hub.foreign_checkpoints import (
    DRAFT_VOCAB,
    FLAT_CONFIG,
    SPECULATORS_CONFIG,
    TOP,
    H,
    eight_layers,
    random_weights,
    speculators_weights,
    write,
)


def change(weights, name, value):
    if value is None:
        del weights[name]
    else:
        weights[name] = value


REFUSED_WEIGHTS = {
    "missing": ({"midlayer.mlp.up_proj.weight": None}, "missing weights `midlayer.mlp.up_proj.weight`"),
    "unknown": ({"midlayer.extra.weight": torch.ones(2)}, "unknown weights `midlayer.extra.weight`"),
    "mis-shaped": (
        {"midlayer.self_attn.k_proj.weight": torch.ones(16, 32)},
        r"`midlayer.self_attn.k_proj.weight` has shape \(16, 32\) instead of \(16, 64\)",
    ),
    "qk norms": ({"midlayer.self_attn.q_norm.weight": torch.ones(8)}, "unknown weights.*Qwen3 form"),
    "quantised": ({"fc.weight": torch.ones(H, 3 * H, dtype=torch.int8)}, "`fc.weight` is stored as int8"),
    "not finite": ({"norm.weight": torch.full((H,), float("nan"))}, "`norm.weight` holds values that are not finite"),
    "no maps": ({"d2t": None, "t2d": None}, "Missing weights: `d2t` and `t2d`"),
    "short d2t": ({"d2t": torch.zeros(39, dtype=torch.long)}, r"`d2t` has shape \(39,\) instead of \(40,\)"),
    "other maps": ({"d2t": torch.zeros(DRAFT_VOCAB, dtype=torch.long)}, "different draft vocabularies"),
    "twice": ({"layers.0.hidden_norm.weight": torch.ones(H)}, "holds `midlayer.hidden_norm.weight` twice"),
}


@pytest.mark.parametrize("case", REFUSED_WEIGHTS)
def test_refused_weights(tmp_path, case):
    changes, message = REFUSED_WEIGHTS[case]
    weights = random_weights()
    for name, value in changes.items():
        change(weights, name, value)
    folder = write(tmp_path / "head", FLAT_CONFIG, weights)
    with pytest.raises(ValueError, match=message):
        import_drafter(folder, target=eight_layers().config, output=tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["head"]


REFUSED_CONFIGS = {
    "no sizes": ({"hidden_size": None}, "lacks `hidden_size`"),
    "two thetas": ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "several values for `rope_theta`"),
    "rope type": ({"rope_scaling": {"type": "spiral"}}, "RoPE type 'spiral'"),
    "partly rotated": ({"partial_rotary_factor": 0.5}, "rotate whole heads"),
    "two id lists": ({TOP: [1, 3, 6], "eagle_config": {TOP: [2, 4, 5]}}, "two sets of feature layers"),
    "layer out of range": ({TOP: [1, 3, 8]}, r"strictly ascending integers in \[0, 7\]"),
    "logit scale": ({"logit_scale": 0.5}, "`logit_scale`=0.5"),
    "no fc": ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state"),
    "other target": ({"vocab_size": 128}, "`vocab_size`=128, but the target"),
    "a language model": ({"num_hidden_layers": 32}, "language model"),
    "ours": ({"model_type": "ppow_eagle3"}, "a drafter of this library already"),
    "speculators, other algorithm": ({"speculators_model_type": "dflash"}, "'dflash' drafter"),
}


@pytest.mark.parametrize("case", REFUSED_CONFIGS)
def test_refused_configs(tmp_path, case):
    fields, message = REFUSED_CONFIGS[case]
    folder = write(tmp_path / "head", {**FLAT_CONFIG, **fields}, random_weights())
    with pytest.raises(ValueError, match=message):
        import_drafter(folder, target=eight_layers().config)


def test_refused_kinds(tmp_path):
    folder = write(tmp_path / "lm", FLAT_CONFIG, {"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="whole language model.*AutoDrafter"):
        import_drafter(folder, target=eight_layers().config)
    eagle2 = {"fc.weight": torch.ones(H, 2 * H), "layers.0.mlp.up_proj.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match="EAGLE-1 or EAGLE-2"):
        import_drafter(write(tmp_path / "eagle2", FLAT_CONFIG, eagle2), target=eight_layers().config)
    with pytest.raises(ValueError, match="number of layers is not known: pass `target`"):
        import_drafter(write(tmp_path / "head", FLAT_CONFIG, random_weights()))
    raw = {k: v for k, v in SPECULATORS_CONFIG.items() if k != "norm_before_residual"}
    with pytest.raises(ValueError, match="speculators takes as false and vLLM as true"):
        import_drafter(write(tmp_path / "spec", raw, speculators_weights(eight_layers())))
    with pytest.raises(ValueError, match="Unknown field.*nonsense"):
        import_drafter(tmp_path / "head", nonsense=1)


def test_another_or_trained_embedding_is_refused(tmp_path):
    target = eight_layers()
    weights = speculators_weights(target)
    weights["embed_tokens.weight"][7] += 1
    folder = write(tmp_path / "head", SPECULATORS_CONFIG, weights)
    with pytest.raises(ValueError, match="is not the embedding of the target"):
        import_drafter(folder, target=target)
    folder = write(tmp_path / "trained", {**SPECULATORS_CONFIG, "embed_requires_grad": True}, weights)
    with pytest.raises(ValueError, match="embedding was trained"):
        import_drafter(folder)


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_that_runs_code_is_not_read(tmp_path):
    folder = write(tmp_path / "head", FLAT_CONFIG, {}, "bin")
    torch.save({**random_weights(), "x": _Payload(str(tmp_path / "ran"))}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="could run code"):
        import_drafter(folder, target=eight_layers().config)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", ["safetensors", "bin", "sharded", "sharded-bin"])
def test_truncated_files(tmp_path, how):
    folder = write(tmp_path / "head", FLAT_CONFIG, random_weights(), how)
    victim = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])[-1]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with pytest.raises(OSError, match=f"{victim.name}.*truncated or damaged"):
        import_drafter(folder, target=eight_layers().config)


def test_files_that_are_missing_or_wrong(tmp_path):
    target = eight_layers().config
    with pytest.raises(FileNotFoundError, match="no such folder"):
        import_drafter(tmp_path / "nowhere")
    folder = write(tmp_path / "head", FLAT_CONFIG, random_weights(), "sharded")
    second = folder / "model-00002-of-00002.safetensors"
    kept = load_file(second)
    os.remove(second)
    with pytest.raises(FileNotFoundError, match="lacks model-00002-of-00002.safetensors"):
        import_drafter(folder, target=target)
    save_file(dict(list(kept.items())[1:]), second)
    with pytest.raises(OSError, match=f"no shard holds: {next(iter(kept))}"):
        import_drafter(folder, target=target)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="outside of its folder"):
        import_drafter(folder, target=target)
    os.remove(index)
    os.remove(second)
    os.remove(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        import_drafter(folder, target=target)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="truncated or not JSON"):
        import_drafter(folder, target=target)
    os.remove(folder / "config.json")
    with pytest.raises(FileNotFoundError, match="no config.json"):
        import_drafter(folder, target=target)
