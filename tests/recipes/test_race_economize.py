# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The race against economize. What trains or decodes with economize is skipped where it is not installed."""

import argparse
import importlib
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from ppow_hf import WindowConfig
from ppow_hf.drafters import AutoDrafter, Eagle3Drafter
from ppow_hf.evaluation import Example
from ppow_hf.evaluation.records import RecordLog
from tests.evaluation.bench_utils import VOCAB_SIZE, byte_tokenizer
from tests.testing_utils import tiny_eagle3, tiny_target

RECIPE = Path(__file__).resolve().parents[2] / "trainers/recipes/smollm2"
sys.path.insert(0, str(RECIPE))
try:
    methods, race, report, training = map(
        importlib.import_module, ("economize_methods", "race_economize", "race_report", "economize_training")
    )
finally:
    sys.path.remove(str(RECIPE))


# --------------------------------------------------------------------------------------------------------------------
# Without economize
# --------------------------------------------------------------------------------------------------------------------


def test_peer_names():
    parsed = methods.parse_peer("jump+lookup:10@0.3")
    assert (parsed.name, parsed.technique, parsed.drafter) == ("economize/jump+lookup:10@0.3", "jump+lookup", "jump")
    assert (parsed.cycle_length, parsed.min_confidence) == (10, 0.3)
    assert methods.parse_peer("eagle3:4").min_confidence is None
    assert methods.parse_peer("lookup:5").drafter is None
    assert methods.parse_peer("plain").cycle_length == 1


@pytest.mark.parametrize(
    "name", ["medusa:4", "eagle3", "eagle3:1", "eagle3:4@0", "eagle3:4@1", "eagle3:4@0.3.1", "lookup:4@0.5", "plain:4"]
)
def test_peer_names_refused(name):
    with pytest.raises(ValueError, match="for example jump"):
        methods.parse_peer(name)


def test_loss_mask_is_that_of_the_next_token():
    ids = list(range(40))
    own = [0] * 10 + [1] * 12 + [0] * 8 + [1] * 10
    short, unlearnt = {"input_ids": ids[:23], "loss_mask": [1] * 23}, {"input_ids": ids, "loss_mask": [0] * 40}
    texts = training.texts_of([{"input_ids": ids, "loss_mask": own}, short, unlearnt], max_length=36)
    ((tokens, mask),) = texts
    assert tokens.tolist() == ids[:36]
    # Position t counts when token t + 1 is there and is the target's own.
    assert mask.tolist() == [int(t + 1 < 36 and own[t + 1]) for t in range(36)]


@pytest.mark.parametrize("field,value", [("technique", "medusa"), ("seconds", 0), ("max_length", 8)])
def test_training_settings_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` is"):
        training.PeerTraining(**{"technique": "eagle3", "seconds": 1.0, field: value})


def _record(suite, seconds):
    return {"suite": suite, "methods": {name: {"tokens": 10, "seconds": value} for name, value in seconds.items()}}


def test_head_to_head_by_hand():
    prompts = [
        _record("a", {"target": 8.0, "x/mixed": 2.0, "economize/p": 4.0, "economize/q": 8.0}),  # 4x, 2x, 1x
        _record("a", {"target": 8.0, "x/mixed": 4.0, "economize/p": 4.0, "economize/q": 8.0}),  # 2x, 2x, 1x
        _record("b", {"target": 9.0, "x/mixed": 3.0, "economize/p": 9.0, "economize/q": 2.0}),  # 3x, 1x, 4.5x
    ]
    names = ["target", "x/cost_aware", "x/mixed", "economize/p", "economize/q"]
    lines = {line["suite"]: line for line in report.head_to_head(prompts, ["a", "b"], names, "mixed")}
    assert lines["a"]["theirs"] == "economize/p" and lines["b"]["theirs"] == "economize/q"
    assert lines["a"]["ratio"] == pytest.approx(1.5) and lines["a"]["num_prompts"] == 2
    assert lines["b"]["ratio"] == pytest.approx(3 / 4.5) and lines["b"]["ratio_interval"] is None
    # Means over suites: ours (3 + 3) / 2, p (2 + 1) / 2, q (1 + 4.5) / 2.
    assert lines[None]["theirs"] == "economize/q"
    assert lines[None]["speedup"] == pytest.approx(3) and lines[None]["peer_speedup"] == pytest.approx(2.75)
    low, high = lines[None]["ratio_interval"]
    assert low < 3 / 2.75 < high
    assert report.head_to_head(prompts, ["a"], ["target", "x/mixed"], "mixed") == []


def test_evaluation_prompts_are_refused(tmp_path):
    suite = tmp_path / "suite.jsonl"
    suite.write_text('{"id": 1, "turns": ["How old is it?", "Why?"]}\n')
    seen = [[{"role": "system", "content": "s"}, {"role": "user", "content": "How old is it?"}]]
    with pytest.raises(ValueError, match="1 of its prompts are among the responses"):
        race.check_unseen(seen, [str(suite)])
    race.check_unseen([[{"role": "user", "content": "Other"}]], [str(suite)])


def test_own_training_adds_all_stages(tmp_path):
    stage = {"training": {"learning_rate": 0.1}, "result": {"train_runtime": 10.0, "train_steps_per_second": 2.0}}
    (tmp_path / "provenance.json").write_text(json.dumps({**stage, "continued_from": stage}))
    facts = race.own_training(str(tmp_path))
    assert (facts["seconds"], facts["steps"], facts["stages"], facts["learning_rate"]) == (20.0, 40, 2, None)


def test_command_line_errors(monkeypatch, capsys):
    for arguments, message in (
        (["bench", "--suite", "x.jsonl", "--peer", "medusa:3"], "Unknown method 'medusa:3'"),
        (["train", "--technique", "eagle3", "--responses", "r", "--output", "o"], "--seconds"),
    ):
        with pytest.raises(SystemExit):
            race.make_parser().parse_args(arguments)
        assert message in capsys.readouterr().err
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["race_economize.py", "bench", "--suite", "x.jsonl"])
    with pytest.raises(SystemExit, match="economize is not installed: `pip install"):
        race.main()


