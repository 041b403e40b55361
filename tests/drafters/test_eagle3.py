# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch
from safetensors.torch import load_file

from ppow_hf import AutoDrafter, Eagle3Drafter, Eagle3DrafterConfig

from ..testing_utils import tiny_eagle3, tiny_target
from .common import VOCAB, DrafterTesterMixin, Text, save_with
from .reference_eagle3 import VARIANTS, ReferenceEagle3, randomize_


class TestEagle3Drafter(DrafterTesterMixin):
    config_class = Eagle3DrafterConfig
    model_class = Eagle3Drafter
    weight_name = "midlayer.self_attn.q_proj.weight"

    def make_drafter(self, target):
        return randomize_(tiny_eagle3(target, draft_vocab_size=40))

    def reference_logits(self, drafter, target, tokens, features, drafted):
        exact = ReferenceEagle3(drafter, target.get_input_embeddings().weight)
        return exact.logits(tokens.tolist(), features, drafted.tolist())


class TestEagle3DrafterWithEverything(TestEagle3Drafter):
    """The same battery with every option of the architecture on, an embedding of its own among them."""

    def make_drafter(self, target):
        return randomize_(tiny_eagle3(target, **VARIANTS["everything"]))


def expected_shapes(c: Eagle3DrafterConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of public checkpoints."""
    query, key = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes = {
        "fc.weight": (c.hidden_size, len(c.aux_layer_ids) * c.target_hidden_size),
        "midlayer.input_layernorm.weight": (c.hidden_size,),
        "midlayer.hidden_norm.weight": (c.hidden_size,),
        "midlayer.post_attention_layernorm.weight": (c.hidden_size,),
        "midlayer.self_attn.q_proj.weight": (query, 2 * c.hidden_size),
        "midlayer.self_attn.k_proj.weight": (key, 2 * c.hidden_size),
        "midlayer.self_attn.v_proj.weight": (key, 2 * c.hidden_size),
        "midlayer.self_attn.o_proj.weight": (c.hidden_size, query),
        "midlayer.mlp.gate_proj.weight": (c.intermediate_size, c.hidden_size),
        "midlayer.mlp.up_proj.weight": (c.intermediate_size, c.hidden_size),
        "midlayer.mlp.down_proj.weight": (c.hidden_size, c.intermediate_size),
        "norm.weight": (c.hidden_size,),
        "lm_head.weight": (c.draft_vocab_size, c.hidden_size),
    }
    return shapes


# What each option adds to the plain checkpoint.
ADDED = {
    "norm_before_fc": {"input_norm.weight": (96,)},
    "fc_norm": {f"fc_norm.{i}.weight": (32,) for i in range(3)},
    "two_layers": {
        "layers.0.input_layernorm.weight": (32,),
        "layers.0.post_attention_layernorm.weight": (32,),
        "layers.0.self_attn.q_proj.weight": (32, 32),
        "layers.0.self_attn.k_proj.weight": (16, 32),
        "layers.0.self_attn.v_proj.weight": (16, 32),
        "layers.0.self_attn.o_proj.weight": (32, 32),
        "layers.0.mlp.gate_proj.weight": (64, 32),
        "layers.0.mlp.up_proj.weight": (64, 32),
        "layers.0.mlp.down_proj.weight": (32, 64),
    },
    "biases": {
        "midlayer.self_attn.q_proj.bias": (32,),
        "midlayer.self_attn.k_proj.bias": (16,),
        "midlayer.self_attn.v_proj.bias": (16,),
        "midlayer.mlp.gate_proj.bias": (64,),
        "midlayer.mlp.up_proj.bias": (64,),
        "midlayer.mlp.down_proj.bias": (32,),
    },
    "own_embedding": {"embed_tokens.weight": (VOCAB, 48)},
    "draft_vocabulary": {"d2t": (40,), "t2d": (VOCAB,)},
}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "everything"])
def test_state_dict_names_and_shapes(variant, tmp_path):
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB), **VARIANTS[variant])
    expected = {**expected_shapes(drafter.config), **ADDED.get(variant, {})}
    assert {name: tuple(tensor.shape) for name, tensor in drafter.state_dict().items()} == expected
    drafter.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == expected
    if variant == "draft_vocabulary":
        assert saved["d2t"].dtype == torch.int64
        assert saved["t2d"].dtype == torch.bool


def test_shared_embedding_is_not_saved_nor_counted(tmp_path):
    target = tiny_target(vocab_size=VOCAB)
    drafter = tiny_eagle3(target)
    table = target.get_input_embeddings().weight
    assert all(parameter is not table for parameter in drafter.parameters())
    drafter.save_pretrained(tmp_path)
    assert not any("embed" in name for name in load_file(tmp_path / "model.safetensors"))
    assert not any(
        tensor.shape == table.shape for name, tensor in drafter.state_dict().items() if name != "lm_head.weight"
    )


def test_without_a_target_the_shared_embedding_is_asked_for(tmp_path):
    tiny_eagle3(tiny_target(vocab_size=VOCAB)).save_pretrained(tmp_path)
    drafter = AutoDrafter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"bind_target\(target\)"):
        Text(drafter, 5).extend(drafter, drafter.new_state(), 5)


def test_own_embedding_needs_no_target(tmp_path):
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB), hidden_size=48)
    drafter.save_pretrained(tmp_path)
    loaded = AutoDrafter.from_pretrained(tmp_path)
    logits = Text(loaded, 5).extend(loaded, loaded.new_state(), 5)
    assert torch.equal(logits, Text(drafter, 5).extend(drafter, drafter.new_state(), 5))


def test_binding_another_target_takes_its_embedding():
    first, second = tiny_target(vocab_size=VOCAB, seed=0), tiny_target(vocab_size=VOCAB, seed=1)
    drafter = tiny_eagle3(first)
    token = torch.tensor([[5]])
    drafter.bind_target(second)
    assert torch.equal(drafter._embed(token), second.get_input_embeddings()(token))
    drafter.bind_target(first)
    assert torch.equal(drafter._embed(token), first.get_input_embeddings()(token))


def test_a_freed_target_is_not_mistaken_for_a_new_one():
    """Python hands out a freed object's `id` again: every one of many short-lived targets must really be bound."""
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB))
    for seed in range(1, 12):
        target = tiny_target(vocab_size=VOCAB, seed=seed)
        drafter.bind_target(target)
        assert torch.equal(drafter._embed(torch.arange(VOCAB)), target.get_input_embeddings().weight)
        del target


