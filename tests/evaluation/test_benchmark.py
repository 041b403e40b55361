# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The whole benchmark on tiny models: all methods, the contract of its files, resuming, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from ppow_hf import WindowConfig
from ppow_hf.drafters import is_prepacked, prepacking
from ppow_hf.evaluation import Example, MethodError, ResumeError, SuiteError, runner
from ppow_hf.evaluation.lossless import check_lossless
from ppow_hf.evaluation.measure import measure_generation
from ppow_hf.evaluation.report import render_report
from ppow_hf.evaluation.runner import BenchmarkRunner
from tests.evaluation.bench_utils import EXAMPLES, TIMELESS, VOCAB_SIZE, bench, byte_tokenizer, tiny_models
from tests.testing_utils import tiny_causal_drafter, tiny_target

ALL_METHODS = [
    "target",
    "prompt_lookup",
    "hf_dynamic",
    "hf_heuristic",
    "hf_constant",
    "fixed:2",
    "fixed:4",
    "heuristic",
    "confidence",
    "divergence",
    "cost_aware",
]
OURS = [name for name in ALL_METHODS if name.split(":")[0] in ("fixed", "heuristic", "confidence", "divergence")]
OURS.append("cost_aware")
NUMBER = (int, float)
CONTRACT = {
    "suite": str,
    "method": str,
    "temperature": float,
    "dtype": str,
    "num_prompts": int,
    "new_tokens": int,
    "tokens_per_second": NUMBER,
    "speedup": NUMBER,
    "acceptance_length": NUMBER,
    "mean_window": NUMBER,
    "acceptance_rate": NUMBER,
    "verifications": int,
    "lossless": NUMBER,
    "seconds": dict,
    "predicted_speedup": NUMBER,
}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    results = bench(folder, methods=ALL_METHODS, temperatures=(0.0, 1.0), max_new_tokens=16, plots=True)
    return folder, results


def test_an_assistant_in_a_folder_beside_an_eagle3_drafter(tmp_path):
    target, drafter = tiny_models("eagle3")
    tiny_models("causal")[1].save_pretrained(tmp_path / "small")
    results = bench(
        tmp_path / "out", models=(target, drafter), methods=["hf_constant", "fixed:2"], assistant=tmp_path / "small"
    )
    assert results["arguments"]["assistant"] == "small"
    rows = rows_of(results, method="hf_constant")
    assert all(row["verifications"] and row["lossless"] == 1.0 and row["speedup"] for row in rows) and len(rows) == 2


def rows_of(results, **wanted):
    return [row for row in results["results"] if row.items() >= wanted.items()]


def timeless(results):
    return [{name: row[name] for name in TIMELESS} for row in results["results"]]


def test_results_follow_the_contract(full):
    folder, results = full
    assert json.loads((folder / "results.json").read_text()) == results
    assert {"environment", "arguments", "results"} <= results.keys()
    assert len(results["results"]) == 2 * 2 * len(ALL_METHODS)
    for row in results["results"]:
        assert list(row)[: len(CONTRACT)] == list(CONTRACT)
        assert list(row["seconds"]) == ["prefill", "draft", "verify", "other"]
        for name, kind in CONTRACT.items():
            assert row[name] is None or isinstance(row[name], kind), name
        plain, ours = row["method"] == "target", row["method"] in OURS
        for name in ("acceptance_length", "mean_window", "acceptance_rate", "verifications"):
            assert (row[name] is None) == plain or row["mean_window"] == 0
        assert (row["predicted_speedup"] is not None) == ours
        assert (row["lossless"] is None) == (row["temperature"] > 0)
        assert row["num_prompts"] == {"short": 3, "talk": 2}[row["suite"]]
        turns = {"short": 3, "talk": 3}[row["suite"]]
        assert row["new_tokens"] == turns * 16
        if not plain:
            assert 1.0 <= row["acceptance_length"] <= row["mean_window"] + 1
            assert 0.0 <= row["acceptance_rate"] <= 1.0
            low, high = row["acceptance_length_interval"]
            assert low <= row["acceptance_length"] <= high
        if ours:
            total = sum(row["seconds"].values())
            assert row["new_tokens"] / total == pytest.approx(row["tokens_per_second"])


