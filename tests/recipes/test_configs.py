# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Every YAML file under `trainers/` is one that its script understands."""

import json
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from ppow_hf.evaluation.compare import PromptOutcome
from ppow_hf.scripts import sft_drafter, train_ppow
from ppow_hf.trainer import DrafterSFTConfig, PPOWConfig
from tests.recipes.loaded_script import loaded_script

TRAINERS = Path(__file__).parents[2] / "trainers"
STAGES = {"sft": (sft_drafter, DrafterSFTConfig), "ppow": (train_ppow, PPOWConfig)}
SCRIPT = TRAINERS / "recipes" / "smollm2" / "ppow_vs_cst.py"
FILES = [*sorted((TRAINERS / "configs").glob("*.yaml")), *sorted((TRAINERS / "recipes").glob("*/*.yaml"))]
# Those of several runs each, which a script of their own reads.
EXPERIMENTS = [path for path in FILES if "arms" in yaml.safe_load(path.read_text())]
FILES = [path for path in FILES if path not in EXPERIMENTS]


def stage_of(path: Path) -> str:
    return "ppow" if "num_generations" in yaml.safe_load(path.read_text()) else "sft"


def parse(stage: str, path: Path):
    module, config_class = STAGES[stage]
    # Whatever machine it is for: checks of the GPU are not what is asked here.
    script_args, training_args = module.make_parser().parse_args_and_config(["--config", str(path), "--use_cpu"])
    assert type(training_args) is config_class
    given = yaml.safe_load(path.read_text())
    assert training_args.report_to == [] and given.pop("report_to") == "none"
    for name, value in given.items():
        found = getattr(script_args, name) if hasattr(script_args, name) else getattr(training_args, name)
        assert found == value, name
    return script_args, training_args


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_training_configs(path):
    _, training_args = parse(stage_of(path), path)
    if training_args.load_best_model_at_end:
        assert (training_args.metric_for_best_model, training_args.greater_is_better) == (
            "eval_acceptance_length",
            True,
        )


@pytest.fixture
def script():
    """The script that reads the experiments."""
    with loaded_script(SCRIPT) as module:
        yield module


def test_settings_reach_the_arms_of_a_stage(script):
    config = yaml.safe_load(SCRIPT.with_suffix(".yaml").read_text())
    for setting in ("ppow.beta=0.3", "arms.cst.seeds=[7]", "common.max_seconds=5", "output=elsewhere"):
        script.override(config, setting)
    arms = config["arms"]
    assert {arm.get("beta") for arm in arms.values() if arm["stage"] == "ppow"} == {0.3}
    assert not any("beta" in arm for arm in arms.values() if arm["stage"] == "sft")
    assert arms["cst"]["seeds"] == [7] and arms["ppow"]["seeds"] == [0, 1]
    assert config["common"]["max_seconds"] == 5 and config["output"] == "elsewhere"


def test_an_arm_trained_with_other_options_is_not_taken(script, tmp_path, capsys):
    run = {"stage": "sft", "options": {"output_dir": str(tmp_path), "beta": 1.0, "seed": 0}}
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(run["options"]))
    (tmp_path / "training_provenance.json").touch()
    script.train("arm", run, threads=1)
    assert "already trained" in capsys.readouterr().out
    run["options"]["beta"] = 0.3
    with pytest.raises(ValueError, match="begun with other options .beta.: remove it"):
        script.train("arm", run, threads=1)


def small_experiment(folder: Path) -> dict:
    """Three arms, one with data of its own, and the block that two of them are made of."""
    block = {"stage": "sft", "seeds": [0]}
    return {
        "init": str(folder / "first"),
        "responses": ["runs/responses"],
        "output": str(folder),
        "baseline": "init",
        "common": {"max_steps": 4, "holdout": 3},
        "sft": block,
        "arms": {"cst": block, "more": {**block, "responses": "runs/more"}, "later": {**block, "stage": "ppow"}},
    }


