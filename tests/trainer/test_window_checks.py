# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Windows and texts must fit the positions of both models."""

import pytest
from datasets import Dataset, IterableDataset

from ppow_hf import CausalLMDrafter
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.ppow_common import QUIET, make_experience, ppow_trainer
from tests.trainer.test_positions import short_target


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_texts_longer_than_the_positions_are_refused(tmp_path, family):
    """Rows of 24 tokens at most."""
    rows, target = token_rows(8), tiny_target()
    drafter = CausalLMDrafter.from_causal_lm(short_target(family, 20))
    message = (
        "rows of 24 tokens, cut to `max_length`=2048, but the drafter has 20 positions.*`max_length` to at most 20"
    )
    with pytest.raises(ValueError, match=message):
        ppow_trainer(tmp_path, drafter, target, rows, **QUIET)
    with pytest.raises(ValueError, match="cut to `max_length`=21, but the drafter has 20"):
        ppow_trainer(tmp_path, drafter, target, rows, max_length=21, **QUIET)
    trainer = ppow_trainer(tmp_path, drafter, target, rows, max_length=20, **QUIET)
    make_experience(trainer, rows)
    short = short_target(family, 20)
    with pytest.raises(ValueError, match="but the target has 20 positions"):
        ppow_trainer(tmp_path, tiny_eagle3(short, draft_vocab_size=48), short, rows, **QUIET)
    ppow_trainer(tmp_path, tiny_eagle3(short, draft_vocab_size=48), short, token_rows(8, length=20), **QUIET)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_window_larger_than_the_positions_is_refused(tmp_path, family):
    """Whatever the texts are: two tokens come before it."""
    rows, target = token_rows(8), tiny_target()
    drafter = CausalLMDrafter.from_causal_lm(short_target(family, 10))
    message = "`window_size` is 9, but the drafter has 10 positions.*a window of at most 8 tokens"
    with pytest.raises(ValueError, match=message):
        ppow_trainer(tmp_path, drafter, target, rows, window_size=9, max_length=10, **QUIET)
    rows = Dataset.from_list([{"input_ids": list(range(10)), "loss_mask": [0] + [1] * 9}] * 8)
    trainer = ppow_trainer(tmp_path, drafter, target, rows, window_size=8, max_length=10, **QUIET)
    assert int(make_experience(trainer, rows).chosen.sum()) == 8


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_streamed_texts_are_checked_too(tmp_path, family):
    drafter = CausalLMDrafter.from_causal_lm(short_target(family, 20))
    rows = token_rows(8).to_iterable_dataset()
    trainer = ppow_trainer(tmp_path, drafter, tiny_target(), rows, max_steps=1, **QUIET)
    with pytest.raises(ValueError, match="`train_dataset` has rows of 24 tokens.*the drafter has 20 positions"):
        trainer.train()


def test_a_stream_without_room_for_a_window_has_an_end_to_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr("ppow_hf.trainer.window_checks._STREAMED", 50)

    def rows():
        while True:
            yield {"input_ids": [1, 2, 3, 4], "loss_mask": [0, 0, 0, 1]}

    with pytest.raises(ValueError, match="None of the first 50 rows of `train_dataset` has room for a window"):
        ppow_trainer(tmp_path, dataset=IterableDataset.from_generator(rows), **QUIET)
