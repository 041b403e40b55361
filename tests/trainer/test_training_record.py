# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a training writes beside the drafter that came out of it, and when it does not."""

import json

import pytest
from transformers import TrainerCallback

from ppow_hf import AutoDrafter
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.ppow_common import ppow_trainer

RECORD, LOG = "training_provenance.json", "training_log.json"
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def read(folder, name=RECORD) -> dict:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize(("make", "stage"), [(sft_trainer, "supervised"), (ppow_trainer, "ppow")])
def test_a_saved_drafter_comes_with_the_facts_of_its_training(tmp_path, make, stage):
    rows = token_rows()
    trainer = make(tmp_path, dataset=rows, eval_dataset=token_rows(4, seed=1), eval_on_start=True, **EVALUATED)
    trainer.provenance = {"arguments": {"rewards": None}, "responses": [{"rows": 16}]}
    result = trainer.train()
    assert not (tmp_path / RECORD).exists(), "nothing was saved yet"
    trainer.save_model()
    facts, log = read(tmp_path), read(tmp_path, LOG)
    steps = trainer.args.max_steps
    assert (facts["stage"], facts["steps"], log["global_step"]) == (stage, steps, steps)
    assert facts["arguments"] == {"rewards": None} and facts["responses"] == [{"rows": 16}]
    assert (facts["train_rows"], facts["train_response_tokens"]) == (16, sum(map(sum, rows["loss_mask"])))
    assert facts["training"]["learning_rate"] == 1e-3 and facts["training"]["eval_window"] == "fixed:3"
    assert facts["initial"] == trainer.initial_figures() and facts["initial"]["acceptance_length"] >= 1
    assert facts["best"] == {"step": trainer.state.best_global_step, "metric": trainer.state.best_metric}
    assert facts["cost"]["target_tokens"] > 0 and facts["cost"]["seconds"] > 0
    assert facts["result"] == result.metrics
    assert log["log_history"] == trainer.state.log_history
    trainer.save_model(str(tmp_path / "copy"))
    assert read(tmp_path / "copy") == facts
    assert not list(tmp_path.glob(f"checkpoint-*/{RECORD}")), "checkpoints are of a training that is not done"


def test_the_log_holds_no_path_of_the_machine(tmp_path):
    options = {**EVALUATED, "eval_dataset": token_rows(4, seed=1)}
    trainer = sft_trainer(tmp_path, **options)
    trainer.train()
    assert trainer.state.best_model_checkpoint.startswith(str(tmp_path))
    trainer.save_model()
    assert str(tmp_path) not in (tmp_path / LOG).read_text()
    assert read(tmp_path, LOG)["best_model_checkpoint"] == f"checkpoint-{trainer.state.best_global_step}"


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_training_that_was_interrupted_has_no_record(tmp_path):
    """Neither of its own nor that of the one before, once its weights take the place of those."""
    trainer = sft_trainer(tmp_path)
    trainer.save_model()
    assert not (tmp_path / RECORD).exists(), "not trained"
    trainer.train()
    trainer.save_model()
    before = read(tmp_path)
    trainer.add_callback(Kill)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert read(tmp_path) == before, "the weights in the folder are still those"
    trainer.save_model()
    assert not (tmp_path / RECORD).exists() and not (tmp_path / LOG).exists()


def test_a_record_stays_with_its_weights(tmp_path):
    """A trainer of the trained drafter saves the very same, and one of another drafter does not."""
    target = tiny_target()
    trainer = sft_trainer(tmp_path, target=target)
    trainer.train()
    trainer.save_model()
    sft_trainer(tmp_path, AutoDrafter.from_pretrained(str(tmp_path)), target).save_model()
    assert (tmp_path / RECORD).exists()
    sft_trainer(tmp_path, tiny_eagle3(target, seed=9), target).save_model()
    assert not (tmp_path / RECORD).exists()


def test_the_next_stage_tells_what_it_went_on_from(tmp_path):
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48)
    first = sft_trainer(tmp_path / "sft", drafter, target, save_strategy="steps", save_steps=2)
    first.train()
    first.save_model()
    second = ppow_trainer(tmp_path / "ppow", drafter, target)
    second.train()
    second.save_model()
    assert read(tmp_path / "ppow")["started_from"] == read(tmp_path / "sft")
    # What was given goes before what is remembered.
    third = ppow_trainer(tmp_path / "third", drafter, target)
    third.provenance = {"started_from": {"stage": "supervised"}}
    third.train()
    third.save_model()
    assert read(tmp_path / "third")["started_from"] == {"stage": "supervised"}
    # Going on with one's own checkpoint is no further run.
    first.train(resume_from_checkpoint=str(tmp_path / "sft" / "checkpoint-2"))
    first.save_model()
    assert "started_from" not in read(tmp_path / "sft")
