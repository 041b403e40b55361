# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The oracle line: its figures from the walks, its place in a benchmark's files, and what it refuses."""

import json

import pytest
import torch

from ppow_hf.evaluation import Example, SuiteError, render_report
from ppow_hf.evaluation import oracle as oracle_module
from ppow_hf.evaluation.oracle import add_oracle, oracle_rows
from ppow_hf.evaluation.replay import accepted_from_everywhere
from ppow_hf.generation import CostModel
from tests.evaluation.bench_utils import EXAMPLES, bench, byte_tokenizer, tiny_models

METHODS = ["target", "fixed:2", "confidence", "cost_aware"]


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture(scope="module")
def benchmark(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    before = bench(folder, models=models, methods=METHODS, temperatures=(0.0, 1.0), max_new_tokens=16, plots=True)
    picture = (folder / "speedup.png").read_bytes()
    after = add_oracle(folder, models[0], byte_tokenizer(), models[1], [EXAMPLES], max_size=4, progress=False)
    return folder, before, after, picture


def rows_of(results, **wanted):
    return [row for row in results["oracle"]["rows"] if row.items() >= wanted.items()]


def test_only_adds(benchmark):
    folder, before, after, picture = benchmark
    assert {name: value for name, value in after.items() if name != "oracle"} == before
    assert json.loads((folder / "results.json").read_text()) == after
    report = (folder / "report.md").read_text()
    assert report == render_report(after, {"speedup": "speedup.png", "window": "window.png"})
    assert "### Against the oracle window" in report and "oracle" not in render_report(before)
    assert report.index("oracle window") < report.index("sampling at temperature 1")
    assert (folder / "speedup.png").read_bytes() != picture


def test_figures_against_a_naive_computation(benchmark, models):
    _, before, after, _ = benchmark
    target, drafter = models
    costs = CostModel.from_dict(before["cost_model"])
    assert after["oracle"]["same_texts"] == {"same": len(EXAMPLES), "prompts": len(EXAMPLES)}
    tokenizer, speeds = byte_tokenizer(), {"short": [], "talk": []}
    for example in EXAMPLES:
        messages, committed, cost = [], 0, 0.0
        for turn in example.turns:
            messages.append({"role": "user", "content": turn})
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            text = target.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
            answer = tokenizer.decode(text[0, ids.shape[1] :], skip_special_tokens=True)
            messages.append({"role": "assistant", "content": answer})
            place = ids.shape[1] + 1
            while place < text.shape[1]:
                accepted = int(accepted_from_everywhere(target, drafter, text, place, 4)[0])
                size = min(accepted, text.shape[1] - place - 1)
                cost += size * costs.gamma + costs.verify(size) + costs.overhead
                committed += size + 1
                place += size + 1
        speeds[example.suite].append(committed / cost)
    for suite, values in speeds.items():
        [row] = rows_of(after, suite=suite, policy="oracle")
        assert row["speedup"] == pytest.approx(sum(values) / len(values))
        assert row["num_prompts"] == len(values) and row["measured"] is None
    [mean] = rows_of(after, suite=None, policy="oracle")
    assert mean["speedup"] == pytest.approx(sum(row["speedup"] for row in rows_of(after, policy="oracle")[:2]) / 2)


def test_rows_hold_together(benchmark):
    _, before, after, _ = benchmark
    policies = ["oracle", "cheapest", "confidence", "cost_aware", *(f"fixed:{k}" for k in range(1, 5))]
    for suite in ("short", "talk", None):
        rows = {row["policy"]: row for row in after["oracle"]["rows"] if row["suite"] == suite}
        assert list(rows) == policies
        assert all(row["speedup"] <= rows["cheapest"]["speedup"] + 1e-9 for row in rows.values())
        for row in rows.values():
            assert row["share_of_oracle"] == pytest.approx(row["speedup"] / rows["oracle"]["speedup"])
        # fixed:2 was decoded too: the same cycles, and its measured speed stands beside the modelled one.
        decoded = [
            row
            for row in before["results" if suite else "summary"]
            if row["temperature"] == 0 and row["method"] == "fixed:2" and row.get("suite") == suite
        ]
        assert rows["fixed:2"]["measured"] == decoded[0]["speedup"]
        assert rows["fixed:2"]["acceptance_length"] == pytest.approx(decoded[0]["acceptance_length"])
        assert rows["fixed:2"]["mean_window"] == pytest.approx(decoded[0]["mean_window"])


def records_by_hand():
    walks = [
        {"oracle": (8, 4, 4, 4, 4.0), "fixed:2": (8, 4, 8, 4, 5.0)},
        {"oracle": (6, 2, 4, 4, 2.0), "fixed:2": (6, 3, 6, 3, 4.0)},
        {"oracle": (0, 0, 0, 0, 0.0), "fixed:2": (0, 0, 0, 0, 0.0)},
    ]
    names = ("committed", "verifications", "drafted", "accepted", "cost")
    return [
        {"suite": "s", "walks": {policy: dict(zip(names, walk, strict=True)) for policy, walk in entry.items()}}
        for entry in walks
    ]


def results_by_hand(prefill=2.0):
    plain = {"suite": "s", "method": "target", "temperature": 0.0, "speedup": 1.0}
    plain["seconds"] = {"prefill": prefill, "draft": None, "verify": 7.0, "other": 1.0}
    fixed = {"suite": "s", "method": "fixed:2", "temperature": 0.0, "speedup": 1.4}
    sampled = {"suite": "s", "method": "fixed:2", "temperature": 1.0, "speedup": 9.0}
    arguments = {"suites": ["s"], "seed": 0}
    return {"arguments": arguments, "results": [plain, fixed, sampled], "summary": []}


def test_rows_by_hand():
    oracle, fixed = oracle_rows(records_by_hand(), results_by_hand())
    assert (oracle["num_prompts"], oracle["speedup"]) == (2, pytest.approx((2.0 + 3.0) / 2))
    assert (oracle["acceptance_length"], oracle["mean_window"]) == (pytest.approx(14 / 6), pytest.approx(8 / 6))
    # A fifth of plain decoding's time is the prompt's, which no window makes shorter.
    assert oracle["speedup_with_prompt"] == pytest.approx(1 / (0.2 + 0.8 / 2.5))
    assert fixed["speedup"] == pytest.approx((1.6 + 1.5) / 2)
    assert fixed["share_of_oracle"] == pytest.approx(1.55 / 2.5) and fixed["measured"] == 1.4
    assert oracle_rows(records_by_hand(), results_by_hand(prefill=None))[0]["speedup_with_prompt"] is None
    with pytest.raises(ValueError, match="longer than a token"):
        oracle_rows(records_by_hand()[2:], results_by_hand())


def test_goes_on_where_it_stopped(benchmark, models, monkeypatch):
    folder, _, after, _ = benchmark
    log = folder / "oracle.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    calls = []
    measure = oracle_module._replay
    monkeypatch.setattr(oracle_module, "_replay", lambda *args: calls.append(args[0].id) or measure(*args))
    again = add_oracle(folder, models[0], byte_tokenizer(), models[1], [EXAMPLES], max_size=4, progress=False)
    assert calls == [example.id for example in EXAMPLES[2:]]
    assert again == after


def test_refusals(benchmark, models, tmp_path):
    folder, _, _, _ = benchmark
    target, drafter = models
    with pytest.raises(FileNotFoundError, match="no results.json"):
        add_oracle(tmp_path, target, byte_tokenizer(), drafter, [EXAMPLES])
    with pytest.raises(SuiteError, match="give the same suites"):
        add_oracle(folder, target, byte_tokenizer(), drafter, [EXAMPLES[:3]])
    with pytest.raises(SuiteError, match="give the same suites"):
        add_oracle(folder, target, byte_tokenizer(), drafter, [[*EXAMPLES, Example("z", "other", ("hi",))]])
    with pytest.raises(ValueError, match="not the one of the benchmark"):
        add_oracle(folder, target, byte_tokenizer(), tiny_models("eagle3")[1], [EXAMPLES])
    sampled = tmp_path / "sampled"
    sampled.mkdir()
    (sampled / "results.json").write_text(json.dumps({"arguments": {"temperatures": [1.0]}}))
    with pytest.raises(ValueError, match="temperature 0"):
        add_oracle(sampled, target, byte_tokenizer(), drafter, [EXAMPLES])


def test_it_stays_when_the_finished_benchmark_is_started_again(tmp_path):
    models = tiny_models()
    options = {"models": models, "methods": METHODS, "max_new_tokens": 8}
    bench(tmp_path, **options, max_seconds=1e-9)
    with pytest.raises(SuiteError, match="not finished"):
        add_oracle(tmp_path, models[0], byte_tokenizer(), models[1], [EXAMPLES], max_size=3, progress=False)
    bench(tmp_path, **options)
    after = add_oracle(tmp_path, models[0], byte_tokenizer(), models[1], [EXAMPLES], max_size=3, progress=False)
    assert bench(tmp_path, **options)["oracle"] == after["oracle"]
    assert "oracle window" in (tmp_path / "report.md").read_text()


def test_windows_of_another_drafter_are_no_windows_of_this_one(tmp_path):
    target, drafter = tiny_models()
    other = tiny_models("eagle3")[1]
    methods = ["target", "cost_aware", "cost_aware@other", "fixed:2@other"]
    bench(tmp_path, models=(target, drafter), methods=methods, other_drafters={"other": other}, max_new_tokens=8)
    after = add_oracle(tmp_path, target, byte_tokenizer(), drafter, [EXAMPLES], max_size=3, progress=False)
    assert "cost_aware" in {row["policy"] for row in after["oracle"]["rows"]}
    assert not any("@" in row["policy"] for row in after["oracle"]["rows"])