def test_environment_names_no_host_or_path(full):
    folder, results = full
    text = (folder / "results.json").read_text()
    assert os.uname().nodename not in text and str(Path.home()) + "/" not in text and str(folder) not in text
    assert str(Path(__file__).parents[2]) not in text
    environment = results["environment"]
    assert environment["cpu"] and environment["cpu_cores"] >= 1 and environment["device"] == "cpu"
    assert environment["versions"]["torch"] and isinstance(environment["dtype_support"]["bfloat16"], bool)
    assert results["arguments"]["methods"] == ALL_METHODS and results["arguments"]["max_new_tokens"] == 16


def test_greedy_float32_is_lossless_for_every_method(full):
    _, results = full
    rows = rows_of(results, temperature=0.0)
    assert len(rows) == 2 * len(ALL_METHODS)
    for row in rows:
        assert row["lossless"] == row["lossless_float32"] == 1.0, row["method"]


def test_calibration_counts_the_reached_draft_tokens(full):
    _, results = full
    assert {row["method"] for row in results["calibration"]} == set(OURS)
    for row in results["calibration"]:
        for name in ("estimate", "confidence"):
            table = row[name]
            assert sum(entry["count"] for entry in table["bins"]) == row["draft_tokens"] > 0
            assert 0.0 <= table["brier"] <= 1.0
        mean = sum(b["count"] * (b["accepted"] or 0.0) for b in row["estimate"]["bins"]) / row["draft_tokens"]
        assert mean == pytest.approx(row["accepted"])


def test_summary_comparison_and_trace(full):
    _, results = full
    assert len(results["summary"]) == 2 * len(ALL_METHODS)
    ratios = {(line["temperature"], line["suite"]): line["ratio"] for line in results["comparison"]}
    assert set(ratios) == {(t, s) for t in (0.0, 1.0) for s in ("short", "talk", None)}
    fixed = max(row["speedup"] for row in rows_of(results, temperature=0.0, suite="talk") if "fixed" in row["method"])
    (own,) = rows_of(results, temperature=0.0, suite="talk", method="cost_aware")
    assert ratios[0.0, "talk"] == pytest.approx(own["speedup"] / fixed)
    trace = results["trace"]
    assert trace["adaptive"]["method"] == "cost_aware" and trace["fixed"]["method"] == "fixed:8"
    for part in (trace["adaptive"], trace["fixed"]):
        assert sum(cycle["committed"] for cycle in part["cycles"]) == 15  # the prefill gives the first of 16
    assert max(cycle["drafted"] for cycle in trace["fixed"]["cycles"]) == 8


def test_pictures_are_written(full):
    folder, _ = full
    for name in ("speedup.png", "window.png"):
        with Image.open(folder / name) as image:
            image.verify()
            assert image.width > 800 and image.height > 400
    assert not list(folder.glob(".*")) and not list(folder.glob("*.tmp"))


def test_repeating_a_finished_run_decodes_nothing_again(full):
    folder, results = full
    before = (folder / "records.jsonl").read_bytes()
    again = bench(folder, methods=ALL_METHODS, temperatures=(0.0, 1.0), max_new_tokens=16)
    assert again == results
    assert (folder / "records.jsonl").read_bytes() == before


RESUMED = {
    "methods": ["target", "prompt_lookup", "hf_heuristic", "fixed:3", "heuristic", "confidence", "divergence"],
    "temperatures": (0.0, 1.0),
}


