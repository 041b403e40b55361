# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What `Eagle3Drafter.from_target` takes over from a target."""

import pytest
import torch

from ppow_hf import Eagle3Drafter
from ppow_hf.drafters import check_vocabulary_maps, default_layer_ids, vocabulary_maps
from ppow_hf.drafters.initialization import _last_layer

from ..testing_utils import GEMMA_4, TARGET_FAMILIES, tiny_target
from .common import VOCAB, Text

IDS = torch.tensor([0, 3, 4, 17, 50, 95])


@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_every_family(family):
    target = tiny_target(family, vocab_size=VOCAB)
    target.config._name_or_path = "org/target"
    drafter = Eagle3Drafter.from_target(target, draft_token_ids=IDS)
    config, source = drafter.config, target.config
    assert (config.vocab_size, config.draft_vocab_size) == (VOCAB, len(IDS))
    assert (config.hidden_size, config.target_hidden_size) == (32, 32)
    assert (config.target_name_or_path, config.target_model_type) == ("org/target", source.model_type)
    assert config.target_num_hidden_layers == 4
    assert config.num_attention_heads == 4
    assert config.head_dim == TARGET_FAMILIES[family].get("head_dim", 8)
    assert config.intermediate_size == (128 if family == "gpt2" else 64)
    assert config.max_position_embeddings == 256
    assert not config.tie_word_embeddings
    assert config.aux_layer_ids == list(default_layer_ids(4)) == [1, 2, 3]
    assert drafter.dtype == torch.float32
    assert not drafter.training

    # fc passes the deepest feature on, the others start near zero.
    assert torch.equal(drafter.fc.weight[:, 64:], torch.eye(32))
    assert 0 < drafter.fc.weight[:, :64].abs().max() < 0.1
    # The head proposes with the target's own rows.
    assert torch.equal(drafter.lm_head.weight, target.get_output_embeddings().weight[IDS])
    assert torch.equal(drafter.draft_token_ids, IDS)

    text, state = Text(drafter, 6), drafter.new_state()
    logits = text.extend(drafter, state, 6)
    assert torch.isfinite(logits).all()
    assert torch.isfinite(drafter.step(state, IDS[:1])).all()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_last_layer_is_copied(family):
    target = tiny_target(family, vocab_size=VOCAB)
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    drafter = Eagle3Drafter.from_target(target)
    mine, theirs = drafter.midlayer, target.model.layers[-1]
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = getattr(mine.self_attn, name).weight
        # [embedding, hidden]: the target's projection reads the hidden half.
        assert torch.equal(weight[:, 32:], getattr(theirs.self_attn, name).weight)
        assert 0 < weight[:, :32].abs().max() < 0.1
    assert torch.equal(mine.self_attn.o_proj.weight, theirs.self_attn.o_proj.weight)
    for name in ("gate_proj", "up_proj", "down_proj"):
        assert torch.equal(getattr(mine.mlp, name).weight, getattr(theirs.mlp, name).weight)
    assert torch.equal(mine.hidden_norm.weight, theirs.input_layernorm.weight)
    assert torch.equal(mine.post_attention_layernorm.weight, theirs.post_attention_layernorm.weight)
    assert torch.equal(mine.input_layernorm.weight, torch.ones(32))
    assert torch.equal(drafter.norm.weight, target.model.norm.weight)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_gemma_norms_become_plain_ones(family):
    """Gemma scales by one plus its weight."""
    target = tiny_target(family, vocab_size=VOCAB)
    with torch.no_grad():
        target.model.norm.weight.uniform_(-0.5, 0.5)
    drafter = Eagle3Drafter.from_target(target)
    hidden = torch.randn(2, 5, 32)
    torch.testing.assert_close(drafter.norm(hidden), target.model.norm(hidden), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_norms_behind_attention_and_mlp_are_no_norms_before_them(family):
    target = tiny_target(family, vocab_size=VOCAB)
    with torch.no_grad():
        for parameter in target.model.layers[-1].parameters():
            parameter.uniform_(-0.5, 0.5)
    layer = target.model.layers[-1]
    drafter, other = Eagle3Drafter.from_target(target), Eagle3Drafter.from_target(target, initialization="random")
    hidden = torch.randn(2, 5, 32)
    mine = drafter.midlayer.post_attention_layernorm(hidden)
    torch.testing.assert_close(mine, layer.pre_feedforward_layernorm(hidden), rtol=1e-4, atol=1e-4)
    # What they put out would be normed: it starts random and small.
    for module, name in (("self_attn", "o_proj"), ("mlp", "down_proj")):
        weight, random = (getattr(getattr(d.midlayer, module), name).weight for d in (drafter, other))
        assert 0 < weight.std() < 0.2 * random.std()
    assert torch.equal(drafter.midlayer.mlp.up_proj.weight, layer.mlp.up_proj.weight)


def gate_of(mlp, hidden):
    return mlp.act_fn(mlp.gate_proj(hidden))


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
@torch.no_grad()
def test_a_gelu_gate_is_taken_over_by_a_silu(family):
    """Engines that serve drafters compute SiLU only: the drafter keeps it, and acts like the target all the same."""
    target = tiny_target(family, vocab_size=VOCAB)
    theirs, drafter = target.model.layers[-1].mlp, Eagle3Drafter.from_target(target)
    mine = drafter.midlayer.mlp
    assert drafter.config.hidden_act == "silu"
    hidden = 2 * torch.randn(500, 32)
    wanted = gate_of(theirs, hidden)
    # Its height is made up for in `down_proj`.
    assert (gate_of(mine, hidden) / 1.702 - wanted).abs().max() < 0.025
    # Weights copied as they are would be far off.
    assert (torch.nn.functional.silu(theirs.gate_proj(hidden)) - wanted).abs().max() > 0.15
    if family == "gemma":  # the others norm what the MLP puts out, which the drafter does not: there it starts small
        out = theirs(hidden)
        assert (mine(hidden) - out).norm() < 0.03 * out.norm()


@pytest.mark.parametrize("family", ["gemma", "gemma3_text"])
def test_a_gate_of_the_targets_own_kind_is_copied_as_it_is(family):
    target = tiny_target(family, vocab_size=VOCAB)
    drafter = Eagle3Drafter.from_target(target, hidden_act="gelu_pytorch_tanh")
    mine, theirs = drafter.midlayer.mlp, target.model.layers[-1].mlp
    hidden = torch.randn(50, 32)
    assert torch.equal(gate_of(mine, hidden), gate_of(theirs, hidden))
    if family == "gemma":
        assert torch.equal(mine(hidden), theirs(hidden))


def test_an_mlp_with_another_gate_is_not_taken_over():
    target = tiny_target("llama", vocab_size=VOCAB, hidden_act="relu2")
    drafter, random = (Eagle3Drafter.from_target(target, initialization=kind) for kind in ("target", "random"))
    for name in ("gate_proj", "up_proj", "down_proj"):
        mine, other = (getattr(d.midlayer.mlp, name).weight for d in (drafter, random))
        assert torch.equal(mine, other), name
    layer = target.model.layers[-1]
    assert torch.equal(drafter.midlayer.self_attn.o_proj.weight, layer.self_attn.o_proj.weight)


def test_nothing_is_shared_with_the_target():
    target = tiny_target(vocab_size=VOCAB)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    drafter = Eagle3Drafter.from_target(target)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_deepest_feature_alone_drives_the_draft():
    """Out of the box the drafter reads the deepest feature: the others move its logits far less."""
    target = tiny_target(vocab_size=VOCAB)
    drafter = Eagle3Drafter.from_target(target)
    tokens, features = torch.ones(1, 6, dtype=torch.long), torch.randn(1, 5, 96)
    plain = drafter.extend(drafter.new_state(), tokens, features)
    moved = []
    for i in range(3):
        changed = features.clone()
        changed[..., 32 * i : 32 * (i + 1)] += torch.randn(1, 5, 32)
        moved.append((drafter.extend(drafter.new_state(), tokens, changed) - plain).norm().item())
    assert moved[2] > 5 * max(moved[:2])


@pytest.mark.parametrize("options", [{}, {"hidden_size": 48}, {"initialization": "random"}])
def test_deterministic_under_a_seed(options):
    target = tiny_target(vocab_size=VOCAB)
    torch.manual_seed(1)
    first = Eagle3Drafter.from_target(target, seed=3, **options)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))  # The caller's random state is left alone.
    torch.manual_seed(2)
    same = Eagle3Drafter.from_target(target, seed=3, **options)
    other = Eagle3Drafter.from_target(target, seed=4, **options)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_layers_of_several_sizes():
    """The drafter's heads are those of the last layer."""
    target = tiny_target("gemma4_text", vocab_size=VOCAB, **GEMMA_4)
    drafter = Eagle3Drafter.from_target(target)
    assert drafter.config.head_dim == 16
    assert torch.equal(drafter.midlayer.self_attn.q_proj.weight[:, 32:], _last_layer(target).self_attn.q_proj.weight)
    prompt = torch.tensor([[5, 9, 9, 4, 7]])
    plain = target.generate(prompt, max_new_tokens=24, do_sample=False)
    text = target.generate(prompt, assistant_model=drafter, window="fixed:4", max_new_tokens=24, do_sample=False)
    assert torch.equal(text, plain)


