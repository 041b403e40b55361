# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Runs killed around the moment their dataset becomes whole: nothing stays behind for ever."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
from filelock import FileLock

from ppow_hf.data import files, shards
from ppow_hf.data.prompts import Prompt
from ppow_hf.data.responses import generate_responses

from .data_testing_utils import char_target, char_tokenizer

PROMPTS = [Prompt((f"is {i}?",)) for i in range(6)]
SETTINGS = {"max_new_tokens": 4, "batch_size": 4, "progress": False}


def generate(folder, **changed):
    return generate_responses(char_target(), char_tokenizer(), PROMPTS, folder / "out", **{**SETTINGS, **changed})


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _before_the_rename():
    replace = os.replace

    def dying(source, destination):
        if Path(destination).name == "out":
            _die()
        replace(source, destination)

    files.os.replace = dying


def _before_the_removal():
    shards.ShardFolder.remove = lambda self: _die()


def _within_the_removal(removed):
    """Killed once `removed` things in the folder are gone."""
    unlink, seen = os.unlink, []

    def dying(*args, **kwargs):
        if len(seen) == removed:
            _die()
        seen.append(args)
        unlink(*args, **kwargs)

    def remove(self, remove=shards.ShardFolder.remove):
        os.unlink = dying  # what `pathlib` and `shutil` call
        remove(self)

    shards.ShardFolder.remove = remove


def run_and_die(folder, arrange, *arguments):
    """In a child process, so that the kill is a real one."""

    def child():
        arrange(*arguments)
        generate(folder)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_killed_at_the_final_rename(tmp_path):
    for _ in range(2):  # killed twice, what the first left does not pile up
        run_and_die(tmp_path, _before_the_rename)
        assert names(tmp_path) == ["out.partial"], "nothing outside of the folder that is removed"
        assert [path.name for path in (tmp_path / "out.partial").iterdir() if path.is_dir()] == ["dataset"]
    resumed = generate(tmp_path)
    assert names(tmp_path) == ["out"]
    (tmp_path / "whole").mkdir()
    assert resumed[:] == generate(tmp_path / "whole")[:]


@pytest.mark.parametrize(
    "arrange", [(_before_the_removal,), (_within_the_removal, 0), (_within_the_removal, 1), (_within_the_removal, 2)]
)
def test_killed_before_the_batches_were_removed(tmp_path, arrange):
    run_and_die(tmp_path, *arrange)
    assert names(tmp_path) == ["out", "out.partial"]
    again = generate(tmp_path)
    assert names(tmp_path) == ["out"] and len(again) == len(PROMPTS)


def test_an_empty_folder_is_a_leftover(tmp_path):
    generate(tmp_path)
    (tmp_path / "out.partial").mkdir()
    generate(tmp_path)
    assert names(tmp_path) == ["out"]


def test_the_batches_of_another_run_stay(tmp_path):
    run_and_die(tmp_path, _before_the_removal)
    other = tmp_path / "other"
    other.mkdir()
    generate(other, seed=1)
    shutil.copytree(tmp_path / "out.partial", other / "out.partial")
    generate(other, seed=1)
    assert names(other) == ["out", "out.partial"]
    assert names(other / "out.partial") == names(tmp_path / "out.partial")


def test_the_batches_of_a_run_under_way_stay(tmp_path):
    run_and_die(tmp_path, _before_the_removal)
    with FileLock(tmp_path / "out.partial" / ".lock"):
        generate(tmp_path)
    assert names(tmp_path) == ["out", "out.partial"]
