# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The drafter that training begins with is what is kept, and saved, where training has only made it worse."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from ppow_hf import AutoDrafter, CostModel
from ppow_hf.scripts.training_run import run_training
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.counting_toy import counting_rows, counting_target, fit
from tests.trainer.ppow_common import assert_equal_weights, ppow_trainer, weights_of

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def good_pair():
    torch.manual_seed(0)
    target = counting_target()
    return target, fit(tiny_eagle3(target, seed=1, initialization="random"), target, (1,), steps=60)


def ruining_trainer(folder, good_pair, **overrides):
    """A trainer whose learning rate ruins a drafter that was right all the time."""
    target, start = good_pair
    drafter, rows = copy.deepcopy(start), counting_rows()
    options = {
        "learning_rate": 1.0,
        "beta": 1.0,
        "max_steps": 4,
        "eval_decode_new_tokens": 9,
        "load_best_model_at_end": True,
        **EVERY_STEP,
        **overrides,
    }
    return ppow_trainer(folder, drafter, target, rows, rows, **options)


def saved(folder) -> dict[str, torch.Tensor]:
    return AutoDrafter.from_pretrained(str(folder)).state_dict()


def differ(one: dict, other: dict) -> bool:
    return any(not torch.equal(value, other[name]) for name, value in one.items())


def test_the_initial_drafter_is_kept_when_training_makes_it_worse(tmp_path, good_pair, caplog):
    trainer = ruining_trainer(tmp_path, good_pair)
    with caplog.at_level("WARNING"):
        trainer.train()
    lengths = [log["eval_acceptance_length"] for log in trainer.state.log_history if "eval_acceptance_length" in log]
    assert lengths[0] == 4.0 and max(lengths[1:]) < 4.0
    assert trainer.state.best_global_step == 0 and trainer.state.best_metric == 4.0
    assert_equal_weights(good_pair[1].state_dict(), trainer.model.state_dict())
    assert "Held-out acceptance length is" in caplog.text and "below the 4.000 of the drafter" in caplog.text
    assert "it is kept" in caplog.text
    assert_equal_weights(good_pair[1].state_dict(), saved(trainer.initial_folder))
    assert trainer.initial_figures()["acceptance_length"] == 4.0


def test_training_stops_early(tmp_path, good_pair):
    """After as many evaluations without a better drafter as asked for, the one before the first step not counted."""
    trainer = ruining_trainer(tmp_path, good_pair, early_stopping_patience=2)
    trainer.train()
    assert trainer.state.global_step == 2
    assert_equal_weights(good_pair[1].state_dict(), trainer.model.state_dict())


@pytest.mark.parametrize("metric", ["eval_speedup_predicted", "speedup_predicted", "acceptance_length"])
def test_whatever_the_best_drafter_is_chosen_by(tmp_path, good_pair, metric, caplog):
    trainer = ruining_trainer(
        tmp_path,
        good_pair,
        metric_for_best_model=metric,
        cost_model=CostModel(gamma=0.1),
        early_stopping_patience=2,
    )
    with caplog.at_level("WARNING"):
        trainer.train()
    name = metric.removeprefix("eval_")
    first, *later = [log[f"eval_{name}"] for log in trainer.state.log_history if f"eval_{name}" in log]
    assert len(later) == 2 and max(later) < first
    assert trainer.state.best_global_step == 0 and trainer.state.best_metric == first
    assert_equal_weights(good_pair[1].state_dict(), trainer.model.state_dict())
    assert f"({name.replace('_', ' ')} {first:.3f}): it is kept" in caplog.text


def test_so_it_is_by_the_held_out_loss(tmp_path, good_pair):
    target, start = good_pair
    drafter, rows = copy.deepcopy(start), counting_rows()
    options = {"metric_for_best_model": "eval_loss", "load_best_model_at_end": True, "eval_on_start": True}
    trainer = sft_trainer(
        tmp_path, drafter, target, rows, rows, learning_rate=1.0, max_steps=2, **options, **EVERY_STEP
    )
    trainer.train()
    first, *later = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert min(later) > first
    assert trainer.state.best_global_step == 0 and trainer.state.best_metric == first
    assert_equal_weights(start.state_dict(), drafter.state_dict())


# ---- tied weights --------------------------------------------------------------------------------------------------


@pytest.fixture
def tied_trainer(tmp_path):
    """Of all of the target's layers: no drafter can be accepted longer. Weight decay takes it away from there."""
    target = tiny_target(tie_word_embeddings=True)
    return sft_trainer(
        tmp_path,
        tiny_causal_drafter(target, num_layers=4),
        target,
        eval_dataset=token_rows(4, seed=1),
        learning_rate=0.1,
        weight_decay=5.0,
        max_steps=2,
        eval_on_start=True,
        load_best_model_at_end=True,
        **EVERY_STEP,
    )


def test_a_drafter_whose_head_is_its_embedding_is_kept(tmp_path, tied_trainer):
    drafter = tied_trainer.model
    before = weights_of(drafter)
    tied_trainer.train()
    assert tied_trainer.state.best_global_step == 0
    stored = load_file(tied_trainer.initial_folder / "model.safetensors")
    assert before.keys() - stored.keys() == {"model.lm_head.weight"}, "one of the two names is stored"
    assert differ(before, saved(tmp_path / "checkpoint-2"))
    assert_equal_weights(before, drafter.state_dict())
    assert drafter.model.lm_head.weight is drafter.model.model.embed_tokens.weight


