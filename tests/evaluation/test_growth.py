# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How cost grows: prompts of exact length, memory of known sizes, figures by hand, the whole run on tiny models."""

import json
import re
import time

import pytest
import torch
from PIL import Image

from ppow_hf import WindowConfig
from ppow_hf.evaluation import MethodError, ResumeError, growth
from ppow_hf.evaluation.growth import measure_growth
from ppow_hf.evaluation.growth_measure import growth_methods, measure_call, measure_memory
from ppow_hf.evaluation.growth_prompts import prompts_of_lengths
from ppow_hf.evaluation.growth_report import render_growth_report
from ppow_hf.evaluation.growth_rows import growth_exponents, growth_rows
from ppow_hf.evaluation.memory import PeakMemory, cache_bytes, parameter_bytes
from tests.evaluation.bench_utils import byte_tokenizer, tiny_models
from tests.testing_utils import tiny_eagle3, tiny_target

TEXTS = [f"text number {i} speaks of {'abcdefghij'[i % 10] * (i % 7 + 1)} and {i * i}" for i in range(40)]
PREFIX, SUFFIX = "<user>", "<end><assistant>"


def text_of(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(ids)).replace("Ġ", " ").replace("Ċ", "\n")


# ---- prompts -------------------------------------------------------------------------------------------------------


def test_prompts_are_exact_and_end_alike():
    tokenizer = byte_tokenizer()
    prompts = prompts_of_lengths(tokenizer, TEXTS, [40, 64, 200], 3, seed=1)
    assert [sorted(prompt) for prompt in prompts] == [[40, 64, 200]] * 3
    whole = []
    for prompt in prompts:
        texts = {length: text_of(tokenizer, ids) for length, ids in prompt.items()}
        assert all(len(ids) == length for length, ids in prompt.items())
        assert all(text.startswith(PREFIX) and text.endswith(SUFFIX) for text in texts.values())
        body = {length: text[len(PREFIX) : -len(SUFFIX)] for length, text in texts.items()}
        assert body[200].endswith(body[64]) and body[64].endswith(body[40])
        parts = body[200].split("\n\n")
        assert parts[-1] == "" and all(part in TEXTS for part in parts[1:-1]) and len(parts) > 4
        whole += parts[1:-1]
    assert len(set(whole)) == len(whole)  # nothing twice, within a prompt or across
    again = prompts_of_lengths(tokenizer, [*TEXTS, *TEXTS], [40, 64, 200], 3, seed=1)
    assert again == prompts != prompts_of_lengths(tokenizer, TEXTS, [40, 64, 200], 3, seed=2)


def test_prompts_without_a_template_and_refusals():
    tokenizer = byte_tokenizer(chat_template=None)
    [prompt] = prompts_of_lengths(tokenizer, TEXTS, [50], 1)
    assert len(prompt[50]) == 50 and "text number" in text_of(tokenizer, prompt[50])
    tokenizer = byte_tokenizer()
    with pytest.raises(ValueError, match="tokens of text, but 2 different prompts of 900 tokens need"):
        prompts_of_lengths(tokenizer, TEXTS, [900], 2)
    with pytest.raises(ValueError, match="`lengths` holds 10, but the chat template alone takes"):
        prompts_of_lengths(tokenizer, TEXTS, [10, 60], 1)


# ---- memory --------------------------------------------------------------------------------------------------------


def test_peak_memory_sees_what_was_freed_again():
    with PeakMemory(torch.device("cpu")) as first:
        block = torch.ones(64 * 2**20, dtype=torch.uint8)
        del block
    with PeakMemory(torch.device("cpu")) as second:
        torch.ones(2**20, dtype=torch.uint8)
    if first.bytes is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert 60 * 2**20 < first.bytes < 90 * 2**20
    assert second.bytes < 30 * 2**20  # the earlier peak is forgotten


def test_bytes_of_caches_and_models():
    target = tiny_target(num_hidden_layers=3)
    cache = target(torch.ones(1, 10, dtype=torch.long), use_cache=True).past_key_values
    assert cache_bytes(cache) == 3 * 2 * (2 * 8) * 10 * 4  # layers, keys and values, 2 heads of 8, 10 tokens, float32
    layer = torch.nn.Linear(4, 3)
    tied = torch.nn.ModuleList([layer, torch.nn.Linear(4, 3, bias=False)])
    tied[1].weight = layer.weight
    assert parameter_bytes(tied) == (12 + 3) * 4


