# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""An experiment from its file to its report: two arms are trained, and replayed at two temperatures."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from ppow_hf import AutoDrafter
from ppow_hf.data import generate_responses, load_responses
from ppow_hf.evaluation.compare import measure_acceptance
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.recipes.loaded_script import loaded_script
from tests.testing_utils import tiny_eagle3

SCRIPT = Path(__file__).parents[2] / "trainers" / "recipes" / "smollm2" / "ppow_vs_cst.py"


@pytest.fixture
def experiment(tmp_path):
    """Its target, and the path of its file."""
    target, tokenizer = char_target(), char_tokenizer()
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    prompts = [f"Say {i}." for i in range(10)]
    generate_responses(target, tokenizer, prompts, tmp_path / "responses", max_new_tokens=12, progress=False)
    tiny_eagle3(target, seed=5).save_pretrained(tmp_path / "init")
    suite = tmp_path / "letters.jsonl"
    suite.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("abc", "hello there", "no")))
    config = {
        "title": "A small question",
        "init": str(tmp_path / "init"),
        "responses": [str(tmp_path / "responses")],
        "output": str(tmp_path / "runs"),
        "report": str(tmp_path / "report"),
        "target": str(tmp_path / "target"),
        "suites": [str(suite)],
        "max_new_tokens": 12,
        "windows": [3, 2],
        "temperatures": [0, 1],
        "baseline": "init",
        "common": {
            "target": str(tmp_path / "target"),
            "holdout": 2,
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "eval_strategy": "no",
            "eval_on_start": False,
            "eval_decode_prompts": 0,
            "save_strategy": "no",
            "logging_steps": 1,
            "learning_rate": 0.01,
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
        },
        "arms": {
            "cst": {"stage": "sft", "ttt_steps": 2, "seeds": [0]},
            "ppow": {"stage": "ppow", "window_size": 3, "num_windows": 2, "num_generations": 2, "seeds": [1]},
        },
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return target, path


def test_from_the_file_to_the_report(experiment, tmp_path, monkeypatch):
    target, path = experiment
    with loaded_script(SCRIPT) as script:
        monkeypatch.setattr(sys, "argv", ["ppow_vs_cst.py", "--config", str(path), "--parallel", "2"])
        script.main()
        results = json.loads((tmp_path / "report" / "results.json").read_text())
        weights = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/model.safetensors")}
        script.main()  # nothing is trained or measured again
    assert len(weights) == 2 and all(p.stat().st_mtime_ns == when for p, when in weights.items())
    assert json.loads((tmp_path / "report" / "results.json").read_text())["results"] == results["results"]

    names = ("init", "cst-seed0", "ppow-seed1")
    found = {(e["drafter"], e["temperature"], e["window"]): e for e in results["results"] if e["suite"] == "letters"}
    assert list(found) == [(name, t, w) for t in (0, 1) for w in (3, 2) for name in names]
    folders = {name: tmp_path / "runs" / name for name in names[1:]} | {"init": tmp_path / "init"}
    drafters = {name: AutoDrafter.from_pretrained(folder) for name, folder in folders.items()}
    for temperature, answers in ((0, "answers"), (1, "answers-temperature-1")):
        rows = load_responses(tmp_path / "runs" / answers)
        outcomes = measure_acceptance(target, drafters, rows, [3], temperature)
        for name in names:
            cycles = outcomes[name][3]
            tau = sum(o.committed for o in cycles) / sum(o.verifications for o in cycles)
            assert found[name, temperature, 3]["acceptance_length"] == pytest.approx(tau)
    assert results["training"]["cst-seed0"]["steps"] == results["training"]["ppow-seed1"]["steps"] == 2
    assert "over_cst-seed0" in found["ppow-seed1", 1, 2]
    text = (tmp_path / "report" / "report.md").read_text()
    for window in (3, 2):
        assert f"## Windows of {window}\n" in text and f"## Windows of {window}, sampled at temperature 1\n" in text
    assert str(tmp_path) not in (tmp_path / "report" / "results.json").read_text()


def test_an_arm_begun_with_other_options_is_not_taken(experiment, tmp_path, monkeypatch):
    _, path = experiment
    with loaded_script(SCRIPT) as script:
        folder = tmp_path / "runs" / "cst-seed0"
        folder.mkdir(parents=True)
        (folder / "options.yaml").write_text("ttt_steps: 5\n")
        monkeypatch.setattr(sys, "argv", ["ppow_vs_cst.py", "--config", str(path), "--arms", "cst", "--train_only"])
        with pytest.raises(ValueError, match=r"begun with other options \(.*ttt_steps"):
            script.main()
