# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Experiments: several trainings on the same responses for the same time, evaluated alike. By default PPOW, its
ablations, token-level RL and continued supervised training from one initialisation; `--config` names others.

    python trainers/recipes/smollm2/ppow_vs_cst.py                      # train what is missing, evaluate, report
    python trainers/recipes/smollm2/ppow_vs_cst.py --arms ppow,cst      # some arms only
    python trainers/recipes/smollm2/ppow_vs_cst.py --set ppow.beta=0.3  # try another value
    python trainers/recipes/smollm2/ppow_vs_cst.py --parallel 2         # two arms at a time, half the processor each
    python trainers/recipes/smollm2/ppow_vs_cst.py --set features=runs/features  # arms share hidden states

Training resumes with the arm it was in. Evaluation replays every drafter on the target's own answers to the suites'
prompts (`ppow_hf.evaluation.compare`), greedy ones and, at other `temperatures`, sampled ones, so that all prompts are
used at little cost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from ppow_hf import load_target
from ppow_hf.evaluation.compare import PromptOutcome, acceptance_figures
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.scripts.command_line import load_drafter
from ppow_hf.scripts.compare_drafters import outcomes_of, target_answers
from ppow_hf.scripts.experiment_report import write_report
from ppow_hf.whole_files import write_json_whole, write_text_whole

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = {"sft": ROOT / "trainers/sft_drafter.py", "ppow": ROOT / "trainers/ppow.py"}


def runs_of(config: dict[str, Any], chosen: list[str] | None) -> dict[str, dict[str, Any]]:
    """
    One entry per arm and seed: the stage and the options of its script. An arm that names `responses` is trained on
    those, and all others on the experiment's.
    """
    if unknown := [arm for arm in chosen or [] if arm not in config["arms"]]:
        raise ValueError(f"`--arms` names {', '.join(unknown)}; the configuration has {', '.join(config['arms'])}.")
    runs = {}
    for arm, options in config["arms"].items():
        if chosen is not None and arm not in chosen:
            continue
        options = dict(options)
        stage, seeds = options.pop("stage"), options.pop("seeds")
        for seed in seeds:
            data = options.get("responses", config["responses"])
            run = {**config["common"], **options, "seed": seed, "data_seed": 0}
            run["responses"] = [data] if isinstance(data, str) else data
            if stage == "sft":
                run.pop("eval_on_start", None)
                if config.get("features"):
                    run["feature_cache_dir"] = config["features"]
            name = f"{arm}-seed{seed}"
            run["output_dir"] = str(Path(config["output"]) / name)
            if config["init"]:
                run["drafter"] = config["init"]
            runs[name] = {"stage": stage, "arm": arm, "options": run}
    return runs


def train(name: str, run: dict[str, Any], threads: int) -> None:
    """Runs one arm in a process of its own, unless it is there already, trained with the same options."""
    output = Path(run["options"]["output_dir"])
    config = output / "options.yaml"
    if config.exists() and (before := yaml.safe_load(config.read_text(encoding="utf-8"))) != run["options"]:
        changed = sorted(key for key in {**before, **run["options"]} if before.get(key) != run["options"].get(key))
        raise ValueError(
            f"`{output}` was begun with other options ({', '.join(changed)}): remove it, or set another `output`."
        )
    if (output / "training_provenance.json").exists():
        print(f"{name}: already trained")
        return
    output.mkdir(parents=True, exist_ok=True)
    write_text_whole(config, yaml.safe_dump(run["options"], sort_keys=False))
    print(f"{name}: training")
    with open(output / "train.log", "w", encoding="utf-8") as log:
        command = [sys.executable, SCRIPTS[run["stage"]], "--config", config]
        subprocess.run(
            command, stdout=log, stderr=log, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )


def fill_features(runs: dict[str, dict[str, Any]], output: Path) -> None:
    """Makes the target's hidden states that several arms share, with the whole processor, once for every data."""
    shared: dict[str, dict[str, Any]] = {}
    for run in runs.values():
        options = run["options"]
        if "feature_cache_dir" in options and not (Path(options["output_dir"]) / "training_provenance.json").exists():
            data = {name: options.get(name) for name in ("responses", "holdout", "max_length", "target")}
            shared.setdefault(json.dumps(data), options)
    for number, options in enumerate(shared.values()):
        print(f"features for {', '.join(options['responses'])}")
        config = output / f"features-{number}.yaml"
        write_text_whole(config, yaml.safe_dump({**options, "output_dir": str(output / "features")}, sort_keys=False))
        command = [sys.executable, "-m", "ppow_hf.scripts.fill_features", "--config", config]
        subprocess.run(command, check=True)


