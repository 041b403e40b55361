# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Pushing while training: a name that cannot work is refused before the first step, and no failure ends a training."""

import tempfile

import pytest

from ppow_hf.hub.push_drafter import push_checkpoint
from tests.trainer.common import sft_trainer


@pytest.mark.parametrize("name", ["my run 1", "org/my run", "a/b/c", "-drafter", "drafter.git"])
def test_a_name_that_cannot_work_is_refused_before_the_first_step(tmp_path, name):
    with pytest.raises(ValueError, match="`hub_model_id`") as caught:
        sft_trainer(tmp_path / "output", push_to_hub=True, hub_model_id=name)
    assert repr(name) in str(caught.value) and "namespace/name" in str(caught.value)


def test_the_folders_name_has_to_do_as_one_where_none_is_given(tmp_path):
    with pytest.raises(ValueError, match="name of `output_dir`, and 'my run 1' is none .* Set `hub_model_id`"):
        sft_trainer(tmp_path / "my run 1", push_to_hub=True)
    assert sft_trainer(tmp_path / "my run 1", push_to_hub=True, hub_model_id="org/run").hub_model_id == "org/run"
    assert sft_trainer(tmp_path / "run-1", push_to_hub=True).hub_model_id == "run-1"
    sft_trainer(tmp_path / "my run 1")  # nothing is pushed, so that any folder will do


def test_a_checkpoint_that_cannot_be_pushed_does_not_end_the_training(tmp_path, caplog):
    """A token that is none is a ValueError, found before the Hub is asked."""
    pushed = {"push_to_hub": True, "hub_model_id": "org/run", "hub_token": "no token"}
    trainer = sft_trainer(tmp_path / "output", max_steps=2, save_strategy="steps", save_steps=1, **pushed)
    trainer.train()
    assert trainer.state.global_step == 2
    for step in (1, 2):
        assert f"The checkpoint of step {step} was not pushed: `token` holds characters" in caplog.text
    assert "Training goes on." in caplog.text and "no token" not in caplog.text


def test_neither_does_a_name_or_a_disk(tmp_path, caplog, monkeypatch):
    trainer = sft_trainer(tmp_path / "output", max_steps=1)
    checkpoint = tmp_path / "output" / "checkpoint-1"
    trainer.save_model(str(checkpoint))
    trainer.args.hub_model_id = "my run 1"
    assert push_checkpoint(trainer, checkpoint) is None
    assert "`hub_model_id`" in caplog.text and "'my run 1'" in caplog.text
    caplog.clear()
    trainer.args.hub_model_id = "org/run"
    assert push_checkpoint(trainer, tmp_path / "output" / "checkpoint-2") is None
    assert "checkpoint-2" in caplog.text
    caplog.clear()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no disk"))
    assert push_checkpoint(trainer, checkpoint) is None
    assert "no disk" in caplog.text and "Training goes on." in caplog.text