def test_an_arm_may_have_data_of_its_own(script, tmp_path):
    config = small_experiment(tmp_path)
    runs = script.runs_of(config, None)
    responses = {run["arm"]: run["options"]["responses"] for run in runs.values()}
    assert responses == {"cst": ["runs/responses"], "more": ["runs/more"], "later": ["runs/responses"]}
    for name, run in runs.items():
        assert run["options"]["output_dir"] == str(tmp_path / name)
        assert {"max_steps": 4, "holdout": 3, "seed": 0, "data_seed": 0}.items() <= run["options"].items()
    assert config == small_experiment(tmp_path), "the configuration stays as it was"


def test_arms_share_the_targets_hidden_states(script, tmp_path, monkeypatch):
    config = small_experiment(tmp_path) | {"features": str(tmp_path / "features")}
    runs = script.runs_of(config, None)
    cached = {run["arm"]: run["options"].get("feature_cache_dir") for run in runs.values()}
    assert cached == {"cst": config["features"], "more": config["features"], "later": None}
    assert not any(
        "feature_cache_dir" in run["options"] for run in script.runs_of(small_experiment(tmp_path), None).values()
    )
    filled = []

    def run_command(command, check):
        assert check and command[1:3] == ["-m", "ppow_hf.scripts.fill_features"]
        filled.append(yaml.safe_load(Path(command[-1]).read_text()))

    monkeypatch.setattr(script.subprocess, "run", run_command)
    script.fill_features(runs, tmp_path)
    assert [options["responses"] for options in filled] == [["runs/responses"], ["runs/more"]]
    assert all(options["feature_cache_dir"] == config["features"] for options in filled)
    (tmp_path / "more-seed0").mkdir()
    (tmp_path / "more-seed0" / "training_provenance.json").touch()  # trained already
    filled.clear()
    script.fill_features(runs, tmp_path)
    assert [options["responses"] for options in filled] == [["runs/responses"]]


def test_what_is_recorded_is_what_ran(script, tmp_path):
    config = small_experiment(tmp_path)
    runs = script.runs_of(config, ["cst", "more"])
    with pytest.raises(ValueError, match="`--arms` names cts; the configuration has"):
        script.runs_of(config, ["cts"])
    for name, facts in (("cst-seed0", {}), ("more-seed0", {"cost": {"seconds": 2.5, "target_tokens": 77}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training_provenance.json").write_text(json.dumps({"result": {}, **facts}))
        (tmp_path / name / "training_log.json").write_text(json.dumps({"global_step": 4, "log_history": [{"kl": 1}]}))
    outcomes = {name: [PromptOutcome("gsm8k", 10, 5)] for name in ("init", *runs)}
    results = script.results_of(config, runs, {(0, 5): outcomes})
    assert set(results["config"]["arms"]) == {"cst", "more"} and "sft" not in results["config"]
    assert results["config"]["arms"]["more"]["responses"] == "runs/more"
    assert results["config"]["init"] == "first" and results["config"]["common"] == config["common"]
    assert {name: entry["cost"] for name, entry in results["training"].items()} == {
        "cst-seed0": None,
        "more-seed0": {"seconds": 2.5, "target_tokens": 77},
    }
    assert results["training"]["cst-seed0"]["steps"] == 4


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_arm_of_an_experiment(tmp_path, experiment, script):
    config = yaml.safe_load(experiment.read_text())
    runs = script.runs_of(config, None)
    assert {run["arm"] for run in runs.values()} == set(config["arms"])
    for name, run in runs.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(run["options"], sort_keys=False))
        script_args, training_args = parse(run["stage"], path)
        budget = {name: config["common"][name] for name in ("max_seconds", "max_steps") if name in config["common"]}
        assert budget and all(getattr(training_args, name) == value for name, value in budget.items()), "equal budgets"
        assert script_args.drafter == config["init"]
    assert config["baseline"] in ({"init"} if config["init"] else set(runs))


@pytest.mark.parametrize(("text", "value"), [("measured", "measured"), ("0.08", 0.08)])
def test_a_cost_ratio_on_the_command_line(tmp_path, text, value):
    arguments = ["--responses", "a", "--output_dir", str(tmp_path), "--use_cpu", "--cost_ratio", text]
    _, training_args = train_ppow.make_parser().parse_args_and_config(arguments)
    assert training_args.cost_ratio == value


@pytest.mark.parametrize("path", sorted((TRAINERS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    assert config.distributed_type.value in ("MULTI_GPU", "FSDP", "DEEPSPEED")
