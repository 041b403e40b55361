# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerState

from ppow_hf.scripts import whole_checkpoints
from ppow_hf.scripts.whole_checkpoints import checkpoint_to_resume, is_at_the_end, last_whole_checkpoint
from ppow_hf.trainer import DrafterSFTConfig


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(whole_checkpoints.logger, "warning", found.append)
    return found


@pytest.fixture
def run(tmp_path):
    """A run with three checkpoints, of which the last by number is not the last by name."""
    for step in (8, 9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"weight": torch.full((3,), float(step))}, folder / "model.safetensors")
        TrainerState(global_step=step).save_to_json(str(folder / "trainer_state.json"))
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-11").write_text("not a folder")
    return tmp_path


def cut(file, share=0.5):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def test_the_newest_is_taken(run, warnings):
    assert last_whole_checkpoint(run) == str(run / "checkpoint-10")
    assert not warnings


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors"])
def test_one_cut_short_is_passed_over(run, warnings, name, share):
    cut(run / "checkpoint-10" / name, share)
    assert last_whole_checkpoint(run) == str(run / "checkpoint-9")
    (warning,) = warnings
    assert "checkpoint-10" in warning and f"{name} cannot be read" in warning


def test_several_are_passed_over(run, warnings):
    (run / "checkpoint-10" / "trainer_state.json").unlink()
    cut(run / "checkpoint-9" / "model.safetensors")
    assert last_whole_checkpoint(run) == str(run / "checkpoint-8")
    assert "trainer_state.json is missing" in warnings[0] and len(warnings) == 2


def test_none_is_left(run, tmp_path):
    for step in (8, 9, 10):
        (run / f"checkpoint-{step}" / "trainer_state.json").unlink()
    assert last_whole_checkpoint(run) is None
    assert last_whole_checkpoint(tmp_path / "nowhere") is None


def test_a_broken_one_that_was_named_is_refused(run, tmp_path):
    cut(run / "checkpoint-9" / "model.safetensors")
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), resume_from_checkpoint=str(run / "checkpoint-9"), use_cpu=True
    )
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint`.*checkpoint-9.*not a whole checkpoint.*model"):
        checkpoint_to_resume(arguments)


@pytest.mark.parametrize(("asked", "taken"), [(True, 10), ("true", 10), ("True", 10), (False, None), ("false", None)])
def test_yes_and_no_are_no_names_of_checkpoints(run, asked, taken):
    args = TrainingArguments(str(run), use_cpu=True, report_to="none", resume_from_checkpoint=asked)
    assert checkpoint_to_resume(args) == (None if taken is None else str(run / f"checkpoint-{taken}"))


@pytest.mark.parametrize(
    ("options", "state", "ended"),
    [
        ({"max_steps": 10}, {"global_step": 10}, True),
        ({"max_steps": 11}, {"global_step": 10}, False),
        ({"num_train_epochs": 2}, {"global_step": 10, "epoch": 2.0}, True),
        ({"num_train_epochs": 3}, {"global_step": 10, "epoch": 2.0}, False),
        ({"max_seconds": 5.0}, {"stateful_callbacks": {"TimeBudget": {"attributes": {"spent": 5.1}}}}, True),
        ({"max_seconds": 9.0}, {"stateful_callbacks": {"TimeBudget": {"attributes": {"spent": 5.1}}}}, False),
    ],
)
def test_whether_a_run_is_at_its_end(tmp_path, options, state, ended):
    TrainerState(**state).save_to_json(str(tmp_path / "trainer_state.json"))
    args = DrafterSFTConfig(str(tmp_path / "run"), use_cpu=True, report_to="none", **options)
    assert is_at_the_end(tmp_path, args) == ended
