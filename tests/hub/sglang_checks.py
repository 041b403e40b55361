# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Exports read by SGLang's own configuration and weight-loading code, on the CPU; see `test_engine_packages.py`.

SGLang builds its drafter from our config.json and loads our file by its own names (it passes over names it does not
know, and leaves what is not in the file as it was); every parameter is then compared.
"""

import os

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
import torch._inductor.compile_fx  # noqa: E402  looks for triton, and must not find the stand-in
from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402, F401
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from ppow_hf.hub.exporter import export_drafter  # noqa: E402
from tests.hub.engine_stubs import expected_parameters, stub_missing  # noqa: E402
from tests.hub.foreign_checkpoints import VOCAB  # noqa: E402
from tests.hub.test_export import make  # noqa: E402

stub_missing("torchvision", "triton", "tvm_ffi", "sgl_kernel", "vllm._C")

from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel  # noqa: E402
from sglang.srt.models.llama_eagle3 import LlamaForCausalLMEagle3  # noqa: E402
from sglang.srt.runtime_context import get_parallel  # noqa: E402
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler  # noqa: E402

IDS = "eagle_aux_hidden_state_layer_ids"
CASES = {
    "plain": {},
    "own layers": {"aux_layer_ids": [1, 3, 6]},
    "two features": {"aux_layer_ids": [3, 6]},
    "EAGLE-3.1": {"fc_norm": True, "norm_output": True},
    "norm_before_fc": {"norm_before_fc": True},
    "head_dim": {"head_dim": 12},
    "whole vocabulary": {"draft_vocab_size": VOCAB},
    "own width": {"hidden_size": 48, "num_attention_heads": 6},
    "scaled rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e4}},
}
PORTABLE = ("plain", "whole vocabulary")


@pytest.fixture(scope="module", autouse=True)
def single_process(tmp_path_factory):
    set_global_server_args_for_scheduler(ServerArgs(model_path="none", device="cpu"))
    init_distributed_environment(1, 0, f"file://{tmp_path_factory.mktemp('gloo') / 'init'}", 0, backend="gloo")
    initialize_model_parallel(backend="gloo")
    with get_parallel().override(tp_size=1, tp_rank=0, attn_tp_size=1, attn_tp_rank=0):
        yield


@pytest.mark.parametrize(
    ("case", "format"), [(case, "sglang") for case in CASES] + [(case, "eagle") for case in PORTABLE]
)
def test_sglang_loads_every_weight(tmp_path, case, format):
    target, drafter = make(**CASES[case])
    export_drafter(drafter, tmp_path / "export", format, target=target)
    config = AutoConfig.from_pretrained(tmp_path / "export")
    assert config.architectures == [LlamaForCausalLMEagle3.__name__]  # how SGLang finds its class
    model = LlamaForCausalLMEagle3(config)
    for parameter in model.parameters():
        if parameter.dtype.is_floating_point:
            parameter.data.fill_(float("nan"))
    model.load_weights(load_file(tmp_path / "export" / "model.safetensors").items())

    parameters = dict(model.named_parameters())
    for name, tensor in expected_parameters(drafter).items():
        theirs = parameters.pop(name)
        if name == "lm_head.weight":
            theirs = theirs[: len(tensor)]  # rows up to a multiple of 64
        assert torch.equal(theirs, tensor), name
    embedding = parameters.pop("model.embed_tokens.weight")
    # Left out, so that the target's is used, unless the drafter has its own.
    assert bool(embedding.isnan().all()) is (case != "own width")
    assert not parameters, list(parameters)
    if drafter.draft_token_ids is not None:
        assert torch.equal(model.hot_token_id, drafter.draft_token_ids)
    if case == "own layers":
        assert config.eagle_config[IDS] == [0, 2, 5]  # SGLang adds one: it counts outputs of layers
    assert model.model.num_aux_hidden_states == len(drafter.config.aux_layer_ids)
    assert model.model.norm_output is drafter.config.norm_output
