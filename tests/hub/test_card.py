# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Cards say what the drafter's folder says, and nothing else."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import model_index_to_eval_results

from ppow_hf.evaluation.precision import fingerprint
from ppow_hf.hub.card import TEMPLATE, _mark, check_card, is_as_written, write_card
from ppow_hf.hub.card_facts import CardFacts, is_repo_id, machine_paths, public_text, read_facts
from ppow_hf.hub.card_results import lossless_rows, other_methods
from ppow_hf.hub.exporter import export_drafter
from ppow_hf.hub.layer_ids import engine_default
from ppow_hf.hub.push_drafter import complete_folder
from ppow_hf.hub.remote_code import write_remote_code
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

REFERENCE = Path(__file__).parents[2] / "model_cards" / "smollm2-135m-instruct-eagle3"
TARGET = "HuggingFaceTB/SmolLM2-135M-Instruct"
RESULTS = "benchmarks/results.json"


def _edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _save(drafter, folder: Path) -> None:
    drafter.config.target_name_or_path = TARGET
    drafter.save_pretrained(folder)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A drafter as `save_pretrained` leaves it."""
    folder = tmp_path_factory.mktemp("bare") / "tiny"
    _save(tiny_eagle3(tiny_target(), 40), folder)
    return folder


@pytest.fixture
def folder(bare, tmp_path):
    """The same with the reference drafter's training records, costs and benchmarks."""
    folder = tmp_path / "my-drafter"
    shutil.copytree(bare, folder)
    for name in ("provenance.json", "training_log.json", "cost_model.json", "generation_config.json"):
        shutil.copy(REFERENCE / name, folder / name)
    # Without the check in float32, which is of other weights.
    shutil.copytree(REFERENCE / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("lossless*"))
    (folder / "benchmarks" / "float32").mkdir(exist_ok=True)  # a second benchmark, of the same kind
    shutil.copy(folder / RESULTS, folder / "benchmarks" / "float32" / "results.json")
    for path in folder.rglob("results.json"):
        _edit(
            path, lambda results: (results.pop("drafter_hash", None), results["arguments"].pop("drafter_hash", None))
        )
    return folder