def test_resume_from_every_point_equals_uninterrupted(tmp_path):
    models = tiny_models()
    whole = bench(tmp_path / "whole", models=models, **RESUMED)
    lines = (tmp_path / "whole" / "records.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (1, 4, 9, len(lines) - 1):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "records.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
        resumed = bench(folder, models=models, **RESUMED)
        assert timeless(resumed) == timeless(whole)
        texts = [
            {name: run["text_hash"] for name, run in record["methods"].items()}
            for path in (folder, tmp_path / "whole")
            for record in map(json.loads, (path / "records.jsonl").read_text().splitlines())
            if record["kind"] == "prompt"
        ]
        assert texts[: len(texts) // 2] == texts[len(texts) // 2 :]


@pytest.mark.slow
def test_resume_after_a_real_kill(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "import tests.conftest\n"
        "from tests.evaluation.bench_utils import bench\n"
        "from tests.evaluation.test_benchmark import RESUMED\n"
        "bench(Path(sys.argv[1]), **RESUMED)\n"
    )
    folder = tmp_path / "killed"
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=root)
    records = folder / "records.jsonl"
    try:
        while process.poll() is None and not (records.exists() and records.read_bytes().count(b"\n") >= 4):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it finished before it could be killed"
    assert not (folder / "results.json").exists()
    assert timeless(bench(folder, **RESUMED)) == timeless(bench(tmp_path / "whole", **RESUMED))


@pytest.mark.parametrize(
    "change, name",
    [
        ({"seed": 1}, "seed"),
        ({"max_new_tokens": 13}, "max_new_tokens"),
        ({"methods": ["target", "fixed:3"]}, "methods"),
        ({"suites": [EXAMPLES[:2]]}, "prompts_hash"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"kind": "eagle3"}, "drafter_hash"),
    ],
)
def test_other_arguments_in_the_same_folder_are_refused(small, change, name):
    before = (small / "results.json").read_bytes()
    with pytest.raises(ResumeError, match=f"{name}: .* then, .* now"):
        bench(small, **change)
    assert (small / "results.json").read_bytes() == before


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    bench(folder)
    return folder


@pytest.fixture
def calls(monkeypatch):
    """Every generation of a benchmark as (method, prompt, new tokens), in order; the real function runs."""
    seen = []

    def spy(method, target, drafter, assistant, input_ids, **kwargs):
        run = measure_generation(method, target, drafter, assistant, input_ids, **kwargs)
        if kwargs["max_new_tokens"] == 20:  # the warm-up is shorter
            seen.append((method.name, input_ids[0].tolist(), run.tokens))
        return run

    monkeypatch.setattr(runner, "measure_generation", spy)
    return seen


def test_history_is_plain_generates_and_the_order_rotates(tmp_path, calls):
    examples = [Example(str(i), "talk", ("hi", "more", "again")) for i in range(3)]
    # Sampling, so that the methods write different texts.
    bench(tmp_path, suites=[examples], methods=["fixed:2", "heuristic"], temperatures=[1.0], max_new_tokens=20)
    tokenizer = byte_tokenizer()
    assert len(calls) == 3 * 3 * 3 + 1 and calls[-1][0] == "fixed:8"  # the last one is for the picture
    for index in range(3):
        turns = [calls[9 * index + 3 * turn : 9 * index + 3 * turn + 3] for turn in range(3)]
        order = [["target", "fixed:2", "heuristic"][(index + place) % 3] for place in range(3)]
        for turn, group in enumerate(turns):
            assert [name for name, _, _ in group] == order
            assert all(prompt == group[0][1] for _, prompt, _ in group)
            texts = {name: tokenizer.decode(tokens, skip_special_tokens=True) for name, _, tokens in group}
            assert texts["target"] != texts["fixed:2"]
            if turn < 2:
                said = tokenizer("<assistant>" + texts["target"])["input_ids"]
                following = turns[turn + 1][0][1]
                assert any(following[i : i + len(said)] == said for i in range(len(following)))


