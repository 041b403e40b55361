# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ppow_hf import AutoDrafter, CausalLMDrafter, CausalLMDrafterConfig
from ppow_hf.drafters import loading

from ..testing_utils import GEMMA_4, TARGET_FAMILIES, tiny_causal_drafter, tiny_eagle3, tiny_target
from .common import FLOAT32, VOCAB, DrafterTesterMixin, Text, save_with


class TestCausalLMDrafter(DrafterTesterMixin):
    config_class = CausalLMDrafterConfig
    model_class = CausalLMDrafter
    weight_name = "model.model.layers.0.self_attn.q_proj.weight"

    def make_drafter(self, target):
        return tiny_causal_drafter(target)

    def reference_logits(self, drafter, target, tokens, features, drafted):
        return drafter.model(torch.cat([tokens, drafted])[None], use_cache=False).logits[0, -1]


class TestTiedCausalLMDrafter(TestCausalLMDrafter):
    """The same battery with a head that is the embedding, and sliding-window layers."""

    def make_target(self):
        return tiny_target("gemma3_text", vocab_size=VOCAB, tie_word_embeddings=True)


@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_every_family_drafts_as_it_recomputes(family, tmp_path):
    """Behind the sliding window of 8 too, after rejected drafts, and after saving and loading."""
    target = tiny_target(family, vocab_size=VOCAB)
    drafter = CausalLMDrafter.from_target(target, num_layers=3)
    drafter.save_pretrained(tmp_path)
    for candidate in (drafter, AutoDrafter.from_pretrained(tmp_path)):
        text, state = Text(candidate, 24), candidate.new_state()
        text.extend(candidate, state, 14)
        for token in (3, 4, 5):
            candidate.step(state, torch.tensor([token]))
        text.tokens[0, 14] = 3
        logits = [text.extend(candidate, state, 2, 1), candidate.step(state, torch.tensor([8]))]
        full = torch.cat([text.tokens[0, :16], torch.tensor([8])])[None]
        with torch.no_grad():
            expected = drafter.model(full, use_cache=False).logits[0]
        torch.testing.assert_close(logits[0][0], expected[-2], **FLOAT32)
        torch.testing.assert_close(logits[1][0], expected[-1], **FLOAT32)


