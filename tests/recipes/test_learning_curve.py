# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
import shutil
import sys
from pathlib import Path

import pytest

from ppow_hf.data import load_responses
from ppow_hf.evaluation.compare import measure_acceptance
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.recipes.loaded_script import loaded_script
from tests.testing_utils import tiny_eagle3

SCRIPT = Path(__file__).parents[2] / "trainers" / "recipes" / "smollm2" / "learning_curve.py"


@pytest.fixture(scope="module")
def script():
    with loaded_script(SCRIPT) as module:
        yield module


def write_stage(folder: Path, target, seed: int, steps: int, checkpoints: tuple[int, ...]):
    tiny_eagle3(target, seed=seed).save_pretrained(folder)
    for step in checkpoints:
        tiny_eagle3(target, seed=seed + step).save_pretrained(folder / f"checkpoint-{step}")
    log = [{"step": step, "simulated_acceptance_length": 1 + step / 100} for step in range(1, steps + 1)]
    state = {"train_batch_size": 4, "global_step": steps, "log_history": [*log, {"step": steps, "train_runtime": 1}]}
    (folder / "training_log.json").write_text(json.dumps(state))


def test_texts_add_up_over_stages(script, tmp_path):
    target = char_target()
    write_stage(tmp_path / "a", target, 0, 30, (10, 20, 30))
    points, log, texts = script.read_stage("a", tmp_path / "a", 1000)
    # The last checkpoint is the drafter itself.
    assert [(p.name, p.texts) for p in points] == [("a-10", 1040), ("a-20", 1080), ("a-30", 1120)]
    assert points[-1].folder == tmp_path / "a" and texts == 1120
    assert (len(log), log[4].texts, log[4].tau) == (30, 1020, 1.05)
    smoothed = script.smooth(log, points=3)
    assert [entry.tau for entry in smoothed] == pytest.approx([1.055, 1.155, 1.255])


def test_the_curve_is_what_replaying_every_checkpoint_gives(script, tmp_path, monkeypatch):
    target, tokenizer = char_target(), char_tokenizer()
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    write_stage(tmp_path / "a", target, 0, 20, (10,))
    write_stage(tmp_path / "b", target, 3, 5, ())
    suites = []
    for name, texts in (("letters", ("abc", "no", "a b c")), ("words", ("hello", "there"))):
        suites.append(tmp_path / f"{name}.jsonl")
        suites[-1].write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    arguments = ["--stage", f"first={tmp_path / 'a'}", "--stage", f"second={tmp_path / 'b'}", "--window", "3"]
    arguments += [part for suite in suites for part in ("--suite", str(suite))]
    arguments += ["--target", str(tmp_path / "target"), "--max_new_tokens", "12"]
    arguments += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["learning_curve.py", *arguments])
    script.main()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["prompts"] == 5 and results["suites"] == ["letters", "words"]
    assert [(e["stage"], e["texts"]) for e in results["held_out"]] == [("first", 40), ("first", 80), ("second", 100)]
    answers = load_responses(tmp_path / "work" / "answers")
    for entry, seed in zip(results["held_out"], (10, 0, 3), strict=True):
        outcomes = measure_acceptance(target, {"x": tiny_eagle3(target, seed=seed)}, answers, [3])["x"][3]
        for suite, tau in entry["by_suite"].items():
            part = [o for o in outcomes if o.suite == suite]
            assert tau == pytest.approx(sum(o.committed for o in part) / sum(o.verifications for o in part))
        assert entry["tau"] == pytest.approx(sum(entry["by_suite"].values()) / 2)
    assert (tmp_path / "out" / "curve.png").stat().st_size > 5000
    assert "| second | 100 |" in (tmp_path / "out" / "report.md").read_text()


def test_a_stage_without_a_log_is_refused(script, tmp_path):
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    (tmp_path / "a").mkdir()
    with pytest.raises(SystemExit, match="training_log.json"):
        script.read_stage("a", tmp_path / "a", 0)