def test_text_that_ends_early(tmp_path, calls):
    target, drafter = tiny_models()
    arguments = {"models": (target, drafter), "suites": [EXAMPLES[:3]], "max_new_tokens": 20}
    bench(tmp_path / "whole", methods=["target"], **arguments)
    outputs = [tokens for _, _, tokens in calls]
    # A token that shows up early, but not at once, becomes the end of the text.
    place, end = max((output.index(token), token) for output in outputs for token in output[:16])
    assert place >= 1
    target.generation_config.eos_token_id = end
    expected = sum(output.index(end) + 1 if end in output else len(output) for output in outputs)
    methods = ["fixed:4", "heuristic", "hf_constant", "prompt_lookup"]
    results = bench(tmp_path / "short", methods=methods, **arguments)
    assert expected < 60
    for row in results["results"]:
        assert row["new_tokens"] == expected and row["lossless"] == 1.0


def test_float32_check_of_a_bfloat16_run(tmp_path):
    target, drafter = tiny_models("eagle3")
    results = bench(tmp_path, models=(target, drafter), dtype="bfloat16", check_float32=2, methods=OURS)
    assert target.dtype == drafter.dtype
    assert {row["dtype"] for row in results["results"]} == {"bfloat16"}
    for row in results["results"]:
        assert row["lossless_float32"] == 1.0 and row["lossless_float32_prompts"] == 2
    whole = bench(tmp_path / "all", models=(target, drafter), dtype="bfloat16", check_float32="all")
    assert [row["lossless_float32_prompts"] for row in whole["results"]] == [3, 3, 3, 2, 2, 2]
    assert all(row["lossless_float32"] == 1.0 for row in whole["results"])
    unchecked = bench(tmp_path / "none", models=(target, drafter), dtype="bfloat16")
    assert all(row["lossless_float32"] is None for row in unchecked["results"])


def test_a_drafter_is_not_needed_without_windows(tmp_path):
    target, _ = tiny_models()
    results = bench(tmp_path, models=(target, None), drafter_name=None, methods=["prompt_lookup"])
    assert results["trace"] is None and results["calibration"] == [] and results["arguments"]["drafter"] is None


