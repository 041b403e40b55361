# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest

from ppow_hf.trainer.tokenizer_check import check_tokenizer
from tests.testing_utils import tiny_target
from tests.trainer.ppow_common import QUIET, ppow_trainer, tokenizer_of


def target_of(vocab_size=96, eos=7):
    target = tiny_target(vocab_size=vocab_size)
    target.generation_config.eos_token_id = eos
    return target


def ending(eos: int, vocab_size: int = 96, pad: str = "t0"):
    tokenizer = tokenizer_of(vocab_size)
    tokenizer.eos_token, tokenizer.pad_token = f"t{eos}", pad
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "target"),
    [
        (ending(7), target_of()),
        (ending(7), target_of(eos=[3, 7])),
        (ending(7), target_of(eos=None)),
        (tokenizer_of(96), target_of()),  # says nothing of an end
        (ending(7, 90), target_of()),  # a padded vocabulary
        (ending(7, 201), target_of(200)),  # a token that is no text
        (None, target_of()),
    ],
)
def test_the_targets_own(tokenizer, target, caplog):
    with caplog.at_level("WARNING"):
        check_tokenizer(tokenizer, target)
    assert not caplog.text


@pytest.mark.parametrize(
    ("tokenizer", "sign"),
    [
        (ending(8), "its end of text is token 8, the target's 3 or 7"),
        (ending(7, 50), "it knows 50 tokens, the target 96"),
        (ending(8, 50), "it knows 50 tokens, the target 96; its end of text is token 8"),
    ],
)
def test_signs_of_another_model_are_warned_of(tmp_path, tokenizer, sign, caplog):
    with caplog.at_level("WARNING"):
        ppow_trainer(tmp_path, target=target_of(eos=[7, 3]), tokenizer=tokenizer, **QUIET)
    assert "`processing_class` may belong to another model" in caplog.text and sign in caplog.text


def test_what_cannot_be_the_targets_is_refused():
    with pytest.raises(ValueError, match="`processing_class` knows 120 tokens, but the target's vocabulary has 96"):
        check_tokenizer(tokenizer_of(120), target_of())
    with pytest.raises(ValueError, match="pads with token 200, but the target's vocabulary has 200"):
        check_tokenizer(ending(7, 201, pad="t200"), target_of(200))