@pytest.mark.parametrize("kind", ["causal", "eagle3"])
def test_memory_of_a_call(kind):
    target, drafter = tiny_models(kind)
    ids = torch.randint(4, 200, (1, 20))
    per_token = 4 * 2 * (2 * 8) * 4
    plain, fixed = growth_methods(["fixed:3"])
    held = measure_memory(plain, target, drafter, None, ids, 8, 0)
    assert held["cache"] == 27 * per_token and held["state"] == 0  # the last token is not run
    held = measure_memory(fixed, target, drafter, None, ids, 8, 0)
    assert held["cache"] == 27 * per_token
    columns = held["state"] // per_token
    assert 0 < held["state"] and (kind == "eagle3" or columns >= 10)
    assert "new_state" not in drafter.__dict__ and drafter.new_state().committed == 0


# ---- one call ------------------------------------------------------------------------------------------------------


def test_a_call_has_its_length_and_times_its_first_token(monkeypatch):
    target, drafter = tiny_models("eagle3")
    target.generation_config.eos_token_id = list(range(4, 200))  # without more ado, the first token would be the last
    ids = torch.randint(4, 200, (1, 30))
    slow = target.forward

    def forward(*args, **kwargs):
        inputs = kwargs.get("input_ids", args[0] if args else None)
        time.sleep(0.3 if inputs.shape[1] >= 30 else 0.02)
        return slow(*args, **kwargs)

    methods = growth_methods(["stored", "fixed:2", "prompt_lookup"])
    measure_call(methods[1], target, drafter, None, ids, 9, 0)  # measures the costs it needs
    monkeypatch.setattr(target, "forward", forward)
    for method in methods:
        found = measure_call(method, target, drafter, None, ids, 9, 0)
        passes = {"target": 8, "prompt_lookup": (found["verifications"] or 1) - 1}.get(
            method.name, found["verifications"]
        )
        # The slow pass over the prompt comes before the first token, and all the others behind it.
        assert found["tokens"] == 9 and found["first_seconds"] > 0.3
        assert found["seconds"] - found["first_seconds"] > 0.02 * passes - 0.001
        assert (found["cycle"] is not None) == (method.kind == "window")
        if method.kind == "window":
            assert found["first_tokens"] == 1 and found["committed"] == 8
            assert found["cycle"]["verify"] > 0.02 and found["prompt_draft"] > 0
        if method.name == "target":
            assert found["ended"] and found["verifications"] is None
    assert target.generation_config.eos_token_id == list(range(4, 200))


def test_stored_is_the_drafters_own_window():
    target, drafter = tiny_models("eagle3")
    drafter.generation_config.window = WindowConfig(policy="fixed", size=4, carry_over=True)
    method = growth_methods(["stored", "stored"])[1]
    assert [m.name for m in growth_methods(["stored", "target", "fixed:2"])] == ["target", "stored", "fixed:2"]
    measure_call(method, target, drafter, None, torch.randint(4, 200, (1, 12)), 8, 0)
    assert drafter.last_trace.window["size"] == 4 and drafter.last_trace.window["carry_over"] is False


# ---- figures -------------------------------------------------------------------------------------------------------


def call(seconds, first, tokens=11, first_tokens=1, **more):
    cycle = more.pop("cycle", None)
    values = dict.fromkeys(("verifications", "committed", "drafted", "accepted", "prompt_draft")) | more
    return (
        {"tokens": tokens, "seconds": seconds, "first_seconds": first, "first_tokens": first_tokens}
        | values
        | {"cycle": cycle}
    )


def records_by_hand(length, verify):
    ours = {"verifications": 4, "committed": 10, "drafted": 12, "accepted": 6, "prompt_draft": 0.25}
    records = []
    for repeat, pace in enumerate((1.0, 2.0, 9.0)):
        cycle = {"draft": 0.1 * pace, "verify": verify * pace, "other": 0.1 * pace}
        methods = {
            "stored": call(1.0 + 4 * pace, 1.0, **ours, cycle=cycle),
            "target": {**call(1.0 + 10 * pace, 1.0), "ended": repeat == 1},
        }
        records.append({"kind": "time", "repeat": repeat, "part": "length", "length": length, "methods": methods})
    held = {"target": {"peak": 10, "cache": 5, "state": 0}, "stored": {"peak": None, "cache": 5, "state": 3}}
    records.append({"kind": "memory", "repeat": 0, "part": "length", "length": length, "methods": held})
    return records