def _tables(text: str) -> list[list[list[str]]]:
    """Cells of every table, header first."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif tables[-1]:
            tables.append([])
    return [[row for row in table if set("".join(row)) != {"-"}] for table in tables if table]


# ---- figures -------------------------------------------------------------------------------------------------------


def test_every_result_is_that_of_the_file(folder):
    tables = [t for t in _tables(write_card(folder).read_text()) if t[0][0] == "suite"]
    files = [folder / RESULTS, folder / "benchmarks" / "float32" / "results.json"]
    assert len(tables) == len(files)
    for table, file in zip(tables, files, strict=True):
        rows = json.loads(file.read_text())["results"]
        assert len(table) - 1 == len(rows)
        for cells, row in zip(table[1:], rows, strict=True):
            got = dict(zip(table[0], cells, strict=True))
            assert (got["suite"], got["method"]) == (row["suite"], f"`{row['method']}`")
            assert got["tokens/s"] == f"{row['tokens_per_second']:.1f}"
            low, high = row["speedup_interval"] or (None, None)
            interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
            assert got["speedup"] == f"{row['speedup']:.2f}x{interval}"
            for name, column in (("mean_window", "window"), ("acceptance_rate", "acceptance rate")):
                assert got[column] == ("-" if row[name] is None else f"{row[name]:.2f}")
            tau = row["acceptance_length"]
            assert got["tau"].split(" ")[0] == ("-" if tau is None else f"{tau:.2f}")


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ({"prompts": 7, "of": 9}, "all prompts a suite (7 of 9 so far), at most"),
        ({"prompts": 9, "of": 9}, "all prompts a suite, at most"),
        (None, "all prompts a suite, at most"),
    ],
)
def test_an_unfinished_benchmark_says_so(folder, measured, said):
    _edit(
        folder / "benchmarks" / "results.json",
        lambda results: results.update(measured=measured, arguments=results["arguments"] | {"limit": None}),
    )
    assert said in write_card(folder).read_text()


def test_shares_of_identical_texts_are_over_prompts_whatever_the_suite(folder):
    method = read_facts(folder).own_method
    wanted = iter([(10, 1.0, 2), (30, 0.5, 2), (0, 0.0, 0)])

    def change(results):
        for row in results["results"]:
            if row["method"] == method and row["temperature"] == 0:
                prompts, share, checked = next(wanted)
                row.update(
                    num_prompts=prompts, lossless=share, lossless_float32=share, lossless_float32_prompts=checked
                )

    _edit(folder / RESULTS, change)
    [benchmark] = [b for b in read_facts(folder).benchmarks if b.path == RESULTS]
    [cells] = [row for row in lossless_rows(benchmark) if row[1] == f"`{method}`"]
    # 25 of 40 texts; in float32 3 of 4
    assert (cells[3], cells[5:]) == ("62%", ["4", "75%"])


def test_another_drafter_in_a_benchmark_is_not_called_transformers_own(folder):
    def change(results):
        for row in results["results"] + results["summary"]:
            if row["method"] == "prompt_lookup":
                row["method"] = "cost_aware@cst"

    _edit(folder / "benchmarks" / "results.json", change)
    said = other_methods(read_facts(folder))
    assert "`...@cst`: another drafter" in said and "cost_aware@cst" not in said


def test_another_figure_gives_another_card(folder):
    before, own = write_card(folder).read_text(), read_facts(folder).own_method

    def change(results):
        row = next(r for r in results["results"] if (r["suite"], r["method"]) == ("gsm8k", own))
        row["acceptance_length"], row["speedup"] = 77.77, 5.55

    _edit(folder / RESULTS, change)
    after = write_card(folder).read_text()
    assert "77.77" not in before and "5.55x" not in before
    assert "| 77.77 [" in after and "5.55x [" in after and "value: 77.77" in after


def _numbers_of(value, scales=(1, 100, 1000, 1e-6)) -> set[str]:
    """Every way a card may write the numbers in a JSON value."""
    found: set[str] = set()
    if isinstance(value, dict):
        for key, item in value.items():
            found |= _numbers_of(key) | _numbers_of(item)
    elif isinstance(value, list):
        for item in value:
            found |= _numbers_of(item)
    elif isinstance(value, str):
        found |= set(re.findall(r"\d+(?:\.\d+)?", value))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found |= set(re.findall(r"\d+(?:\.\d+)?", json.dumps(value)))
        found |= {f"{value * scale:.{digits}f}" for scale in scales for digits in range(5)}
    return found


def test_every_number_in_a_table_is_in_a_fact(folder):
    """Metadata too; the rows of one result are compared one by one above."""
    facts = read_facts(folder)
    known = _numbers_of(
        [facts.config, facts.generation, facts.supervised, facts.costs, facts.provenance["calibration"]]
    )
    known |= _numbers_of([facts.log["global_step"], facts.weights.parameters, facts.weights.bytes])
    for benchmark in facts.benchmarks:
        parts = ("environment", "arguments", "results", "summary", "bootstrap")
        known |= _numbers_of([benchmark.path, *(benchmark.results[part] for part in parts)])
        for method in benchmark.results["arguments"]["methods"]:
            rows = [row for row in benchmark.rows if row["method"] == method]
            known |= _numbers_of(sum(row["lossless_float32_prompts"] for row in rows))
    card = ModelCard(write_card(folder).read_text())
    cells = [cell for table in _tables(card.text) for row in table for cell in row]
    cells += [str(result.metric_value) for result in card.data.eval_results]
    cells = [re.sub(r"EAGLE-3|v\(\d\)|`[0-9a-f]{64}`", "", cell) for cell in cells]
    written = {number for cell in cells for number in re.findall(r"\d+(?:\.\d+)?", cell)}
    assert len(written) > 100
    assert written - known == set()


def test_the_template_holds_no_figures():
    text = TEMPLATE.read_text(encoding="utf-8")
    body, citation = text.split("## Citation")
    assert re.findall(r"\d+", re.sub(r"float32|output\[0\]|--speculative-eagle-topk 1 ", "", body)) == []
    assert set(re.findall(r"\d{4}\.\d{5}", citation)) == {"2605.14978", "2503.01840"}


def test_costs_sizes_and_training_settings(folder):
    text = write_card(folder).read_text()
    tables = _tables(text)
    costs = next(t for t in tables if t[0][0] == "machine")
    entries = json.loads((folder / "cost_model.json").read_text())["entries"].values()
    assert [row[3] for row in costs[1:]] == [f"{entry['gamma']:.3f}" for entry in entries]
    assert [row[-1] for row in costs[1:]] == [f"{1000 * entry['target_step_seconds']:.1f} ms" for entry in entries]
    settings = dict(row for t in tables if t[0] == ["setting", "value"] for row in t[1:])
    training = json.loads((folder / "provenance.json").read_text())["training"]
    for name in ("learning_rate", "ttt_steps", "step_loss_decay", "num_train_epochs"):
        assert settings[f"`{name}`"] == str(training[name])
    assert "`output_dir`" not in settings and "`hub_token`" not in settings
    drafter = tiny_eagle3(tiny_target(), 40)
    parameters = sum(p.numel() for p in drafter.parameters())
    facts = read_facts(folder)
    assert facts.weights.parameters == parameters and facts.weights.dtype == "float32"
    assert facts.weights.bytes == os.path.getsize(folder / "model.safetensors")


# ---- metadata ------------------------------------------------------------------------------------------------------


def test_metadata_is_what_the_hub_reads(folder):
    write_remote_code(folder)
    path = write_card(folder, repo_id="someone/my-drafter")
    raw = yaml.safe_load(path.read_text().split("---\n")[1])
    assert raw["base_model"] == TARGET and raw["library_name"] == "transformers"
    assert raw["pipeline_tag"] == "text-generation" and "datasets" not in raw
    assert raw["license"] == json.loads((folder / "provenance.json").read_text())["license"]
    assert {"speculative-decoding", "assisted-generation", "ppow", "eagle3", "custom_generate"} == set(raw["tags"])
    name, found = model_index_to_eval_results(raw["model-index"])
    assert name == "my-drafter"
    rows = [r for f in folder.rglob("results.json") for r in json.loads(f.read_text())["results"]]
    rows = [row for row in rows if row["method"] == read_facts(folder).own_method]
    assert rows
    for metric in ("acceptance_length", "speedup", "lossless_float32"):
        values = sorted(result.metric_value for result in found if result.metric_type == metric)
        assert values == sorted(row[metric] for row in rows)
    gsm8k = next(result for result in found if result.dataset_name == "gsm8k")
    assert (gsm8k.dataset_type, gsm8k.dataset_config, gsm8k.dataset_split) == ("openai/gsm8k", "main", "test")
    text = path.read_text()
    assert 'custom_generate="someone/my-drafter"' in text and "OWNER/" not in text


def test_licences_datasets_and_carbon_come_from_the_provenance(folder):
    def change(provenance):
        provenance |= {"license": "apache-2.0", "target_license": "apache-2.0 (target)", "target_revision": "abc123"}
        provenance["responses"][0] |= {"license": "mit", "sources": {"openai/gsm8k::question": 5, "mine.jsonl": 2}}
        provenance["co2_eq_emissions"] = {"emissions": 12.5, "source": "codecarbon"}

    _edit(folder / "provenance.json", change)
    card = ModelCard(write_card(folder).read_text())
    assert card.data.license == "apache-2.0" and card.data.datasets == ["openai/gsm8k"]
    assert card.data.to_dict()["co2_eq_emissions"] == {"emissions": 12.5, "source": "codecarbon"}
    assert "Target `HuggingFaceTB/SmolLM2-135M-Instruct`: apache-2.0 (target)" in card.text
    assert "Training data: mit" in card.text and "revision abc123" in card.text and "12.5 g CO2" in card.text


def test_the_ppow_stage_is_told_only_where_it_was_run(folder):
    assert "Not run, or not recorded." in write_card(folder).read_text()
    supervised = json.loads((folder / "provenance.json").read_text())
    supervised["responses"] = [entry for entry in supervised["responses"] if "imported_from" in entry]
    ppow = {
        "stage": "ppow",
        "training": {
            "group_size": 8,
            "cost_ratio": "measured",
            "learning_rate": 5e-06,
            "metric_for_best_model": "tau",
        },
        "best": {"step": 40, "metric": 2.3456},
        "responses": [*supervised["responses"], {"imported_from": "more.jsonl", "rows": 17}],
    }
    (folder / "provenance.json").write_text(json.dumps(ppow | {"started_from": supervised}))
    text = write_card(folder).read_text()
    assert "Not run, or not recorded." not in text and "| `group_size` | 8 |" in text
    assert "| `cost_ratio` | measured |" in text and "| `learning_rate` | 5e-06 |" in text
    assert f"| `ttt_steps` | {supervised['training']['ttt_steps']} |" in text
    assert "| Training stages | supervised, with PPOW's window reward in closed form, PPOW |" in text
    assert "| best `tau` during training, at step 40 | 2.346 |" in text
    data = next(table for table in _tables(text) if table[0][0] == "source")
    assert [row[:2] for row in data[1:]] == [["`smollm2_responses.jsonl`", "7758"], ["`more.jsonl`", "17"]]


def test_runs_of_one_stage_are_told_together(folder):
    """Of a drafter trained in several runs the last is shown, and their times are added up."""
    last = json.loads((folder / "provenance.json").read_text())
    # Counted over all sessions; the last of them had nothing left to do.
    last["result"], last["cost"] = {"train_runtime": 0.5}, {"seconds": 100.0}
    last["arguments"] = {**last.get("arguments", {}), "drafter": "runs/before", "initialization": "target"}
    before = {"stage": "supervised", "training": {"window_reward_weight": 1.0}, "result": {"train_runtime": 20.5}}
    first = {"stage": "supervised", "training": {}, "result": {"train_runtime": 3.0}}
    last.pop("started_from", None)
    (folder / "provenance.json").write_text(json.dumps(last | {"continued_from": before | {"continued_from": first}}))
    text = write_card(folder).read_text()
    assert "| what is shown | the last of 3 runs, each from the one before (`provenance.json`) |" in text
    assert "Supervised stage: 124 seconds in 3 runs" in text and "| initialization |" not in text
    assert "supervised, with PPOW's window reward in closed form |" in text
    assert "trained on PPOW's expected reward in closed form (weight 1)." in text
    assert "was not trained on windows" not in text


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, "Training on windows: not recorded."),
        ({"stage": "supervised"}, "Training on windows: not recorded."),
        ({"stage": "supervised", "arguments": {"drafter": "runs/x"}}, "Training on windows: not recorded."),
        ({"stage": "supervised", "arguments": {"drafter": None}}, "No PPOW stage: this drafter was not trained on"),
        (
            {"stage": "supervised", "arguments": {"drafter": None}, "training": {"window_reward_weight": 1.0}},
            "No PPOW stage with rollouts: trained on PPOW's expected reward in closed form (weight 1).",
        ),
        (
            {"stage": "supervised", "training": {"window_reward_weight": 1.0}},
            "A PPOW stage with rollouts: not recorded; trained on PPOW's expected reward in closed form (weight 1).",
        ),
        ({"stage": "ppow"}, None),
        ({"stage": "supervised", "started_from": {"stage": "ppow"}}, None),
    ],
)
def test_that_there_was_no_ppow_stage_is_said_only_where_all_stages_are_recorded(bare, tmp_path, record, said):
    shutil.copytree(bare, tmp_path / "bare")
    for step in (record, {"stage": "supervised", "arguments": {"drafter": "x"}, "continued_from": record}):
        (tmp_path / "bare" / "provenance.json").write_text(json.dumps(step))
        text = write_card(tmp_path / "bare").read_text()
        assert said is None or f"- {said}" in text
        assert ("No PPOW stage" in text) == (said is not None and said.startswith("No PPOW"))
        assert ("windows: not recorded" in text) == (said is not None and said.startswith("Training on"))


def test_the_log_is_that_of_the_last_run(bare, tmp_path):
    """Also where that one was supervised and the one before was not."""
    shutil.copytree(bare, tmp_path / "bare")
    (tmp_path / "bare" / "training_log.json").write_text('{"global_step": 77}')
    before = {"stage": "ppow", "training": {"seed": 1}}
    last = {"stage": "supervised", "training": {"seed": 2}, "started_from": before}
    (tmp_path / "bare" / "provenance.json").write_text(json.dumps(last))
    stages = write_card(tmp_path / "bare").read_text().split("### Supervised stage")[1]
    supervised, ppow = stages.split("### PPOW stage")
    assert "| optimiser steps | 77 |" in supervised and "optimiser steps" not in ppow


# ---- what is missing -----------------------------------------------------------------------------------------------


def test_what_was_not_measured_is_said(bare, tmp_path):
    shutil.copytree(bare, tmp_path / "bare")
    text = write_card(tmp_path / "bare").read_text()
    for sentence in (
        "Acceptance length, speedup and losslessness: not measured.",
        "gamma: not measured.",
        "Training data: not recorded.",
        "Carbon: not measured",
        "Training time: not measured",
        "This drafter: not recorded",
        "Training on windows: not recorded.",
    ):
        assert sentence in text
    assert "eval_results" not in text and "model-index" not in text and "custom_generate" not in text
    sections = text.split("## Results")[1].split("## Citation")[0].replace("float32", "")
    assert re.search(r"\d", sections.replace(TARGET, "")) is None


def test_a_card_without_results_is_pointed_out(bare, folder, tmp_path, caplog):
    shutil.copytree(bare, tmp_path / "bare")
    complete_folder(tmp_path / "bare", "org/bare")
    assert f"`{tmp_path / 'bare'}` has no benchmarks/results.json" in caplog.text and "ppow bench" in caplog.text
    caplog.clear()
    complete_folder(folder, "org/whole")
    assert caplog.text == ""


def test_causal_drafters_and_targets_without_a_repository(tmp_path):
    drafter = tiny_causal_drafter(tiny_target())
    drafter.config.target_name_or_path = "a-local-target"
    drafter.save_pretrained(tmp_path)
    card = ModelCard(write_card(tmp_path).read_text())
    assert card.data.base_model is None and "eagle3" not in card.data.tags
    assert '"method": "draft_model"' in card.text and "STANDALONE" in card.text
    assert "causal language model, 2 layer(s)" in card.text


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_results_of_another_drafter_or_target(folder):
    own = fingerprint(tiny_eagle3(tiny_target(), 40))
    _edit(folder / RESULTS, lambda results: results.update(drafter_hash=own))
    write_card(folder)
    before = (folder / "README.md").read_bytes()
    _edit(folder / RESULTS, lambda results: results.update(drafter_hash="0" * 16))
    with pytest.raises(ValueError, match="another drafter .hash 0000000000000000"):
        write_card(folder)
    _edit(folder / RESULTS, lambda results: results.pop("drafter_hash"))
    _edit(folder / RESULTS, lambda results: results["arguments"].update(target="org/another"))
    with pytest.raises(ValueError, match="measured with the target `org/another`"):
        write_card(folder)
    assert (folder / "README.md").read_bytes() == before


def test_unreadable_folders(folder, tmp_path):
    with pytest.raises(OSError, match="holds no config.json"):
        write_card(tmp_path / "nowhere")
    _edit(folder / "config.json", lambda config: config.update(model_type="llama"))
    with pytest.raises(ValueError, match="no drafter of this library"):
        write_card(folder)
    _edit(folder / "config.json", lambda config: config.update(model_type="ppow_eagle3"))
    text = (folder / RESULTS).read_text()
    (folder / RESULTS).write_text(text[:1000])
    with pytest.raises(OSError, match="truncated or not JSON"):
        write_card(folder)
    (folder / RESULTS).write_text('{"results": []}')
    with pytest.raises(OSError, match="not written by `ppow bench`"):
        write_card(folder)
    (folder / RESULTS).write_text(text)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(OSError, match="truncated or damaged"):
        write_card(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="holds no weights"):
        write_card(folder)
    assert not (folder / "README.md").exists() and not list(folder.glob(".*"))


def test_paths_of_the_machine_stay_there(folder):
    home = "/home/someone/secret"
    _edit(folder / "provenance.json", lambda p: p["training"].update(my_setting=f"{home}/file.txt"))
    _edit(folder / "provenance.json", lambda p: p["responses"][0].update(sources={f"{home}/prompts.jsonl::q": 3}))
    text = write_card(folder).read_text()
    assert home not in text and "| `my_setting` | file.txt |" in text and "`prompts.jsonl::q`" in text
    _edit(folder / "provenance.json", lambda p: p.update(notes=[f"The data were in {home}/data."]))
    with pytest.raises(ValueError, match="paths of this machine: /home/someone/secret"):
        write_card(folder)
    assert machine_paths("see https://huggingface.co/org/name, [a](benchmarks/report.md), and/or/not, 1/2") == []
    assert machine_paths("`/tmp/x/y` (~/runs/z) C:\\Users\\me") == ["/tmp/x/y", "~/runs/z", "C:\\Users\\me"]
    assert [public_text(t) for t in ("/a/b.json", "~/c", "org/name", "C:\\a\\b", 3)] == [
        "b.json",
        "c",
        "org/name",
        "b",
        "3",
    ]


def test_repository_names(folder):
    with pytest.raises(HFValidationError):
        write_card(folder, repo_id="not a name")
    assert not (folder / "README.md").exists()
    assert is_repo_id("org/name") and not any(map(is_repo_id, ("name", "a/b/c", "a b/c", "../x")))


def test_a_card_that_would_read_back_differently_is_refused(folder):
    card = ModelCard(write_card(folder).read_text())
    check_card(str(card), card.data)
    data = card.data
    text = str(card)
    data.tags = [*data.tags, "more"]
    with pytest.raises(ValueError, match="does not survive being written as YAML: tags"):
        check_card(text, data)


def test_writing_again_changes_nothing_and_a_crash_leaves_the_old_card(folder, monkeypatch):
    path = write_card(folder)
    stamp = path.stat().st_mtime_ns
    write_card(folder)
    assert path.stat().st_mtime_ns == stamp
    before = path.read_bytes()
    _edit(folder / RESULTS, lambda results: results["arguments"].update(seed=99))

    def fails(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_card(folder)
    assert path.read_bytes() == before and not list(folder.glob(".README*"))


@pytest.mark.parametrize(
    ("window", "method"),
    [
        ({"policy": "divergence"}, "divergence"),
        ({"policy": "cost_aware", "proposals": "drafter", "tree": None}, "cost_aware"),
        ({"policy": "cost_aware", "proposals": "mixed"}, "mixed"),
        ({"policy": "cost_aware", "tree": {"max_nodes": 8}}, "tree"),
        ({"policy": "cost_aware", "proposals": "mixed", "tree": {"max_nodes": 8}}, "mixed_tree"),
        (None, None),
    ],
)
def test_the_drafters_own_window_is_found_in_a_benchmark(tmp_path, window, method):
    facts = CardFacts(tmp_path, {}, {"window": window}, weights=None)
    assert facts.own_method == method


@pytest.mark.parametrize(
    ("options", "engines"),
    [
        ({}, ["vLLM", "SGLang"]),
        ({"num_hidden_layers": 2}, ["vLLM"]),
        ({"norm_before_residual": True}, ["vLLM"]),
    ],
)
def test_only_engines_that_an_export_is_made_for_are_named(tmp_path, options, engines):
    target = tiny_target(num_hidden_layers=8)
    target.config._name_or_path = "org/tiny-target"
    drafter = tiny_eagle3(target, aux_layer_ids=engine_default(target.config.num_hidden_layers), **options)
    drafter.save_pretrained(tmp_path / "tiny")
    text = write_card(tmp_path / "tiny").read_text()
    for name in ("vLLM", "SGLang"):
        assert (f"### {name}" in text) == (name in engines), name
    assert f"Speed in {' and '.join(engines)}: not measured." in text
    for name in engines:
        export_drafter(tmp_path / "tiny", tmp_path / name, name.lower())


def test_an_edited_card_is_known():
    text = f"# A card\n\n{_mark('# A card' + chr(10))}\n"
    assert is_as_written(text)
    assert not is_as_written(text.replace("A card\n", "My card\n")) and not is_as_written("# A card\n")
