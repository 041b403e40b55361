# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Decoding for the page: against plain `generate`, stopped in the middle, and the fixed window replayed."""

import json
import threading

import pytest
import torch
from ppow_demo import models as demo_models
from ppow_demo.engine import StopFlag
from ppow_demo.settings import DemoError, Settings

from ppow_hf import WindowConfig
from ppow_hf.console import chat_inputs
from tests.spaces.conftest import make_engine, slow_down

PROMPT = "Count to ten."


@pytest.mark.parametrize("policy", ["fixed", "cost_aware", "divergence"])
def test_race_gives_what_generate_gives(engine, policy):
    settings = Settings(max_new_tokens=40, policy=policy, size=4)
    *_, race = engine.race(PROMPT, settings)
    inputs = chat_inputs(engine.models.tokenizer, PROMPT)
    output = engine.models.target.generate(**inputs, max_new_tokens=40, do_sample=False)
    expected = output[0, inputs["input_ids"].shape[1] :].tolist()
    assert race.plain.tokens == expected and race.drafted.tokens == expected and race.difference is None
    assert race.plain.times == sorted(race.plain.times) and race.plain.times[-1] <= race.plain.seconds
    assert len(race.drafted.times) == len(race.drafted.own) == len(expected)
    shown = "".join(token.text for token in race.marked if token.kind != "rejected")
    assert shown == engine.decode_text(expected)
    assert race.window.policy == policy and race.window.divergence_metric == "kl"
    assert sum(row.accepted + row.own for row in race.rows) + 1 == len(expected)


def test_seeded_sampling_repeats_itself(engine):
    settings = Settings(temperature=1.0, max_new_tokens=24, seed=3)
    runs = []
    for _ in range(2):
        *_, race = engine.race(PROMPT, settings)
        runs.append((race.plain.tokens, race.drafted.tokens))
    assert runs[0] == runs[1]
    assert race.replayed is None  # a draw of its own: nothing to replay
    *_, other = engine.race(PROMPT, Settings(temperature=1.0, max_new_tokens=24, seed=4))
    assert other.plain.tokens != race.plain.tokens


@pytest.mark.parametrize("policy", ["fixed", "cost_aware"])
def test_replay_agrees_with_what_was_drafted(engine, policy):
    """Where a token was rejected, a longer window accepts the same; a replay of the window itself is the run."""
    settings = Settings(max_new_tokens=64, policy=policy, size=3, max_size=3, min_size=1)
    *_, race = engine.race(PROMPT, settings)
    assert any(0 < row.accepted for row in race.rows)  # or the test shows nothing
    for cycle, fixed in zip(race.drafted.trace["cycles"], race.replayed, strict=True):
        if cycle["accepted"] < cycle["drafted"]:
            assert fixed.accepted == cycle["accepted"]
        else:
            assert fixed.accepted >= cycle["accepted"]
        assert fixed.accepted <= fixed.drafted <= 8
    if policy == "fixed":
        inputs = engine.inputs(PROMPT, settings)
        again = engine.replay_fixed(engine.models.drafter(), inputs, race.drafted, settings.max_new_tokens, size=3)
        assert again == race.rows


def test_replay_of_a_fixed_run_of_eight(engine):
    """A run with the fixed window of 8 itself, to the end of the text."""
    settings = Settings(max_new_tokens=64, policy="fixed", size=8)
    *_, race = engine.race(PROMPT, settings)
    assert race.replayed == race.rows


def test_stop_ends_within_a_cycle_and_keeps_what_there_is():
    engine = make_engine()
    handle = slow_down(engine)
    stop = threading.Event()
    seen = 0
    for race in engine.race(PROMPT, Settings(max_new_tokens=200), stop.is_set):
        if race.drafted is not None and len(race.drafted.tokens) >= 4 and not seen:
            seen = len(race.drafted.tokens)
            stop.set()
    handle.remove()
    # The plain half was not stopped, the other one was.
    assert len(race.plain.tokens) == 200 and not race.plain.stopped
    assert race.drafted.stopped and seen <= len(race.drafted.tokens) < 100
    assert race.speedup is None and race.difference is None and race.marked


