# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Where batches have any shape, no kernel that plans every shape; elsewhere torch's own choice."""

import pytest
import torch

from ppow_hf.attention_kernels import attention_of_any_shape
from ppow_hf.data import generate_responses
from tests.data.data_testing_utils import char_tokenizer
from tests.testing_utils import tiny_target
from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.ppow_common import ppow_trainer


@pytest.fixture(params=[True, False])
def before(request):
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(enabled)


@pytest.fixture
def seen(monkeypatch):
    """Whether cuDNN was allowed, at every call of torch's attention."""
    calls, attention = [], torch.nn.functional.scaled_dot_product_attention

    def spy(*args, **kwargs):
        calls.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return calls


def test_the_choice_comes_back(before):
    with attention_of_any_shape():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_it_comes_back_after_an_error(before):
    with pytest.raises(RuntimeError), attention_of_any_shape():
        raise RuntimeError
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("make", [sft_trainer, ppow_trainer])
def test_training_and_evaluation(tmp_path, before, seen, make):
    trainer = make(tmp_path, eval_dataset=token_rows(4), max_steps=2)
    trainer.train()
    during = len(seen)
    trainer.evaluate()
    assert 0 < during < len(seen) and not any(seen)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_filling_the_feature_cache(tmp_path, before, seen):
    assert sft_trainer(tmp_path / "run", feature_cache_dir=str(tmp_path / "cache")).fill_feature_cache()
    assert seen and not any(seen)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_responses(tmp_path, before, seen):
    tokenizer = char_tokenizer()
    target = tiny_target(vocab_size=len(tokenizer))
    generate_responses(target, tokenizer, ["abc", "d"], tmp_path / "responses", max_new_tokens=3, progress=False)
    assert seen and not any(seen)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