def test_moving_the_bound_target_keeps_the_tie():
    target = tiny_target(vocab_size=VOCAB)
    drafter = tiny_eagle3(target)
    target.to(torch.float64)
    assert drafter._embed(torch.tensor([[5]])).dtype == drafter.fc.weight.dtype == torch.float32


@pytest.mark.parametrize("count", [3, 6, 0])
def test_wrong_number_of_features_is_refused(count):
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB))
    with pytest.raises(ValueError, match=rf"`features` must cover 4 newly verified positions.*got {count}"):
        drafter.extend(drafter.new_state(), torch.ones(1, 5, dtype=torch.long), torch.zeros(1, count, 96))


def test_missing_features_are_refused():
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB))
    with pytest.raises(ValueError, match="`features` must cover 4 newly verified positions"):
        drafter.extend(drafter.new_state(), torch.ones(1, 5, dtype=torch.long))


def test_a_lone_first_token_is_refused():
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB))
    with pytest.raises(ValueError, match="`input_ids` must hold at least the prompt and the first generated token"):
        drafter.extend(drafter.new_state(), torch.ones(1, 1, dtype=torch.long), torch.zeros(1, 0, 96))


def test_forward_refuses_shapes_that_do_not_agree():
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB))
    tokens = torch.ones(2, 7, dtype=torch.long)
    with pytest.raises(ValueError, match="`target_features`"):
        drafter(tokens, torch.zeros(2, 6, 96))
    with pytest.raises(ValueError, match=r"`column_mask` must have shape \(2, 2, 7\)"):
        drafter(tokens, torch.zeros(2, 7, 96), ttt_steps=2, column_mask=torch.ones(1, 2, 7, dtype=torch.bool))


