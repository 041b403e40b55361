# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Pushing while training: a name that cannot work is refused before the first step, and no failure ends a training. What
a training has recorded is what its card says.
"""

import json
import tempfile

import pytest

from ppow_hf import AutoDrafter
from ppow_hf.hub.card import write_card
from ppow_hf.hub.card_facts import read_provenance
from ppow_hf.hub.push_drafter import copy_facts, push_checkpoint
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer
from tests.trainer.ppow_common import QUIET, ppow_trainer


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


# ---- what the card says --------------------------------------------------------------------------------------------


def card_of(folder) -> str:
    return write_card(folder).read_text()


def test_the_card_of_a_training_output_tells_of_its_stages(tmp_path):
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48)
    first = sft_trainer(tmp_path / "sft", drafter, target, ttt_steps=2)
    first.train()
    first.save_model()
    text = card_of(tmp_path / "sft")
    assert "| Training stages | supervised |" in text and "| optimiser steps | 4 |" in text
    # The record does not say what was before.
    assert "Training on windows: not recorded." in text and "No PPOW stage" not in text
    second = ppow_trainer(tmp_path / "ppow", drafter, target, max_steps=3, **QUIET)
    second.train()
    second.save_model()
    text = card_of(tmp_path / "ppow")
    assert "| Training stages | supervised, PPOW |" in text
    assert "| optimiser steps | 4 |" in text and "| optimiser steps | 3 |" in text
    assert "| `ttt_steps` | 2 |" in text and "| `num_generations` | 4 |" in text
    assert "windows: not recorded" not in text and "No PPOW stage" not in text
    assert "Supervised stage:" in text and "PPOW stage:" in text, "their times"


def test_a_drafter_that_was_not_trained_here_claims_nothing(tmp_path):
    trainer = ppow_trainer(tmp_path, **QUIET)
    trainer.save_model()
    text = card_of(tmp_path)
    assert "| Training stages | not recorded |" in text and "Training on windows: not recorded." in text
    assert "No PPOW stage" not in text


def test_the_record_of_other_weights_is_not_told(tmp_path):
    """A training into the folder of a finished drafter leaves of the old record what its owner has added."""
    old = {"stage": "supervised", "result": {"train_runtime": 99.0}, "license": "mit", "notes": ["old"]}
    (tmp_path / "provenance.json").write_text(json.dumps(old))
    trainer = ppow_trainer(tmp_path, **QUIET)
    trainer.train()
    trainer.save_model()
    facts = read_provenance(tmp_path)
    assert (facts["stage"], facts["license"]) == ("ppow", "mit") and "notes" not in facts
    text = card_of(tmp_path)
    assert "| Training stages | PPOW |" in text and "This drafter: mit" in text and "99 seconds" not in text
    # Finished in place: what was added to this very training counts.
    finished = {**json.loads((tmp_path / "training_provenance.json").read_text()), "calibration": {"figures": {}}}
    (tmp_path / "provenance.json").write_text(json.dumps(finished))
    assert read_provenance(tmp_path) == finished


def test_a_drafter_loaded_from_a_training_output_takes_the_record_along(tmp_path):
    trainer = ppow_trainer(tmp_path / "out", **QUIET)
    trainer.provenance = {"arguments": {"responses": [str(tmp_path / "responses")]}}
    trainer.train()
    trainer.save_model()
    drafter = AutoDrafter.from_pretrained(str(tmp_path / "out"))
    drafter.save_pretrained(tmp_path / "stage")
    copy_facts(tmp_path / "out", tmp_path / "stage")
    text = (tmp_path / "stage" / "provenance.json").read_text()
    assert json.loads(text)["stage"] == "ppow" and json.loads(text)["arguments"] == {"responses": ["responses"]}
    assert str(tmp_path) not in text