@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_all_layers_are_the_target_itself(family):
    target = tiny_target(family, vocab_size=VOCAB)
    drafter = CausalLMDrafter.from_target(target, num_layers=4)
    tokens = torch.randint(0, VOCAB, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(drafter.model(tokens).logits, target(tokens).logits)
    theirs = {parameter.data_ptr() for parameter in target.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in drafter.parameters()}


def test_first_layers_norm_and_head_are_copied():
    target = tiny_target(vocab_size=VOCAB)
    drafter = CausalLMDrafter.from_target(target, num_layers=2)
    mine, theirs = drafter.model.state_dict(), target.state_dict()
    assert {name for name in theirs if "layers.2" in name or "layers.3" in name} == theirs.keys() - mine.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert target.config.num_hidden_layers == 4


def test_layers_whose_state_cannot_be_rolled_back():
    kinds = ["conv", "full_attention"] * 2
    model = tiny_target("lfm2", layer_types=kinds, conv_L_cache=3, block_ff_dim=64, vocab_size=VOCAB)
    for make in (CausalLMDrafter.from_causal_lm, lambda model: CausalLMDrafter.from_target(model, num_layers=2)):
        with pytest.raises(ValueError, match="`model` is a `Lfm2ForCausalLM` with layers of the type conv.*attention"):
            make(model)


@pytest.mark.parametrize("num_layers", [0, -1, 5])
def test_wrong_number_of_layers(num_layers):
    with pytest.raises(ValueError, match=f"`num_layers` must be .* the target's 4 layers, got {num_layers}"):
        CausalLMDrafter.from_target(tiny_target(), num_layers=num_layers)


def test_targets_that_no_shorter_model_is_built_of(monkeypatch):
    target = tiny_target()
    monkeypatch.setattr(type(target), "config_class", None, raising=False)
    target.config = copy.deepcopy(target.config)
    target.config.__class__ = type("UnknownConfig", (type(target.config),), {})
    with pytest.raises(ValueError, match="no shorter `LlamaForCausalLM` for `num_layers`=2 .*`from_causal_lm`"):
        CausalLMDrafter.from_target(target, num_layers=2)


def test_weights_of_all_layers_in_one_tensor():
    target = tiny_target("gemma4_text", **GEMMA_4)
    with pytest.raises(ValueError, match="all its layers in one tensor.*embed_tokens_per_layer.*`num_layers`=2"):
        CausalLMDrafter.from_target(target, num_layers=2)


@pytest.mark.parametrize(("family", "options"), [("gpt2", {}), ("gemma3_text", {"tie_word_embeddings": True})])
def test_tied_head_is_saved_once_and_stays_tied(family, options, tmp_path):
    drafter = tiny_causal_drafter(tiny_target(family, vocab_size=VOCAB, **options))
    drafter.save_pretrained(tmp_path)
    assert sum(t.shape == (VOCAB, 32) for t in load_file(tmp_path / "model.safetensors").values()) == 1
    for candidate in (drafter, AutoDrafter.from_pretrained(tmp_path)):
        model = candidate.model
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_wrapping_uses_the_given_model():
    model = tiny_target(vocab_size=VOCAB)
    drafter = CausalLMDrafter.from_causal_lm(model)
    assert drafter.model is model
    assert not any(parameter.is_meta for parameter in drafter.parameters())
    assert drafter.draft_token_ids is None
    assert drafter.feature_layer_ids == ()


def test_auto_drafter_wraps_a_plain_causal_lm(tmp_path):
    model = tiny_target("qwen2", vocab_size=VOCAB)
    model.save_pretrained(tmp_path)
    drafter = AutoDrafter.from_pretrained(tmp_path)
    assert type(drafter) is CausalLMDrafter
    tokens = torch.randint(0, VOCAB, (1, 6))
    with torch.no_grad():
        assert torch.equal(drafter.model(tokens).logits, model(tokens).logits)
    drafter.save_pretrained(tmp_path / "as_drafter")
    again = AutoDrafter.from_pretrained(tmp_path / "as_drafter")
    with torch.no_grad():
        assert torch.equal(again.model(tokens).logits, model(tokens).logits)


def test_auto_drafter_refuses_a_damaged_plain_causal_lm(tmp_path):
    model = tiny_target("qwen2", vocab_size=VOCAB)
    folder = save_with(model, tmp_path, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"missing weights \['model.norm.weight'\]"):
        AutoDrafter.from_pretrained(folder)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(OSError, match="truncated or damaged"):
        AutoDrafter.from_pretrained(folder)


@pytest.mark.parametrize("path", ["/no/such/folder", "./no/such/folder", "../no_such_folder"])
def test_auto_drafter_names_a_missing_folder(path):
    with pytest.raises(OSError, match=f"no folder `{path}`"):
        AutoDrafter.from_pretrained(path)


def test_auto_drafter_offline_names_the_repository():
    """A folder that is not there looks like a repository's name."""
    message = (
        "no folder `no-such-org/no-such-drafter`, and no such repository.*saved drafter's folder.*(offline|cached)"
    )
    with pytest.raises(OSError, match=message):
        AutoDrafter.from_pretrained("no-such-org/no-such-drafter")


def test_auto_drafter_names_weights_that_a_plain_causal_lm_leaves_unused(tmp_path, monkeypatch):
    folder = save_with(tiny_target("qwen2", vocab_size=VOCAB), tmp_path, lambda w: w.update(spare=torch.ones(2)))
    warnings = []
    monkeypatch.setattr(loading.logger, "warning", warnings.append)
    AutoDrafter.from_pretrained(folder)
    (warning,) = warnings
    assert "holds 1 weights that Qwen2ForCausalLM has no use for: spare" in warning


def test_auto_drafter_is_not_built():
    with pytest.raises(OSError, match="from_pretrained"):
        AutoDrafter()


def test_auto_drafter_refuses_what_cannot_draft(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8)
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a drafter nor a causal language model"):
        AutoDrafter.from_pretrained(tmp_path)


def test_loading_one_family_as_the_other_is_refused(tmp_path):
    tiny_eagle3(tiny_target(vocab_size=VOCAB)).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="causal_lm_config|does not fit|ppow_eagle3"):
        CausalLMDrafter.from_pretrained(tmp_path)


def test_missing_inner_configuration():
    with pytest.raises(ValueError, match="`causal_lm_config` is missing"):
        CausalLMDrafter(CausalLMDrafterConfig())


def test_drafters_are_not_offered_as_causal_language_models(tmp_path):
    """`AutoModelForCausalLM` must not hand out a drafter: it cannot generate by itself."""
    tiny_causal_drafter(tiny_target(vocab_size=VOCAB)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="CausalLMDrafterConfig"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