def test_our_entrants_run_without_economize(tmp_path):
    target, tokenizer = tiny_target(vocab_size=VOCAB_SIZE), byte_tokenizer()
    entrants = methods.entrants_of(target, {"own": tiny_eagle3(target)}, ["cost_aware", "fixed:2"], [], {})
    assert methods.RaceRunner(target, tokenizer, entrants, 8, 0, None, retries=2).retries == 2
    log = RecordLog(tmp_path / "records.jsonl", {})
    runner = methods.RaceRunner(target, tokenizer, entrants, 8, 0, log, progress=False)
    examples = [Example("1", "a", ("abcabc",)), Example("2", "b", ("abc",))]
    runner.run(examples, [0.0])
    names = ["target", "prompt_lookup", "own/cost_aware", "own/fixed:2"]
    assert [list(record["methods"]) for record in runner.prompts()] == [names, names]
    assert all(run["lossless"] for record in runner.prompts() for run in record["methods"].values())


# --------------------------------------------------------------------------------------------------------------------
# With economize
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def economize():
    return pytest.importorskip("economize")


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(4, VOCAB_SIZE, (length,), generator=generator).tolist() for length in range(26, 58)]
    return Dataset.from_list([{"input_ids": row, "loss_mask": [0] * 8 + [1] * (len(row) - 8)} for row in ids])


SETTINGS = {"batch_size": 4, "draft_vocab_size": 200, "save_steps": 2, "autocast": None}


def test_batches_end_with_the_clock_and_go_on_where_they_stopped(economize, rows):
    now = [0.0]
    make = lambda: training.TimedBatches(  # noqa: E731
        training.texts_of(rows, 64), 4, seconds=20.0, seed=3, clock=lambda: now[0]
    )
    whole, lengths = make(), []
    for _ in range(10):
        batch = whole.next_batch()
        lengths.append(batch.input_ids.tolist())
        now[0] += 2.0
    with pytest.raises(training.TimeUp):
        whole.next_batch()
    assert whole.steps == 10 and whole.spent == 20.0 and whole.epoch == 1  # 32 texts: 8 batches an epoch
    assert whole.factor(0.1, 0.25) == pytest.approx(0.25)
    first = make()
    for _ in range(4):
        first.next_batch()
        now[0] += 2.0
    state, rest = first.state_dict(), make()
    now[0] += 1000.0  # between two processes
    rest.load_state_dict(state)
    assert rest.spent == 8.0
    assert [rest.next_batch().input_ids.tolist() for _ in range(6)] == lengths[4:]