def test_without_a_chat_template(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.evaluation.bench_utils.byte_tokenizer", lambda: byte_tokenizer(chat_template=None))
    results = bench(tmp_path)
    assert results["arguments"]["chat_template"] is False
    assert "no chat template" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"methods": ["nonsense"]}, MethodError, "Unknown method 'nonsense'"),
        ({"methods": ["hf_dynamic"], "kind": "eagle3"}, MethodError, "`--assistant"),
        ({"suites": []}, SuiteError, "`suites` holds no examples"),
        ({"suites": [EXAMPLES, EXAMPLES[:1]]}, SuiteError, "comes twice"),
        ({"temperatures": [-0.5]}, ValueError, "`temperatures` must be"),
        ({"temperatures": []}, ValueError, "`temperatures` is empty"),
        ({"max_new_tokens": 0}, ValueError, "`max_new_tokens` must be"),
        ({"check_float32": -1}, ValueError, '`check_float32` must be.*or "all"'),
        ({"check_float32": "some"}, ValueError, "`check_float32` must be"),
        ({"dtype": "int4"}, ValueError, "`dtype` must be"),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        bench(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_a_prepacked_target_is_so_for_every_method_and_only_meanwhile(tmp_path, monkeypatch):
    if not prepacking.can_prepack(torch.nn.Linear(4, 4).bfloat16()):
        pytest.skip("this CPU does not multiply bfloat16 matrices")
    target, drafter = tiny_models()
    target.bfloat16(), drafter.bfloat16()
    methods = ["target", "fixed:3", "cost_aware"]
    seen = set()

    def noting(method, target, *args, **kwargs):
        seen.add((method.name, target.dtype, is_prepacked(target)))
        return measure_generation(method, target, *args, **kwargs)

    monkeypatch.setattr(runner, "measure_generation", noting)
    results = bench(tmp_path, models=(target, drafter), methods=methods, prepack=True, check_float32=1)
    expected = {(name, *how) for name in methods for how in ((torch.bfloat16, True), (torch.float32, False))}
    assert seen == expected | {("fixed:8", torch.bfloat16, True)}  # beside the picture's window
    assert not is_prepacked(target)
    assert results["arguments"]["prepack"] is True
    assert "bfloat16, prepacked on " in render_report(results)
    with pytest.raises(ResumeError):
        bench(tmp_path, models=(target, drafter), methods=methods, check_float32=1)


def test_a_run_does_not_go_on_with_another_window(tmp_path):
    target, drafter = tiny_models()
    bench(tmp_path, models=(target, drafter), max_seconds=1e-9)
    drafter.generation_config.window = WindowConfig(min_size=4, max_size=4)
    with pytest.raises(ResumeError, match="drafter_settings"):
        bench(tmp_path, models=(target, drafter))


def test_the_float32_check_keeps_to_what_is_measured_and_to_the_time(tmp_path):
    models = tiny_models()
    options = {"models": models, "dtype": "bfloat16", "check_float32": "all"}
    stopped = bench(tmp_path, **options, max_seconds=1e-9)
    assert stopped["measured"]["prompts"] == 2  # one of every suite
    assert all(row["lossless_float32_prompts"] == 0 for row in stopped["results"])
    done = bench(tmp_path, **options)
    assert sum(row["lossless_float32_prompts"] for row in done["results"]) == 3 * len(EXAMPLES)


def test_an_answer_of_one_token_leaves_a_whole_result(tmp_path):
    """It needs no verification, so that samples of such prompts alone have no acceptance length."""
    target, drafter = tiny_models()
    tokenizer = byte_tokenizer()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": EXAMPLES[0].turns[0]}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    first = int(target(ids).logits[0, -1].argmax())
    target.generation_config.eos_token_id = first
    results = bench(tmp_path, models=(target, drafter), suites=[EXAMPLES[:2]])
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    verifications = [r["methods"]["fixed:2"]["verifications"] for r in records if r["kind"] == "prompt"]
    assert 0 in verifications and max(verifications) > 0
    row = next(row for row in results["results"] if row["method"] == "fixed:2")
    assert row["acceptance_length"] >= 1 and row["acceptance_length_interval"] is None


@pytest.mark.parametrize("where", ["benchmark", "float32 check"])
def test_a_prompt_beyond_the_targets_positions_is_named_before_anything_is_decoded(tmp_path, where):
    target = tiny_target("gpt2", vocab_size=VOCAB_SIZE, n_positions=60)
    models = target, tiny_causal_drafter(target)
    examples = [Example("fits", "mine", ("abc",)), Example("long", "mine", ("a" * 60,))]
    message = r"Prompt 'long' of the suite 'mine' has \d+ tokens, and 12 new ones .* the target's 60 positions"
    with pytest.raises(SuiteError, match=message):
        if where == "benchmark":
            bench(tmp_path, models=models, suites=[examples])
        else:
            check_lossless(target, byte_tokenizer(), models[1], examples, ["fixed:2"], tmp_path, max_new_tokens=12)
    if where == "benchmark":
        bench(tmp_path / "one", models=models, suites=[examples[:1]])


def test_float32_texts_of_other_code_are_decoded_again(tmp_path, monkeypatch):
    models = tiny_models()
    options = {"models": models, "dtype": "bfloat16", "check_float32": 1}
    bench(tmp_path, **options)
    decoded = []
    run = BenchmarkRunner.run_example
    monkeypatch.setattr(BenchmarkRunner, "run_example", lambda *args: decoded.append(args[2]) or run(*args))
    bench(tmp_path, **options)
    assert decoded == []
    monkeypatch.setattr("ppow_hf.evaluation.runner.decoding_code", lambda: "another")
    bench(tmp_path, **options)
    assert decoded == [0.0, 0.0]  # a prompt of either suite