def test_training_with_flash_attention_is_refused():
    """Flash attention would silently drop the diagonal mask."""
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB))
    drafter.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa"):
        drafter(torch.ones(1, 5, dtype=torch.long), torch.zeros(1, 5, 96))


def test_windows_and_whole_texts_with_flash_attention_are_refused():
    """It would drop the masks that keep windows and columns from each other."""
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB))
    tokens, features, starts = torch.ones(1, 5, dtype=torch.long), torch.zeros(1, 5, 96), torch.tensor([[2, 3]])
    drafter.begin_windows(tokens, features, starts)
    drafter.text_logits(tokens, features)
    drafter.config._attn_implementation = "flash_attention_2"
    needs = r'needs a dense attention mask, which `flash_attention_2` does not take.*`attn_implementation="sdpa"`'
    with pytest.raises(ValueError, match=needs):
        drafter.begin_windows(tokens, features, starts)
    with pytest.raises(ValueError, match=needs):
        drafter.text_logits(tokens, features)
    with pytest.raises(ValueError, match=needs):
        drafter(tokens, features, starts=starts, window_tokens=torch.ones(1, 2, 1, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aux_layer_ids": [3, 2]}, "aux_layer_ids"),
        ({"aux_layer_ids": [2, 2, 3]}, "aux_layer_ids"),
        ({"aux_layer_ids": []}, "aux_layer_ids"),
        ({"norm_before_fc": True, "fc_norm": True}, "norm_before_fc"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_key_value_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"head_dim": 7}, "head_dim"),
        ({"hidden_size": 36, "num_attention_heads": 4}, "head_dim"),
        ({"rope_parameters": {"rope_type": "no_such_rope", "rope_theta": 1e4}}, "rope"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(Exception, match=message):
        Eagle3Drafter(Eagle3DrafterConfig(**{"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 9, **change}))


def damage_d2t(weights):
    weights["d2t"] = weights["d2t"] + 1


def damage_t2d(weights):
    weights["t2d"] = torch.ones_like(weights["t2d"])


@pytest.mark.parametrize("change", [damage_d2t, damage_t2d])
def test_contradicting_vocabulary_maps_are_refused(tmp_path, change):
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB), draft_vocab_size=40)
    folder = save_with(drafter, tmp_path, change)
    with pytest.raises(ValueError, match=f"{folder}.*`d2t`.*`t2d`"):
        AutoDrafter.from_pretrained(folder)


def test_loading_a_state_dict_changes_the_draft_vocabulary():
    target = tiny_target(vocab_size=VOCAB)
    first = tiny_eagle3(target, draft_vocab_size=40, seed=0)
    second = tiny_eagle3(target, draft_vocab_size=40, seed=1)
    assert not torch.equal(first.draft_token_ids, second.draft_token_ids)
    first.load_state_dict(second.state_dict())
    assert torch.equal(first.draft_token_ids, second.draft_token_ids)
    assert torch.equal(first.draft_token_ids, first.t2d.nonzero().squeeze(-1))


def test_a_draft_vocabulary_first_used_in_inference_mode_serves_training():
    drafter = tiny_eagle3(tiny_target(vocab_size=VOCAB), draft_vocab_size=48)
    drafter._draft_token_ids = None
    with torch.inference_mode():
        wanted = drafter.draft_token_ids
        assert torch.equal(drafter.d2t + torch.arange(48), wanted)
    assert drafter.draft_token_ids is wanted and not wanted.is_inference()
    logits = torch.randn(2, VOCAB, requires_grad=True)
    logits[:, drafter.draft_token_ids].sum().backward()
    assert logits.grad.sum() == 2 * 48


def test_untrained_weights_are_initialised():
    torch.manual_seed(0)
    drafter = Eagle3Drafter(
        Eagle3DrafterConfig(
            hidden_size=64, intermediate_size=96, num_attention_heads=4, vocab_size=128, draft_vocab_size=100
        )
    )
    assert abs(drafter.fc.weight.std().item() - 0.02) < 2e-3
    assert torch.equal(drafter.norm.weight, torch.ones(64))
    assert torch.equal(drafter.draft_token_ids, torch.arange(100))
    assert torch.equal(drafter.t2d.nonzero().squeeze(-1), torch.arange(100))