def test_other_weights_may_not_be_missing(tied_trainer):
    tied_trainer.train()
    path = tied_trainer.initial_folder / "model.safetensors"
    stored = load_file(path)
    name = "model.model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in stored.items() if key != name}, path)
    with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
        tied_trainer._initial.restore(tied_trainer.model)


def test_neither_may_both_names_of_what_is_tied(tied_trainer):
    tied_trainer.train()
    path = tied_trainer.initial_folder / "model.safetensors"
    stored = load_file(path)
    save_file({key: value for key, value in stored.items() if "embed_tokens" not in key}, path)
    with pytest.raises(RuntimeError, match="Missing key.*embed_tokens"):
        tied_trainer._initial.restore(tied_trainer.model)


# ---- sharded weights -----------------------------------------------------------------------------------------------


class Shards(TrainerCallback):
    """Makes the trainer take its drafter for sharded, once the last step is done."""

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.is_deepspeed_enabled = True


def sharded_run(folder, good_pair):
    """A run after which the drafter in memory cannot be brought back to what it was."""
    trainer, shards = ruining_trainer(folder, good_pair), Shards()
    shards.trainer = trainer
    trainer.add_callback(shards)
    run_training(trainer, trainer.args, {})
    return trainer


def test_what_is_saved_is_the_best_where_the_drafter_is_sharded(tmp_path, good_pair, caplog):
    best = good_pair[1].state_dict()
    with caplog.at_level("WARNING"):
        sharded = sharded_run(tmp_path, good_pair)
    assert sharded.state.best_global_step == 0 and differ(best, sharded.model.state_dict())
    assert "sharded over processes" in caplog.text and str(sharded.initial_folder) in caplog.text
    assert_equal_weights(best, saved(tmp_path))
    assert not (tmp_path / "acceptance.json").exists()


def test_so_it_is_in_a_folder_of_another_drafter(tmp_path, good_pair):
    sharded = sharded_run(tmp_path / "run", good_pair)
    other = tmp_path / "other"
    tiny_eagle3(good_pair[0], seed=2).save_pretrained(other, max_shard_size="20KB")
    assert len(list(other.glob("model-*.safetensors"))) > 1
    sharded.save_model(str(other))
    assert [path.name for path in other.glob("model*")] == ["model.safetensors"]
    assert_equal_weights(good_pair[1].state_dict(), saved(other))


def test_the_next_training_saves_its_own(tmp_path, good_pair):
    sharded = sharded_run(tmp_path, good_pair)
    sharded.is_deepspeed_enabled = False
    sharded.remove_callback(Shards)
    sharded.args.load_best_model_at_end, sharded.args.max_steps = False, 1
    sharded.train()
    sharded.save_model()
    assert_equal_weights(sharded.model.state_dict(), saved(tmp_path))
    assert differ(good_pair[1].state_dict(), saved(tmp_path))


# ---- where it cannot be kept ---------------------------------------------------------------------------------------


def test_a_run_that_goes_on_elsewhere_says_that_it_has_no_initial_drafter(tmp_path, good_pair, caplog):
    ruining_trainer(tmp_path / "first", good_pair, max_steps=1).train()
    shutil.copytree(tmp_path / "first" / "checkpoint-1", tmp_path / "again" / "checkpoint-1")
    trainer = ruining_trainer(tmp_path / "again", good_pair)
    with caplog.at_level("WARNING"):
        trainer.train(resume_from_checkpoint=True)
    assert f"is not in `{trainer.initial_folder}`: the last weights stay" in caplog.text
    # Before training goes on, and not of one that goes on in its own folder.
    assert f"`{trainer.initial_folder}` holds no held-out figures" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):
        ruining_trainer(tmp_path / "first", good_pair, max_steps=2).train(resume_from_checkpoint=True)
    assert "holds no held-out figures" not in caplog.text
    assert differ(good_pair[1].state_dict(), trainer.model.state_dict())


EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}


@pytest.mark.parametrize("make", [sft_trainer, ppow_trainer])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, '`eval_strategy` is "no"'),
        ({"eval_on_start": False, **EVALUATED}, "`eval_on_start` is False"),
        ({"eval_on_start": True, **EVALUATED}, None),
        # Turned off by name.
        ({"eval_decode_prompts": 0, "eval_on_start": False}, None),
    ],
    ids=["defaults", "not at first", "all along", "turned off"],
)
def test_what_cannot_be_noticed_is_said_before_training(tmp_path, make, options, said, caplog):
    with caplog.at_level("WARNING"):
        make(tmp_path, eval_dataset=token_rows(2, seed=1), **options)
    warnings = [record.getMessage() for record in caplog.records if "acceptance length" in record.getMessage()]
    assert len(warnings) == (said is not None)
    if said is not None:
        (warning,) = warnings
        assert said in warning
        assert ('`eval_strategy="steps"`' in warning) == (not options)
        assert ("`eval_on_start=True`" in warning) == (make is sft_trainer or bool(options))


@pytest.mark.parametrize("make", [sft_trainer, ppow_trainer])
def test_without_held_out_rows_there_is_nothing_to_say(tmp_path, make, caplog):
    with caplog.at_level("WARNING"):
        make(tmp_path)
    assert "acceptance length" not in caplog.text
