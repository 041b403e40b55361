# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What trainers check of models and data before they begin."""

import pytest
import torch

from ppow_hf import AutoDrafter, DrafterSFTTrainer, LookupDrafter, PPOWTrainer
from ppow_hf.trainer.start_checks import check_streams
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import sft_args, sft_trainer, token_rows
from tests.trainer.ppow_common import QUIET, ppow_args, ppow_trainer

TRAINERS = [sft_trainer, ppow_trainer]


@pytest.mark.parametrize("make_trainer", TRAINERS)
@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
def test_narrow_weights_are_trained_in_float32(tmp_path, make_trainer, family, caplog):
    """In bfloat16 nearly all of a step as small as PPOW's default is rounded away."""
    target = tiny_target()
    make = tiny_eagle3 if family == "eagle3" else tiny_causal_drafter
    make(target).to(torch.bfloat16).save_pretrained(tmp_path / "narrow")
    drafter = AutoDrafter.from_pretrained(tmp_path / "narrow")
    assert drafter.dtype == torch.bfloat16
    options = QUIET if make_trainer is ppow_trainer else {}
    with caplog.at_level("WARNING"):
        trainer = make_trainer(tmp_path / "run", drafter, target, max_steps=2, learning_rate=5e-6, **options)
    assert "`model` has weights in bfloat16" in caplog.text and "dtype=torch.float32" in caplog.text
    before = {name: parameter.detach().clone() for name, parameter in drafter.named_parameters()}
    trainer.train()
    trainer.save_model()
    assert all(p.dtype == torch.float32 and not torch.equal(p, before[n]) for n, p in drafter.named_parameters())
    assert AutoDrafter.from_pretrained(tmp_path / "run").dtype == torch.float32


@pytest.mark.parametrize("make_trainer", TRAINERS)
def test_a_drafter_without_weights_is_refused(tmp_path, make_trainer):
    target = tiny_target()
    with pytest.raises(ValueError, match="`model` is a `LookupDrafter`, which has no weights to train"):
        make_trainer(tmp_path, LookupDrafter.from_target(target), target)


@pytest.mark.parametrize("make_trainer", TRAINERS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"drafter": "org/drafter"}, r"`model` must be a drafter .* `AutoDrafter.from_pretrained\('org/drafter'\)`"),
        ({"target": "org/target", "drafter": 0}, "`target_model` must be a loaded model .* got 'org/target'"),
        ({"eval_dataset": token_rows(2).select([])}, "`eval_dataset` has no rows"),
        ({"dataset": token_rows(2).select([])}, "`train_dataset` has no rows"),
    ],
)
def test_what_is_no_model_or_no_data(tmp_path, make_trainer, given, message):
    if given.get("drafter") == 0:
        given = {**given, "drafter": tiny_eagle3(tiny_target(), draft_vocab_size=48)}
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **given)


@pytest.mark.parametrize(
    ("trainer", "args", "wanted"),
    [(PPOWTrainer, sft_args, "PPOWConfig"), (DrafterSFTTrainer, ppow_args, "DrafterSFT")],
)
def test_the_configuration_of_another_trainer(tmp_path, trainer, args, wanted):
    target = tiny_target()
    with pytest.raises(ValueError, match=f"`args` of {trainer.__name__} must be a `{wanted}"):
        trainer(tiny_eagle3(target), target, args(tmp_path), token_rows())


def test_a_stream_is_for_one_process():
    check_streams(token_rows(), 2)
    check_streams(None, 2)
    check_streams(token_rows().to_iterable_dataset(), 1)
    with pytest.raises(ValueError, match="`train_dataset` is streamed, which cannot be combined with 2 processes"):
        check_streams(token_rows().to_iterable_dataset(), 2)


@pytest.mark.parametrize("make_trainer", TRAINERS)
def test_masks_are_no_labels(tmp_path, make_trainer):
    rows = token_rows(4).map(lambda row: {"loss_mask": [entry or -100 for entry in row["loss_mask"]]})
    for datasets in ({"dataset": rows}, {"eval_dataset": rows}):
        with pytest.raises(ValueError, match="`loss_mask` of `.*_dataset` holds -100. Give 1 on the target's own"):
            make_trainer(tmp_path, **datasets)


@pytest.mark.parametrize(("make_trainer", "paper"), [(sft_trainer, "2503.01840"), (ppow_trainer, "2605.14978")])
def test_the_trainers_own_card(tmp_path, make_trainer, paper):
    options = QUIET if make_trainer is ppow_trainer else {}
    trainer = make_trainer(tmp_path, max_steps=1, **options)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert paper in card and "ppow-hf" in card