def test_random_initialization_takes_sizes_only():
    target = tiny_target(vocab_size=VOCAB)
    drafter = Eagle3Drafter.from_target(target, initialization="random")
    assert not torch.equal(drafter.lm_head.weight, target.lm_head.weight)
    assert not torch.equal(drafter.fc.weight[:, 64:], torch.eye(32))


def test_own_sizes_start_random_where_shapes_differ():
    target = tiny_target(vocab_size=VOCAB)
    drafter = Eagle3Drafter.from_target(target, intermediate_size=100, head_dim=12)
    assert drafter.midlayer.mlp.gate_proj.weight.shape == (100, 32)
    assert drafter.midlayer.self_attn.q_proj.weight.shape == (48, 64)
    assert drafter.midlayer.self_attn.q_proj.weight.abs().max() > 0
    assert torch.equal(drafter.lm_head.weight, target.lm_head.weight)


def test_head_count_override_recomputes_heads():
    config = Eagle3Drafter.from_target(tiny_target(vocab_size=VOCAB), num_attention_heads=2).config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 2, 16)


def test_bfloat16_target_gives_a_float32_drafter():
    target = tiny_target(vocab_size=VOCAB).bfloat16()
    drafter = Eagle3Drafter.from_target(target)
    assert {parameter.dtype for parameter in drafter.parameters()} == {torch.float32}
    assert torch.equal(drafter.lm_head.weight, target.lm_head.weight.float())


