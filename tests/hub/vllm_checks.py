# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Exports read by vLLM's own configuration and weight-loading code, on the CPU; see `test_engine_packages.py`.

vLLM builds its drafter from our config.json and loads our file by its own names; every parameter is then compared.
"""

import os

os.environ["VLLM_TARGET_DEVICE"] = "cpu"
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"

import pytest  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer  # noqa: E402, F401

from ppow_hf.hub.exporter import export_drafter  # noqa: E402
from tests.hub.engine_stubs import expected_parameters, stub_missing  # noqa: E402
from tests.hub.foreign_checkpoints import VOCAB  # noqa: E402
from tests.hub.test_export import make  # noqa: E402

stub_missing("xgrammar", "llguidance")

import vllm.config as vllm_config  # noqa: E402
from vllm.distributed import init_distributed_environment, initialize_model_parallel  # noqa: E402
from vllm.model_executor.models import registry  # noqa: E402
from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM  # noqa: E402

# vLLM looks at model classes in a process of its own, which would lack the stand-ins.
registry._run_in_subprocess = lambda function: function()
IDS = "eagle_aux_hidden_state_layer_ids"
CASES = {
    "plain": {},
    "own layers": {"aux_layer_ids": [1, 3, 6]},
    "two features": {"aux_layer_ids": [3, 6]},
    "EAGLE-3.1": {"fc_norm": True, "norm_output": True},
    "other norms": {"norm_before_fc": True, "norm_before_residual": True},
    "head_dim": {"head_dim": 12},
    "two layers": {"num_hidden_layers": 2},
    "biases": {"attention_bias": True},
    "whole vocabulary": {"draft_vocab_size": VOCAB},
    "own width": {"hidden_size": 48, "num_attention_heads": 6},
    "scaled rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e4}},
}
# What a form cannot express is refused by the export, which other tests check.
PORTABLE = ("plain", "whole vocabulary")
SPECULATORS = [case for case in CASES if case != "own width"]


@pytest.fixture(scope="module", autouse=True)
def single_process(tmp_path_factory):
    with vllm_config.set_current_vllm_config(vllm_config.VllmConfig()):
        init_distributed_environment(1, 0, f"file://{tmp_path_factory.mktemp('gloo') / 'init'}", 0, backend="gloo")
        initialize_model_parallel(1, 1)


def load(target_folder, folder, method="eagle3"):
    """The drafter as vLLM builds and fills it, with NaN wherever no weight arrives."""
    target = vllm_config.ModelConfig(
        model=str(target_folder), skip_tokenizer_init=True, dtype="float32", enforce_eager=True
    )
    parallel = vllm_config.ParallelConfig()
    speculative = vllm_config.SpeculativeConfig(
        model=str(folder),
        method=method,
        num_speculative_tokens=5,
        target_model_config=target,
        target_parallel_config=parallel,
    )
    assert speculative.method == "eagle3"
    config = vllm_config.VllmConfig(
        model_config=target,
        speculative_config=speculative,
        parallel_config=parallel,
        device_config=vllm_config.DeviceConfig(device="cpu"),
        compilation_config=vllm_config.CompilationConfig(mode=0, custom_ops=["none"]),
    )
    with vllm_config.set_current_vllm_config(config):
        model = Eagle3LlamaForCausalLM(vllm_config=config)
        for parameter in model.parameters():
            if parameter.dtype.is_floating_point:
                parameter.data.fill_(float("nan"))
        model.load_weights(load_file(folder / "model.safetensors").items())
    return speculative.draft_model_config.hf_config, model


@pytest.mark.parametrize(
    ("case", "format"),
    [(case, "vllm") for case in CASES]
    + [(case, "eagle") for case in PORTABLE]
    + [(case, "speculators") for case in SPECULATORS],
)
def test_vllm_loads_every_weight(tmp_path, case, format):
    target, drafter = make(**CASES[case])
    target.save_pretrained(tmp_path / "target")
    drafter.config.target_name_or_path = str(tmp_path / "target")
    export_drafter(drafter, tmp_path / "export", format, target=target)
    config, model = load(tmp_path / "target", tmp_path / "export")

    parameters = dict(model.named_parameters())
    for name, tensor in expected_parameters(drafter).items():
        theirs = parameters.pop(name)
        if name == "lm_head.weight":
            theirs, padding = theirs.split([len(tensor), len(theirs) - len(tensor)])  # rows up to a multiple of 64
            assert not padding.any()
        assert torch.equal(theirs, tensor), name
    if drafter.draft_token_ids is not None:
        offsets = parameters.pop("draft_id_to_target_id")
        assert torch.equal(offsets + torch.arange(len(offsets)), drafter.draft_token_ids)
    embedding = parameters.pop("model.embed_tokens.weight")
    if format == "speculators" or case == "own width":
        assert not embedding.isnan().any()
    else:
        assert embedding.isnan().all()  # left out: the target's is used
    # A bias that only vLLM has is written as zeros; a second layer's norm of the states is there and never used.
    for name, tensor in parameters.items():
        assert name.endswith("o_proj.bias") and not tensor.any() or name == "model.layers.1.hidden_norm.weight", name

    assert config.draft_vocab_size == drafter.config.draft_vocab_size
    assert getattr(config, "norm_before_residual", False) is drafter.config.norm_before_residual
    assert getattr(config, "norm_output", False) is drafter.config.norm_output
    if case == "own layers":
        assert getattr(config, IDS) == [1, 3, 6]
    assert config.rope_parameters["rope_theta"] == drafter.config.rope_parameters["rope_theta"]
