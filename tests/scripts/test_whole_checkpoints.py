# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerState

from ppow_hf.scripts import whole_checkpoints
from ppow_hf.scripts.whole_checkpoints import checkpoint_to_resume, last_whole_checkpoint


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