# ---- layer ids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", range(7, 81))
def test_default_layer_ids_are_those_of_the_paper(layers):
    assert default_layer_ids(layers) == (2, layers // 2, layers - 3)


@pytest.mark.parametrize("layers", range(1, 7))
def test_default_layer_ids_of_shallow_targets(layers):
    ids = default_layer_ids(layers)
    # Three where there are three above the embeddings, the deepest among them.
    assert len(ids) == min(max(layers - 1, 1), 3)
    assert list(ids) == sorted(set(ids))
    assert ids[-1] == layers - 1
    assert layers == 1 or ids[0] > 0


def test_default_layer_ids_reach_the_drafter():
    target = tiny_target(vocab_size=VOCAB, num_hidden_layers=8)
    assert Eagle3Drafter.from_target(target).feature_layer_ids == (2, 4, 5)


@pytest.mark.parametrize("ids", [[2, 4], [-1, 2], [3, 2], [2, 2], [], [4], [1.5], "x", [True]])
def test_wrong_layer_ids(ids):
    with pytest.raises(ValueError, match=r"`aux_layer_ids` must be strictly ascending integers in \[0, 3\]"):
        Eagle3Drafter.from_target(tiny_target(vocab_size=VOCAB), aux_layer_ids=ids)


# ---- draft vocabulary -------------------------------------------------------------------------------------------


def test_vocabulary_maps_follow_the_public_form():
    d2t, t2d = vocabulary_maps(IDS, VOCAB)
    assert d2t.dtype == torch.int64
    assert t2d.dtype == torch.bool
    assert torch.equal(d2t + torch.arange(len(IDS)), IDS)
    assert torch.equal(t2d.nonzero().squeeze(-1), IDS)
    assert (d2t.diff() >= 0).all() and d2t[0] >= 0
    check_vocabulary_maps(d2t, t2d)
    # The rows of a draft head line up with target logits under the mask.
    target_logits = torch.randn(4, VOCAB)
    assert torch.equal(target_logits[:, t2d], target_logits[:, d2t + torch.arange(len(IDS))])


@pytest.mark.parametrize("ids", [[3, 2], [1, 1], [], [-1, 4], [0, VOCAB], [[1, 2]]])
def test_bad_draft_token_ids(ids):
    target = tiny_target(vocab_size=VOCAB)
    with pytest.raises(ValueError, match="`draft_token_ids`"):
        Eagle3Drafter.from_target(target, draft_token_ids=torch.tensor(ids, dtype=torch.long))


def test_draft_token_ids_accept_a_list():
    drafter = Eagle3Drafter.from_target(tiny_target(vocab_size=VOCAB), draft_token_ids=IDS.tolist())
    assert torch.equal(drafter.draft_token_ids, IDS)


def test_draft_vocab_size_alone_takes_the_first_ids():
    target = tiny_target(vocab_size=VOCAB)
    drafter = Eagle3Drafter.from_target(target, draft_vocab_size=10)
    assert torch.equal(drafter.draft_token_ids, torch.arange(10))
    assert torch.equal(drafter.lm_head.weight, target.lm_head.weight[:10])


def test_contradicting_sizes():
    with pytest.raises(ValueError, match="`draft_vocab_size`=5 contradicts the 6 `draft_token_ids`"):
        Eagle3Drafter.from_target(tiny_target(vocab_size=VOCAB), draft_token_ids=IDS, draft_vocab_size=5)


def test_the_whole_vocabulary_needs_no_maps():
    drafter = Eagle3Drafter.from_target(tiny_target(vocab_size=VOCAB), draft_token_ids=torch.arange(VOCAB))
    assert drafter.draft_token_ids is None
    assert not {"d2t", "t2d"} & drafter.state_dict().keys()
    with pytest.raises(ValueError, match="no draft vocabulary|vocabulary of its own"):
        drafter.set_draft_vocabulary(torch.arange(VOCAB))


def test_setting_the_draft_vocabulary():
    drafter = Eagle3Drafter.from_target(tiny_target(vocab_size=VOCAB), draft_vocab_size=6)
    drafter.set_draft_vocabulary(IDS)
    assert torch.equal(drafter.draft_token_ids, IDS)
    assert torch.equal(drafter.t2d.nonzero().squeeze(-1), IDS)
    with pytest.raises(ValueError, match="holds 5 ids"):
        drafter.set_draft_vocabulary(IDS[:5])


# ---- arguments ---------------------------------------------------------------------------------------------------


def test_unknown_initialization():
    with pytest.raises(ValueError, match="`initialization` must be 'target' or 'random', got 'zeros'"):
        Eagle3Drafter.from_target(tiny_target(), initialization="zeros")


def test_unknown_field():
    with pytest.raises(ValueError, match="aux_layers"):
        Eagle3Drafter.from_target(tiny_target(), aux_layers=[1, 2])


def test_a_target_whose_layers_have_sizes_of_their_own():
    target = tiny_target(
        "gemma3n_text",
        intermediate_size=[64, 64, 64, 48],
        head_dim=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=96,
        laurel_rank=4,
        altup_num_inputs=2,
        num_kv_shared_layers=2,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
    )
    drafter = Eagle3Drafter.from_target(target)
    assert drafter.config.intermediate_size == 48
    # Its hidden states are several streams, which no drafter of this family reads.
    with pytest.raises(ValueError, match=r"shape \(2, 1, 5, 32\), where this drafter reads one stream.*Lookup"):
        target.generate(torch.tensor([[5, 17, 3, 60, 9]]), assistant_model=drafter, window="fixed:3", max_new_tokens=8)
