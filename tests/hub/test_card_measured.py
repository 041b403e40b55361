# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A card tells of the check in float32 what the check's file says."""

import json
import shutil

import pytest
import torch

from ppow_hf import AutoDrafter
from ppow_hf.evaluation.lossless import check_lossless
from ppow_hf.hub.card import write_card
from ppow_hf.hub.card_facts import read_facts
from tests.evaluation.bench_utils import EXAMPLES, bench, byte_tokenizer, tiny_models

FILE = "benchmarks/lossless/lossless.json"


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A drafter's folder with a real check of it."""
    folder = tmp_path_factory.mktemp("checked") / "tiny"
    target, drafter = tiny_models("eagle3")
    drafter.config.target_name_or_path = target.config._name_or_path = "org/tiny-target"
    drafter.save_pretrained(folder)
    check_lossless(
        target,
        byte_tokenizer(),
        drafter,
        EXAMPLES,
        ["fixed:2", "cost_aware"],
        folder / "benchmarks" / "lossless",
        max_new_tokens=8,
        target_name="org/tiny-target",
        progress=False,
    )
    return folder


@pytest.fixture
def folder(checked, tmp_path):
    return shutil.copytree(checked, tmp_path / "tiny")


def edit(folder, change):
    content = json.loads((folder / FILE).read_text())
    change(content)
    (folder / FILE).write_text(json.dumps(content))


def test_every_method_and_how_much_was_checked(folder):
    text = write_card(folder).read_text()
    assert "| `fixed:2` | 5 | 5 |" in text and "| `cost_aware` | 5 | 5 |" in text
    results = json.loads((folder / FILE).read_text())["results"]
    tokens = sum(row["new_tokens"] for row in results if row["method"] == "target")
    assert f"5 prompts of short, talk, {tokens} new tokens, at most 8 a turn" in text
    assert f"[`{FILE}`]({FILE}), [report](benchmarks/lossless/lossless.md)" in text
    assert "Not lossless" not in text and "| `target` |" not in text


def test_a_text_that_differs_is_said_in_bold(folder):
    def change(content):
        row = next(row for row in content["results"] if (row["method"], row["suite"]) == ("cost_aware", "talk"))
        row |= {"identical": 1, "different": ["e"]}

    edit(folder, change)
    text = write_card(folder).read_text()
    assert "| `cost_aware` | 5 | 4 |" in text
    assert (
        f"**Not lossless**: in float32 `cost_aware` gave another text than plain `generate` on e (`{FILE}`)." in text
    )


def test_without_a_check_there_is_nothing_of_it(folder):
    shutil.rmtree(folder / "benchmarks")
    assert read_facts(folder).checks == [] and "token for token" not in write_card(folder).read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(drafter_hash="0" * 16), "measured with another drafter.*check_lossless"),
        (lambda content: content["arguments"].update(target="org/another"), "target `org/another`, but this drafter"),
    ],
)
def test_a_check_of_other_models_is_refused(folder, change, words):
    edit(folder, change)
    with pytest.raises(ValueError, match=words):
        write_card(folder)


@pytest.mark.parametrize("text", ["", '{"arguments": ', "[]", "{}"])
def test_a_truncated_check_is_named(folder, text):
    (folder / FILE).write_text(text)
    with pytest.raises(OSError, match="lossless.json"):
        write_card(folder)


def test_what_was_measured_in_the_targets_precision_is_of_the_stored_drafter(tmp_path):
    """Training leaves float32, and a drafter decodes in its target's bfloat16."""
    target, drafter = tiny_models("eagle3")
    drafter.config.target_name_or_path = target.config._name_or_path = "org/tiny-target"
    drafter.save_pretrained(tmp_path / "tiny")
    target = target.bfloat16()
    decoding = AutoDrafter.from_pretrained(tmp_path / "tiny", dtype=target.dtype)
    bench(tmp_path / "tiny" / "benchmarks", models=(target, decoding), methods=["target", "fixed:2"])
    results = json.loads((tmp_path / "tiny" / "benchmarks" / "results.json").read_text())
    assert results["arguments"]["dtype"] == "bfloat16"
    edit_target = results["arguments"] | {"target": "org/tiny-target"}
    (tmp_path / "tiny" / "benchmarks" / "results.json").write_text(json.dumps(results | {"arguments": edit_target}))
    assert "`fixed:2`" in write_card(tmp_path / "tiny").read_text()
    with torch.no_grad():
        drafter.lm_head.weight[0, 0] += 1
    drafter.save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="measured with another drafter"):
        write_card(tmp_path / "tiny")
