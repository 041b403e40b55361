# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""EAGLE-3 checkpoints written by hand in the layouts of other projects, and what they must compute.

Names, shapes and fields are spelled out here, so that nothing of the library's own writer is tested against itself.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from tests.drafters.reference_eagle3 import ReferenceEagle3
from tests.testing_utils import tiny_target

H, MLP, HEADS, KV_HEADS, HEAD_DIM, VOCAB, DRAFT_VOCAB, LAYERS = 32, 64, 4, 2, 8, 96, 40, 8
TOP = "eagle_aux_hidden_state_layer_ids"
# Of a target of 8 layers: 2, 8 // 2, 8 - 3.
DEFAULT_LAYERS = [2, 4, 5]

# As in the SafeAILab repository: no rope_theta, no feature layers.
FLAT_CONFIG = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": H,
    "initializer_range": 0.02,
    "intermediate_size": MLP,
    "max_position_embeddings": 128,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.28.1",
    "use_cache": True,
    "vocab_size": VOCAB,
    "draft_vocab_size": DRAFT_VOCAB,
}

# As speculators 0.9 saves it: defaults of the layer configuration are left out.
SPECULATORS_CONFIG = {
    "architectures": ["Eagle3DraftModel"],
    "draft_vocab_size": DRAFT_VOCAB,
    "dtype": "float32",
    "eagle_aux_hidden_state_layer_ids": [1, 3, 6],
    "embed_requires_grad": False,
    "fc_norm": False,
    "norm_before_fc": True,
    "norm_before_residual": True,
    "norm_output": True,
    "speculators_config": {
        "algorithm": "eagle3",
        "default_proposal_method": "greedy",
        "proposal_methods": [
            {"accept_tolerance": 0.0, "proposal_type": "greedy", "speculative_tokens": 3, "verifier_accept_k": 1}
        ],
        "verifier": {"architectures": ["LlamaForCausalLM"], "name_or_path": "org/tiny-target"},
    },
    "speculators_model_type": "eagle3",
    "speculators_version": "0.9.0",
    "target_hidden_size": None,
    "tie_word_embeddings": False,
    "transformer_layer_config": {
        "head_dim": HEAD_DIM,
        "hidden_size": H,
        "intermediate_size": MLP,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": 1,
        "num_key_value_heads": KV_HEADS,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        "vocab_size": VOCAB,
    },
    "transformers_version": "5.19.0",
}


def random_weights(first_layer: str = "midlayer", seed: int = 0, **extra: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Float32 weights of a drafter with three features, `d2t` and `t2d` included; `extra` names further shapes."""
    shapes = {
        "fc.weight": (H, 3 * H),
        f"{first_layer}.input_layernorm.weight": (H,),
        f"{first_layer}.hidden_norm.weight": (H,),
        f"{first_layer}.post_attention_layernorm.weight": (H,),
        f"{first_layer}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, 2 * H),
        f"{first_layer}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, 2 * H),
        f"{first_layer}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, 2 * H),
        f"{first_layer}.self_attn.o_proj.weight": (H, HEADS * HEAD_DIM),
        f"{first_layer}.mlp.gate_proj.weight": (MLP, H),
        f"{first_layer}.mlp.up_proj.weight": (MLP, H),
        f"{first_layer}.mlp.down_proj.weight": (H, MLP),
        "norm.weight": (H,),
        "lm_head.weight": (DRAFT_VOCAB, H),
        **extra,
    }
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        weights[name] = 1 + 0.3 * noise if "norm" in name else 0.2 * noise
    ids = torch.randperm(VOCAB, generator=generator)[:DRAFT_VOCAB].sort().values
    weights["d2t"] = ids - torch.arange(DRAFT_VOCAB)
    weights["t2d"] = torch.zeros(VOCAB, dtype=torch.bool)
    weights["t2d"][ids] = True
    return weights


def write(folder: Path, config: dict, weights: dict[str, torch.Tensor], how: str = "safetensors") -> Path:
    """Writes a checkpoint: `safetensors`, `bin`, `sharded` (safetensors) or `sharded-bin`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if how == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    elif how == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        stem, suffix = ("model", "safetensors") if how == "sharded" else ("pytorch_model", "bin")
        names = sorted(weights)
        parts = [names[0::2], names[1::2]]
        files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
        for part, file in zip(parts, files, strict=True):
            tensors = {name: weights[name] for name in part}
            if suffix == "bin":
                torch.save(tensors, folder / file)
            else:
                save_file(tensors, folder / file)
        weight_map = {name: file for part, file in zip(parts, files, strict=True) for name in part}
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def reference(weights: dict[str, torch.Tensor], embedding: torch.Tensor, **options) -> ReferenceEagle3:
    """The written-out float64 computation on foreign weights, with options stated by the test."""
    config = {
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "target_hidden_size": H,
        "aux_layer_ids": DEFAULT_LAYERS,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0},
        "norm_before_residual": False,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        **options,
    }
    weights = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in weights.items()}
    return ReferenceEagle3(SimpleNamespace(config=SimpleNamespace(**config), state_dict=lambda: weights), embedding)


def assert_computes(drafter, target, exact: ReferenceEagle3) -> None:
    """A drafter's logits equal the written-out computation over a prompt and a window, to 1e-9 in float64."""
    drafter, target = drafter.double(), target.double()
    drafter.bind_target(target)
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, VOCAB, (1, 7), generator=generator)
    features = torch.randn(1, 6, drafter.fc.in_features, generator=generator, dtype=torch.float64)
    state = drafter.new_state()
    logits, drafted = drafter.extend(state, tokens, features), []
    for token in (3, 70, 11, 42, 3, 8):
        expected = exact.logits(tokens[0].tolist(), features[0], drafted)
        torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-9)
        drafted.append(token)
        logits = drafter.step(state, torch.tensor([token]))


def eight_layers(**options):
    """The target these checkpoints are for."""
    return tiny_target(num_hidden_layers=LAYERS, vocab_size=VOCAB, **options)


def said(drafter, *words) -> bool:
    """Whether one note of the import holds all these words."""
    return any(all(word in note for word in words) for note in drafter.import_report.notes)


def speculators_weights(target, **extra):
    """Weights for `SPECULATORS_CONFIG`, with the copy of the target's embedding."""
    weights = random_weights("layers.0", **{"input_norm.weight": (3 * H,)}, **extra)
    return {**weights, "embed_tokens.weight": target.get_input_embeddings().weight.detach().clone()}
