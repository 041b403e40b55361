# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The published drafter's folder is its repository: `ppow push` sends it as it is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ppow_hf import AutoDrafter
from ppow_hf.generation import stored_costs
from ppow_hf.hub.push_drafter import complete_folder
from ppow_hf.hub.push_files import select_files

CARDS = Path(__file__).resolve().parents[2] / "model_cards"
FOLDERS = sorted(path.parent for path in CARDS.glob("*/model.safetensors"))


# What importing its code and decoding with it leave in a folder.
_LEFT_BY_USE = {"__pycache__", ".cache"}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not _LEFT_BY_USE & set(path.parts))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_there_is_a_reference_drafter():
    assert [folder.name for folder in FOLDERS] == ["smollm2-135m-instruct-eagle3"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_costs_are_of_machines_the_benchmarks_ran_on(folder):
    """An entry of another machine would be published with the others, and be one more row of the card."""
    machines = set()
    for path in (folder / "benchmarks").rglob("results.json"):
        results = json.loads(path.read_text())
        for sitting in results.get("sittings") or [results]:
            environment = sitting["environment"]
            cpu = f"cpu {environment['cpu']} x{environment['torch_threads']}"
            machines.add(cpu if environment["device"] == "cpu" else environment["device_name"])
    entries = json.loads((folder / "cost_model.json").read_text())["entries"]
    foreign = [key for key in entries if key.split(" | ")[0] not in machines]
    assert entries and not foreign, (
        f"{folder.name}/cost_model.json holds costs of a machine that no benchmark in the folder ran on: {foreign}. "
        "Take them out, or benchmark there too and run `ppow card`."
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_costs_are_of_these_models_and_of_todays_code(folder):
    """Others would never be found, and the card would state them all the same: run `ppow calibrate --drafter`."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    with torch.device("meta"):
        heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
        target = LlamaForCausalLM(LlamaConfig(**heads, **sizes))
    identity = stored_costs._identity(target, AutoDrafter.from_pretrained(folder))
    entries = json.loads((folder / "cost_model.json").read_text())["entries"]
    stale = [key for key in entries if key.split(" | ")[-1] != identity]
    assert not stale, f"{folder.name}/cost_model.json holds costs that decoding does not look for: {stale}."
    assert all("level_costs" in entry for entry in entries.values())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_folder_is_what_push_sends(folder, tmp_path):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*_LEFT_BY_USE))
    chosen = select_files(copy)
    assert set(chosen.files) == set(contents(copy)), "push leaves out, or would add, files"
    assert not chosen.left_out
    # Card and remote code are up to date with the facts and the library: else run `ppow card` on the folder.
    complete_folder(copy, f"ppow-hf/{folder.name}")
    before, after = contents(folder), contents(copy)
    assert before.keys() == after.keys()
    assert [name for name in after if after[name] != before[name]] == []
    assert len(after["model.safetensors"]) <= 24e6
    assert sum(len(data) for data in after.values()) < 30e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_no_evaluation_prompt_was_trained_on(folder):
    """What it was trained on before `ppow data --exclude` was there has been checked afterwards."""
    found = json.loads((folder.parent / "experiments" / "exclusion" / "exclusion.json").read_text())
    assert {suite["name"] for suite in found["evaluation"]} == {"gsm8k.jsonl", "humaneval.jsonl", "mt_bench.jsonl"}
    assert all(not numbers for row in found["prompts"] for numbers in row["found_at"].values())
    checked = {row["sha256"] for row in found["prompts"]}
    responses = json.loads((folder / "provenance.json").read_text())["responses"]
    assert {entry["sha256"] for entry in responses if "sha256" in entry} <= checked
    drawn = {name.rstrip("2") for entry in responses for name in entry.get("sources", {}) if not entry.get("excluded")}
    assert drawn <= {"code", "chat", "gsm8k"}, "the sources of shares that were drawn without --exclude"