def test_rows_by_hand():
    plain, stored = growth_rows(records_by_hand(64, 0.3))
    assert (plain["method"], plain["ended"], plain["repeats"]) == ("target", 1, 3)
    # Behind the first token: 10 tokens in 10, 20 and 90 seconds; ours in 4, 8 and 36.
    assert plain["tokens_per_second"] == pytest.approx(0.5) and stored["tokens_per_second"] == pytest.approx(1.25)
    assert stored["speedup"] == pytest.approx(2.5) and plain["speedup"] == 1.0
    assert stored["speedup_call"] == pytest.approx(21 / 9)
    assert (stored["acceptance_length"], stored["mean_window"]) == (2.5, 3.0)
    assert stored["cycle"] == pytest.approx({"draft": 0.2, "verify": 0.6, "other": 0.2})
    assert stored["draft_share"] == pytest.approx(0.2) and plain["cycle"] is None
    assert (stored["peak_bytes"], stored["cache_bytes"], stored["state_bytes"]) == (None, 5, 3)


def test_a_text_that_comes_at_once_has_no_rate():
    """All of it with the first pass, in two of three repeats, then in all."""
    records = [r for length in (64, 128) for r in records_by_hand(length, 0.3)]
    runs = [record["methods"]["stored"] for record in records if record["kind"] == "time" and record["length"] == 128]
    for run in runs[:2]:
        run["first_tokens"] = run["tokens"]
    assert growth_rows(records)[-1]["tokens_per_second"] == pytest.approx(10 / 36)
    runs[2]["first_tokens"] = runs[2]["tokens"]
    rows = growth_rows(records)
    assert (rows[-1]["tokens_per_second"], rows[-1]["speedup"]) == (None, None) and rows[-1]["speedup_call"] > 0
    quantities = {entry["quantity"] for entry in growth_exponents(rows) if entry["method"] == "stored"}
    assert "token" not in quantities and "verify" in quantities


def test_exponents_by_hand():
    records = [r for i, length in enumerate((8, 64, 128, 256)) for r in records_by_hand(length, 0.3 * 4**i)]
    found = {(e["method"], e["quantity"]): e for e in growth_exponents(growth_rows(records))}
    # Four times the verification whenever the length doubles: quadratic, over the three longest.
    assert found["stored", "verify"]["exponent"] == pytest.approx(2.0)
    assert found["stored", "verify"]["lengths"] == [64, 256]
    assert found["stored", "draft"]["exponent"] == pytest.approx(0.0, abs=1e-12)
    assert ("stored", "peak") not in found and ("target", "verify") not in found
    assert growth_exponents(growth_rows(records_by_hand(8, 1.0))) == []


# ---- the whole run -------------------------------------------------------------------------------------------------

SETTINGS = {
    "methods": ["prompt_lookup", "stored", "fixed:2"],
    "lengths": [48, 96],
    "windows": [1, 3],
    "window_length": 48,
    "new_tokens": 10,
    "repeats": 2,
    "progress": False,
    "target_name": "tiny/target",
    "drafter_name": "tiny/drafter",
}


def run(output, models=None, texts=TEXTS, **overrides):
    target, drafter = models or tiny_models("eagle3")
    return measure_growth(target, byte_tokenizer(), drafter, texts, output, **(SETTINGS | overrides))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growth")
    return folder, run(folder)