@pytest.mark.parametrize("technique", training.TECHNIQUES)
def test_training_resumes_and_decodes_losslessly(economize, rows, technique, tmp_path, monkeypatch):
    target, tokenizer = tiny_target(vocab_size=VOCAB_SIZE), byte_tokenizer()
    settings = training.PeerTraining(technique, seconds=1.0, **SETTINGS)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    real = training.TimedBatches.next_batch

    def killed(batches):
        if batches.steps == 5:
            raise KeyboardInterrupt
        return real(batches)

    monkeypatch.setattr(training.TimedBatches, "next_batch", killed)
    # A clock that goes on by 10 ms whenever it is read, so that the number of steps does not depend on the machine.
    clock = itertools.count(0, 0.01).__next__
    with pytest.raises(KeyboardInterrupt):
        training.train_peer(target, tokenizer, rows, settings, tmp_path / "run", {}, clock)
    with pytest.raises(ValueError, match="holds no finished drafter"):
        training.read_record(tmp_path / "run")
    monkeypatch.undo()
    training.train_peer(target, tokenizer, rows, settings, tmp_path / "run", {}, clock)
    record = training.read_record(tmp_path / "run")
    assert 20 < record["steps"] < 60 and 1.0 <= record["trained_seconds"] < 1.1
    assert [entry["step"] for entry in record["log"]] == list(range(0, record["steps"], 5))
    torch.manual_seed(settings.seed)
    fresh = economize.apply(target, training.technique_config(settings, 4)).techniques[technique].state_dict()
    trained = economize.read_checkpoint(record["folder"]).states[technique]
    assert not [key for key in fresh if fresh[key].dim() == 2 and torch.equal(fresh[key], trained[key])]
    assert len(set(record["draft_token_ids"])) == 200
    # A finished run is not trained again, and other settings are refused.
    training.train_peer(target, tokenizer, rows, settings, tmp_path / "run", {})
    assert training.read_record(tmp_path / "run") == record
    with pytest.raises(ValueError, match="seconds: 1.0 then, 2.0 now"):
        other = training.PeerTraining(technique, seconds=2.0, **SETTINGS)
        training.train_peer(target, tokenizer, rows, other, tmp_path / "run", {})
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())

    ids = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7]])
    plain = target.generate(ids, max_new_tokens=24, do_sample=False)[0, 8:].tolist()
    for name in ("plain", "lookup:6", f"{technique}:4", f"{technique}:5@0.2", f"{technique}+lookup:6@0.2"):
        method = methods.parse_peer(name)
        model = methods.build_peer(target, method, {technique: record})
        if method.drafter:
            # The trained weights are in place, wherever the wrappers hold them.
            held = model.techniques.state_dict()
            for key, value in trained.items():
                (inside,) = (held[name] for name in held if name.endswith(f".{key}"))
                assert torch.equal(inside, value)
        run = methods.measure_peer(model, method, ids, 24, [])
        assert run.tokens == plain
        if name != "plain":
            assert run.committed == 23 == run.accepted + run.verifications
            assert run.drafted >= run.accepted
    with pytest.raises(ValueError, match="trained for a target with other weights"):
        method = methods.parse_peer(f"{technique}:4")
        methods.build_peer(tiny_target(vocab_size=VOCAB_SIZE, seed=1), method, {technique: record})
    with pytest.raises(ValueError, match=f"pass `--{technique} FOLDER`"):
        methods.build_peer(target, methods.parse_peer(f"{technique}:4"), {})


def test_bench_end_to_end(economize, rows, tmp_path):
    target, tokenizer = tiny_target(vocab_size=VOCAB_SIZE), byte_tokenizer()
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    tiny_eagle3(target).save_pretrained(tmp_path / "own")
    assert isinstance(AutoDrafter.from_pretrained(tmp_path / "own"), Eagle3Drafter)
    settings = training.PeerTraining("eagle3", seconds=0.3, **SETTINGS)
    training.train_peer(target, tokenizer, rows, settings, tmp_path / "eagle3", {})
    suite = tmp_path / "suite.jsonl"
    suite.write_text(
        "\n".join(json.dumps({"id": i, "suite": "ab"[i % 2], "turns": ["abcabc" * (i + 1)]}) for i in range(4))
    )
    arguments = ["bench", "--suite", str(suite), "--target", str(tmp_path / "target"), "--max_new_tokens", "12"]
    arguments += ["--drafter", f"own={tmp_path / 'own'}", "--method", "cost_aware", "--method", "mixed"]
    arguments += ["--champion", "mixed", "--retries", "0"]
    arguments += ["--eagle3", str(tmp_path / "eagle3"), "--output", str(tmp_path / "out")]
    for peer in ("plain", "lookup:5", "eagle3:4", "eagle3+lookup:5@0.2"):
        arguments += ["--peer", peer]
    args: argparse.Namespace = race.make_parser().parse_args(arguments)
    args.run(args)
    results = json.loads((tmp_path / "out/results.json").read_text())
    names = ["target", "prompt_lookup", "own/cost_aware", "own/mixed"]
    names += [f"economize/{peer}" for peer in ("plain", "lookup:5", "eagle3:4", "eagle3+lookup:5@0.2")]
    assert results["arguments"]["methods"] == names
    assert all(row["lossless"] == 1.0 and row["new_tokens"] == 24 for row in results["results"])
    assert {line["suite"] for line in results["race"]} == {"a", "b", None}
    facts = results["training"]["economize eagle3"]
    assert facts["seconds"] >= 0.3 and facts["learning_rate"] == 1e-4  # economize's own
    text = (tmp_path / "out/report.md").read_text()
    assert "## Head to head" in text and "economize/eagle3+lookup:5@0.2" in text and str(tmp_path) not in text
    assert (tmp_path / "out/race.png").stat().st_size > 10_000
    # The same command again decodes nothing anew; another one is refused.
    records = (tmp_path / "out/records.jsonl").read_text()
    args.run(args)
    assert (tmp_path / "out/records.jsonl").read_text() == records
    with pytest.raises(ValueError, match="`--champion mixd` is not among the methods cost_aware, mixed"):
        args.run(argparse.Namespace(**{**vars(args), "champion": "mixd"}))
    assert results["disturbed"]["runs"] <= results["disturbed"]["of"] <= 4 * len(names)
    drafter = AutoDrafter.from_pretrained(tmp_path / "own")
    drafter.generation_config.window = WindowConfig("fixed", size=2)
    drafter.save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="settings"):
        args.run(args)
    tiny_eagle3(target).save_pretrained(tmp_path / "own")
    args.max_new_tokens = 13
    with pytest.raises(ValueError, match="max_new_tokens: 12 then, 13 now"):
        args.run(args)