def test_leaving_ends_the_decoding(engine):
    """A page that is closed must not leave a decoding behind that shares the processor with the next visitor's."""
    handle = slow_down(engine)
    running = engine.race(PROMPT, Settings(max_new_tokens=200))
    next(running)
    running.close()
    handle.remove()
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())
    *_, race = engine.race(PROMPT, Settings(max_new_tokens=8))
    assert race.finished and len(race.plain.tokens) == 8


def test_failure_in_the_middle_is_raised_and_frees_the_engine(engine):
    def fail(module, args):
        raise RuntimeError("no luck")

    handle = engine.models.target.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no luck"):
        list(engine.race(PROMPT, Settings(max_new_tokens=8)))
    handle.remove()
    *_, race = engine.race(PROMPT, Settings(max_new_tokens=8))
    assert race.finished


def test_compare_runs_everything_there_is(engine):
    *_, rows = engine.compare(PROMPT, Settings(max_new_tokens=32))
    assert [row.name for row in rows] == ["Plain decoding", "Prompt lookup (no training)", "Initialisation: tiny"]
    assert rows[0].tokens == rows[1].tokens == rows[2].tokens
    lookup = rows[1]
    assert lookup.acceptance_length == pytest.approx((len(lookup.tokens) - 1) / lookup.verifications)
    assert lookup.verifications + lookup.drafted >= len(lookup.tokens) - 1


def test_compare_says_why_a_drafter_is_left_out(engine, tmp_path):
    entries = [*engine.models.entries, demo_models.DrafterEntry(str(tmp_path), "PPOW: broken", "ppow")]
    engine.models.entries, before = entries, engine.models.entries
    *_, rows = engine.compare(PROMPT, Settings(max_new_tokens=4))
    engine.models.entries = before
    label, reason = rows[-1]
    assert label == "PPOW: broken" and str(tmp_path) not in reason


def test_float32_check():
    engine = make_engine()
    engine.models.target.to(torch.bfloat16)
    engine.models.drafter().to(torch.bfloat16)
    *_, race = engine.race(PROMPT, Settings(max_new_tokens=24))
    assert race.dtype == "bfloat16"
    assert engine.check_float32(race) is True
    assert engine.models.target.dtype == torch.bfloat16


def test_long_prompts_are_refused_politely(engine):
    with pytest.raises(DemoError, match="long prompt.*shorten"):
        list(engine.race("word " * 400, Settings(max_new_tokens=16)))
    with pytest.raises(DemoError, match="empty"):
        list(engine.race("  ", Settings()))


def test_stop_flags_are_one_visitors_own(tmp_path):
    first, second = StopFlag(tmp_path, "../a"), StopFlag(tmp_path, "b")
    first.set()
    assert first.is_set() and not second.is_set()
    assert [path.parent for path in tmp_path.iterdir()] == [tmp_path]
    first.clear()
    first.clear()
    assert not first.is_set()


def test_drafters_are_found_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DRAFTERS_DIR", str(tmp_path))
    monkeypatch.delenv("DRAFTER_ID", raising=False)
    for name, stage in (("a-ppow", None), ("smollm2-135m-instruct-eagle3", "supervised"), ("no-weights", None)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        if name != "no-weights":
            (folder / "model.safetensors").write_bytes(b"")
        if stage:
            (folder / "provenance.json").write_text(json.dumps({"stage": stage}))
    found = demo_models.find_drafters()
    assert [entry.stage for entry in found] == ["initialisation", "ppow"]
    monkeypatch.setenv("DRAFTER_ID", "org/one, org/two-ppow")
    assert [entry.source for entry in demo_models.find_drafters()][:2] == ["org/one", "org/two-ppow"]
    monkeypatch.setenv("TARGET_ID", "org/target")
    assert demo_models.default_target() == "org/target"


def test_no_drafter_is_explained(engine):
    models = demo_models.Models(engine.models.target, engine.models.tokenizer, [])
    with pytest.raises(DemoError, match="DRAFTER_ID"):
        models.drafter()
    assert isinstance(Settings().window(WindowConfig()), WindowConfig)