def test_files(full):
    folder, results = full
    assert json.loads((folder / "growth.json").read_text()) == results
    assert sorted(path.name for path in folder.iterdir()) == [
        "growth.json",
        "growth.md",
        "growth_length.png",
        "growth_records.jsonl",
        "growth_window.png",
    ]
    for name in ("growth_length.png", "growth_window.png"):
        assert Image.open(folder / name).size[0] > 800
    methods = {part: {r["method"] for r in results["rows"] if r["part"] == part} for part in ("length", "window")}
    assert methods["length"] == {"target", "prompt_lookup", "stored", "fixed:2"}
    assert methods["window"] == {"target", "fixed:1", "fixed:3"}
    rows = {(r["part"], r["length"], r["method"]): r for r in results["rows"]}
    assert len(rows) == 2 * 4 + 3
    # The caches hold what was run through the models, to the byte: all but the last token.
    per_token = 4 * 2 * (2 * 8) * 4
    for (_, length, method), row in rows.items():
        assert row["cache_bytes"] == (length + 10 - 1) * per_token
        assert (row["state_bytes"] > 0) == (method not in ("target", "prompt_lookup"))
    assert 2 < rows["window", 48, "fixed:3"]["mean_window"] <= 3
    assert rows["length", 96, "stored"]["first_seconds"] > 0


def test_report_holds_the_figures(full):
    _, results = full
    report = render_growth_report(results, ["growth_length.png", "growth_window.png"])
    for row in results["rows"]:
        assert f"{row['tokens_per_second']:.1f}" in report
    for entry in results["exponents"]:
        if entry["method"] in results["arguments"]["methods"]:
            assert f"{entry['exponent']:.2f}" in report
    table = re.search(r"Where a cycle's time goes.*?\n\n.*?\n\n(.*?)\n\n", report, re.S).group(1)
    assert len(table.splitlines()) == 2 + 2 * 2  # head, and our two methods at two lengths
    assert ".png" not in render_growth_report(results) and "None" not in report


def test_goes_on_where_it_stopped(full, tmp_path, monkeypatch):
    folder, results = full
    lines = (folder / "growth_records.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 3 + 3
    (tmp_path / "growth_records.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:30])
    seen = []
    append = growth.RecordLog.append
    monkeypatch.setattr(growth.RecordLog, "append", lambda self, record: seen.append(record) or append(self, record))
    again = run(tmp_path, plots=False)
    assert [(r["kind"], r["repeat"], r["part"], r["length"]) for r in seen] == [
        ("time", 1, "length", 96),
        ("time", 1, "window", 48),
        ("memory", 0, "length", 48),
        ("memory", 0, "length", 96),
        ("memory", 0, "window", 48),
    ]
    names = ("part", "length", "method", "acceptance_length", "mean_window", "cache_bytes", "state_bytes")
    assert [[r[n] for n in names] for r in again["rows"]] == [[r[n] for n in names] for r in results["rows"]]
    with pytest.raises(ResumeError, match="new_tokens"):
        run(tmp_path, new_tokens=11)


def test_refusals(tmp_path):
    models = tiny_models("eagle3")
    for overrides, words in (
        ({"lengths": [48, 510]}, "`lengths` asks for a prompt of 510 tokens.*512 positions. Give at most 502"),
        ({"window_length": 600}, "`window_length` asks for a prompt of 600"),
        ({"lengths": []}, "`lengths` must be whole numbers"),
        ({"windows": [0]}, "`windows` must be whole numbers"),
        ({"repeats": 0}, "`repeats` must be"),
        ({"texts": TEXTS[:2]}, "tokens of text, but 2 different prompts"),
    ):
        with pytest.raises(ValueError, match=words):
            run(tmp_path / "refused", models, **overrides)
    with pytest.raises(MethodError, match="needs a drafter"):
        run(tmp_path / "refused", (models[0], None))
    assert not (tmp_path / "refused").exists()


def test_without_a_drafter(tmp_path):
    results = run(tmp_path, (tiny_models()[0], None), methods=["target"], windows=[], repeats=1)
    assert results["parameters"]["drafter"] is None and len(results["rows"]) == 2
    assert not (tmp_path / "growth_window.png").exists() and "window size" not in (tmp_path / "growth.md").read_text()


def test_states_of_the_drafter_grow_with_the_text():
    target = tiny_target(max_position_embeddings=512)
    drafter = tiny_eagle3(target)
    method = growth_methods(["fixed:2"])[1]
    ids = torch.randint(2, 90, (1, 200))
    held = [measure_memory(method, target, drafter, None, ids[:, :n], 6, 0)["state"] for n in (50, 100, 200)]
    assert (held[2] - held[1]) == pytest.approx(2 * (held[1] - held[0]), rel=0.2) and held[1] > held[0]
