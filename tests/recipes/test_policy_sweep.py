# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
from pathlib import Path

import pytest
import torch

from ppow_hf import CostModel
from ppow_hf.evaluation.simulation import RecordedWindows, simulate
from ppow_hf.generation import WindowConfig
from ppow_hf.generation.stored_costs import cost_model_key
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.recipes.loaded_script import loaded_script
from tests.testing_utils import tiny_eagle3

SCRIPT = Path(__file__).parents[2] / "trainers" / "recipes" / "smollm2" / "policy_sweep.py"
COSTS = CostModel(gamma=0.1, verify_curve=[1.0, 1.1, 1.2, 1.3, 1.4], overhead=0.05)


@pytest.fixture
def script():
    with loaded_script(SCRIPT) as module:
        yield module


def windows(places, seed):
    generator = torch.Generator().manual_seed(seed)
    stats = torch.rand(places, 4, 5, generator=generator)
    stats[..., 1] = stats[..., 0] / 3
    stats[..., 3] = 1.0
    accepted = torch.randint(0, 5, (places,), generator=generator)
    accepted = [min(int(k), places - place) for place, k in enumerate(accepted)]
    variation = torch.rand(places, 4, generator=generator).tolist()
    return RecordedWindows(stats, accepted, variation, [[] for _ in range(places)])


def test_every_setting_is_tried_by_itself(script):
    base = WindowConfig(max_size=4)
    found = script.variants(base)
    assert found[0] == ("as it is", base, {})
    for name, config, settings in found[1:]:
        setting, value = name.split("=")
        changed = {k: v for k, v in config.to_dict().items() if v != base.to_dict()[k]}
        assert [*changed, *settings] == [setting] and str({**changed, **settings}[setting]) == value


def test_speedups_are_those_of_the_simulation(script, monkeypatch):
    monkeypatch.setattr(script, "WINDOW_SETTINGS", {"online_calibration": (False,)})
    monkeypatch.setattr(script, "ESTIMATE_SETTINGS", {"prior_deviation": (0.8,)})
    recorded = [("a", 0, windows(30, 0)), ("a", 0, windows(20, 1)), ("a", 1, windows(25, 2)), ("b", 2, windows(40, 3))]
    base = WindowConfig(max_size=4)
    found = script.sweep(recorded, base, {"fixed:2": WindowConfig("fixed", size=2)}, COSTS, 60, sampling=True)
    assert list(found) == ["as it is", "online_calibration=False", "prior_deviation=0.8", "fixed:2", "oracle"]
    walks = [simulate(parts, base, COSTS, 60, sampling=True) for _, _, parts in recorded]
    first = (walks[0] + walks[1]).speedup
    assert found["as it is"] == pytest.approx(((first + walks[2].speedup) / 2 + walks[3].speedup) / 2)
    assert len(set(found.values())) == 5


def test_the_script(script, tmp_path, monkeypatch):
    target, tokenizer = char_target(), char_tokenizer()
    drafter = tiny_eagle3(target)
    drafter.bind_target(target)
    drafter.generation_config.window = WindowConfig(max_size=12)
    drafter.__dict__["_cost_models"] = {cost_model_key(target, drafter): COSTS}
    monkeypatch.setattr(script, "load_target", lambda name: (target, tokenizer))
    monkeypatch.setattr(script, "load_drafter", lambda folder, target: drafter)
    suite = tmp_path / "letters.jsonl"
    suite.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("abc", "hello there")))
    output = tmp_path / "out"
    script.main([str(suite)], output, max_new_tokens=16, answers=tmp_path / "answers")
    results = json.loads((output / "results.json").read_text())
    assert set(results["speedup"]) == {"0", "1"} and results["arguments"]["prompts"] == 2
    report = (output / "report.md").read_text()
    assert report == script.report(results) and f"{results['speedup']['1']['oracle']:.3f}" in report
