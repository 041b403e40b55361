# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch

from ppow_hf.trainer.target_pass import TargetPass
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer


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


def test_a_target_that_keeps_its_hidden_states_to_itself_ends_training(tmp_path):
    silent = tiny_target()
    forward = silent.model.forward
    silent.model.forward = lambda *args, output_hidden_states=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(ValueError, match="returned no `hidden_states`.*`CausalLMDrafter`"):
        sft_trainer(tmp_path, target=silent).train()


def test_a_causal_drafter_gets_no_features():
    target = tiny_target()
    features, teacher = TargetPass(target, tiny_causal_drafter(target))(*batch())
    assert features is None and teacher.probs.shape == (6, 96)