def train_all(runs: dict[str, dict[str, Any]], parallel: int) -> None:
    """Trains all arms, `parallel` at a time with an equal share of the processor each."""
    threads = max(1, (os.cpu_count() or 1) // parallel)
    with ThreadPoolExecutor(parallel) as pool:
        for future in [pool.submit(train, name, run, threads) for name, run in runs.items()]:
            future.result()


def evaluate(
    config: dict[str, Any], runs: dict[str, dict[str, Any]]
) -> dict[tuple[float, int], dict[str, list[PromptOutcome]]]:
    """Outcomes of every drafter at every temperature and with every window, kept in the output folder."""
    target, tokenizer = load_target(config["target"])
    output = Path(config["output"])
    folders = {"init": config["init"]} if config["init"] else {}
    folders |= {name: run["options"]["output_dir"] for name, run in runs.items()}
    drafters = {name: load_drafter(folder, target) for name, folder in folders.items()}
    found = {}
    for temperature in config.get("temperatures", [0]):
        answers = target_answers(target, tokenizer, config["suites"], output, config["max_new_tokens"], temperature)
        outcomes = outcomes_of(target, drafters, answers, config["windows"], output / "outcomes", temperature)
        for window in config["windows"]:
            found[temperature, window] = {name: by_window[window] for name, by_window in outcomes.items()}
    return found


def public(value: Any) -> Any:
    """The same configuration without the machine's paths: of an absolute one the last part is left."""
    if isinstance(value, dict):
        return {key: public(part) for key, part in value.items()}
    if isinstance(value, list):
        return [public(part) for part in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def recorded(config: dict[str, Any], runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """
    The configuration as it was run: without arms that were left out, the blocks that arms are made of, or where the
    report went.
    """
    templates = {key for key, value in config.items() if isinstance(value, dict) and "stage" in value} | {"report"}
    arms = {run["arm"]: config["arms"][run["arm"]] for run in runs.values()}
    return public({key: value for key, value in config.items() if key not in templates} | {"arms": arms})


def training_of(folder: Path) -> dict[str, Any]:
    """What a run recorded of itself. Of older ones it is not known what they cost."""
    facts = json.loads((folder / "training_provenance.json").read_text(encoding="utf-8"))
    log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
    return {
        "result": facts["result"],
        "steps": log["global_step"],
        "cost": facts.get("cost"),
        "log": log["log_history"],
    }


def results_of(config: dict[str, Any], runs: dict[str, dict[str, Any]], outcomes) -> dict[str, Any]:
    entries, first = [], config["baseline"]
    for (temperature, window), by_drafter in outcomes.items():
        baselines = [first, *sorted(name for name in runs if runs[name]["arm"] == "cst")]
        figures = {b: acceptance_figures(by_drafter, baseline=b) for b in baselines if b in by_drafter}
        for name in by_drafter:
            for index, figure in enumerate(figures[first][name]):
                entry = {"drafter": name, "arm": runs[name]["arm"] if name in runs else "init"}
                entry |= {"temperature": temperature, "window": window}
                entry |= figure.to_dict()
                for baseline in baselines[1:]:
                    other = figures[baseline][name][index]
                    entry[f"over_{baseline}"] = [other.difference, other.difference_low, other.difference_high]
                entries.append(entry)
    training = {name: training_of(Path(run["options"]["output_dir"])) for name, run in runs.items()}
    return {
        "environment": describe_environment(torch.device("cpu")),
        "config": recorded(config, runs),
        "results": entries,
        "training": training,
    }


def override(config: dict[str, Any], setting: str) -> None:
    """Changes a configuration by `KEY=VALUE`; a key that begins with a stage reaches all of its arms."""
    key, _, value = setting.partition("=")
    *path, last = key.split(".")
    places = [config]
    if path and path[0] in ("sft", "ppow"):
        stage = path.pop(0)
        places = [arm for arm in config["arms"].values() if arm["stage"] == stage]
    for place in places:
        for part in path:
            place = place[part]
        place[last] = yaml.safe_load(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--arms", help="comma-separated; all by default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. ppow.beta=0.3")
    parser.add_argument("--report", type=Path, help="folder of results.json, report.md and pictures")
    parser.add_argument("--parallel", type=int, default=1, help="arms trained at a time")
    parser.add_argument("--train_only", action="store_true", help="leave out evaluation and report")
    args = parser.parse_args()
    config = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    for setting in args.set:
        override(config, setting)
    config["parallel"] = args.parallel
    runs = runs_of(config, args.arms.split(",") if args.arms else None)
    fill_features(runs, Path(config["output"]))
    train_all(runs, args.parallel)
    if args.train_only:
        return
    results = results_of(config, runs, evaluate(config, runs))
    folder = args.report or Path(config["report"])
    folder.mkdir(parents=True, exist_ok=True)
    write_json_whole(folder / "results.json", results, allow_nan=True)
    write_report(folder, results)
    print(f"{folder}/report.md")


if __name__ == "__main__":
    main()
