# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch

from ppow_hf.trainer.target_pass import FeatureCache, TargetPass
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target


def batch():
    torch.manual_seed(0)
    input_ids = torch.randint(2, 96, (3, 10))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 7:] = 0
    positions = torch.zeros_like(input_ids, dtype=torch.bool)
    positions[:, 4:6] = True
    return input_ids, attention_mask, positions


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma2", "gemma3_text", "gpt_neox", "gpt2"])
def test_features_and_teacher_are_those_of_a_plain_forward_pass(family):
    # Gemma 2 caps its logits: the head is more than a matrix, and the plain forward pass must decide.
    target = tiny_target(family)
    drafter = tiny_eagle3(target, draft_vocab_size=40)
    input_ids, attention_mask, positions = batch()
    features, teacher = TargetPass(target, drafter)(input_ids, attention_mask, positions)
    with torch.no_grad():
        output = target(input_ids, attention_mask=attention_mask, output_hidden_states=True)
    expected = torch.cat([output.hidden_states[k] for k in drafter.feature_layer_ids], dim=-1)
    torch.testing.assert_close(features, expected)
    probs = output.logits[positions].softmax(-1)[:, drafter.draft_token_ids]
    torch.testing.assert_close(teacher.probs, probs, atol=1e-5, rtol=1e-4)
    assert torch.equal(teacher.argmax, output.logits[positions].argmax(-1))


def test_a_causal_drafter_gets_no_features():
    target = tiny_target()
    features, teacher = TargetPass(target, tiny_causal_drafter(target))(*batch())
    assert features is None and teacher.probs.shape == (6, 96)


def test_cache_returns_what_the_target_gave_and_skips_it_afterwards(tmp_path):
    target = tiny_target()
    drafter = tiny_eagle3(target)
    input_ids, attention_mask, positions = batch()
    cache = FeatureCache(tmp_path, [10, 7, 10], target, drafter.feature_layer_ids, "data-1")
    target_pass = TargetPass(target, drafter, cache)
    features, teacher = target_pass(input_ids, attention_mask, positions, row_ids=[0, 1, 2])

    again = FeatureCache(tmp_path, [10, 7, 10], target, drafter.feature_layer_ids, "data-1")
    runs = []
    handle = target.base_model.register_forward_hook(lambda *_: runs.append(1))
    cached, cached_teacher = TargetPass(target, drafter, again)(input_ids, attention_mask, positions, [0, 1, 2])
    assert not runs, "a filled cache must not run the target's layers"
    real = attention_mask.bool()
    torch.testing.assert_close(cached[real], features[real])
    torch.testing.assert_close(cached_teacher.probs, teacher.probs)

    other = FeatureCache(tmp_path, [10, 7, 10], target, drafter.feature_layer_ids, "data-2")
    TargetPass(target, drafter, other)(input_ids, attention_mask, positions, [0, 1, 2])
    handle.remove()
    assert runs, "another dataset must not read this cache"


def test_rows_cut_short_are_not_cached(tmp_path):
    target = tiny_target()
    drafter = tiny_eagle3(target)
    cache = FeatureCache(tmp_path, [12, 7, 10], target, drafter.feature_layer_ids, "data-1")
    input_ids, attention_mask, positions = batch()
    TargetPass(target, drafter, cache)(input_ids, attention_mask, positions, row_ids=[0, 1, 2])
    assert cache.filled.tolist() == [0, 1, 1]
    assert cache.read([0, 1, 2], input_ids) is None


def test_cache_with_a_capped_head(tmp_path):
    target = tiny_target("gemma2")
    drafter = tiny_eagle3(target)
    cache = FeatureCache(tmp_path, [10, 7, 10], target, drafter.feature_layer_ids, "data-1")
    input_ids, attention_mask, positions = batch()
    expected = torch.softmax(target(input_ids, attention_mask=attention_mask).logits[positions], dim=-1)
    for _ in range(2):  # written, then read
        _, rows = TargetPass(target, drafter, cache)(input_ids, attention_mask, positions, row_ids=[0, 1, 2])
        kept = expected if drafter.draft_token_ids is None else expected[:, drafter.draft_token_ids]
        torch.testing.assert_close(rows.probs, kept)


def test_cache_with_a_head_of_another_kind_is_refused(tmp_path):
    target = tiny_target("granite", logits_scaling=4.0)
    drafter = tiny_eagle3(target)
    cache = FeatureCache(tmp_path, [10, 7, 10], target, drafter.feature_layer_ids, "data-1")
    with pytest.raises(ValueError, match="feature_cache_dir"):
        TargetPass(target, drafter, cache)(*batch(), row_ids=[0, 1, 2])
