# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from ppow_hf import AutoDrafter, CostModel, LookupDrafter, WindowConfig
from ppow_hf.generation import (
    WINDOW_POLICIES,
    call_checks,
    fit_calibration,
    install_hook,
    uninstall_hook,
    use_window,
    window_config,
)
from ppow_hf.generation.policies import Outcome, make_policy
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target


def test_round_trip():
    window = WindowConfig(policy="divergence", size=3, max_size=7, calibration={"greedy": [0.0] * 6})
    assert WindowConfig.from_dict(json.loads(json.dumps(window.to_dict()))) == window


def test_saved_in_the_generation_config(tmp_path):
    config = GenerationConfig()
    config.window = WindowConfig(policy="fixed", size=4)
    config.save_pretrained(tmp_path)
    loaded = GenerationConfig.from_pretrained(tmp_path)
    assert WindowConfig.coerce(loaded.window) == config.window


def test_saved_with_the_drafter(tmp_path):
    drafter = tiny_causal_drafter(tiny_target("llama"))
    drafter.generation_config.window = WindowConfig(policy="heuristic", size=6)
    drafter.save_pretrained(tmp_path)
    assert type(drafter).from_pretrained(tmp_path).generation_config.window == WindowConfig("heuristic", 6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fixed:5", {"policy": "fixed", "size": 5}),
        ("fixed:20", {"policy": "fixed", "size": 20, "max_size": 20}),
        ("heuristic", {"policy": "heuristic"}),
        ("divergence:3", {"policy": "divergence", "size": 3}),
        ("confidence:0.6", {"policy": "confidence", "threshold": 0.6}),
        ("cost_aware:8", {"policy": "cost_aware", "max_size": 8}),
        (" cost_aware ", {"policy": "cost_aware"}),
    ],
)
def test_parse(text, expected):
    window = WindowConfig.parse(text)
    assert {name: getattr(window, name) for name in expected} == expected
    assert window == WindowConfig(**expected)


def test_parse_keeps_the_other_fields_of_its_base():
    base = WindowConfig(policy="cost_aware", max_size=6, initial_rate=2.0, calibration={"greedy": [0.0] * 6})
    window = WindowConfig.parse("cost_aware", base)
    assert window == base and window is not base
    assert WindowConfig.parse("fixed:3", base).calibration == base.calibration


def test_naming_a_policy_asks_for_the_drafters_own_proposals(prompt):
    assert WindowConfig.parse("fixed:5", WindowConfig(proposals="lookup")).proposals == "drafter"
    target = tiny_target("llama")
    drafter, lookup = tiny_causal_drafter(target), LookupDrafter.from_target(target)
    drafter.generation_config.window = WindowConfig(proposals="lookup")
    options = {"max_new_tokens": 12, "do_sample": False}
    # Its own are those of its model; those of a drafter without a model are lookup's.
    for assistant, proposals in ((drafter, "drafter"), (lookup, "lookup")):
        target.generate(prompt, assistant_model=assistant, window="fixed:3", **options)
        assert assistant.last_trace.window["proposals"] == proposals
        with use_window(assistant, "fixed:3"):
            target.generate(prompt, assistant_model=assistant, **options)
        assert assistant.last_trace.window["proposals"] == proposals and assistant.last_trace.window["size"] == 3


FRESH = {
    "eagle3": tiny_eagle3,
    "causal": tiny_causal_drafter,
    "lookup": LookupDrafter.from_target,
    "constructor": lambda target: type(tiny_eagle3(target))(tiny_eagle3(target).config),
}


@pytest.mark.parametrize("kind", FRESH)
@pytest.mark.parametrize("hooked", [True, False])
def test_every_drafter_has_a_window(kind, hooked, tmp_path):
    try:
        if not hooked:
            uninstall_hook()
        drafter = FRESH[kind](tiny_target("llama"))
        window = drafter.generation_config.window
        assert window == WindowConfig(proposals="lookup" if kind == "lookup" else "drafter")
        drafter.save_pretrained(tmp_path)
        assert AutoDrafter.from_pretrained(tmp_path).generation_config.window == window
        # Saved before drafters had one, or by other code: the same default, and nothing else is lost.
        path = tmp_path / "generation_config.json"
        stored = json.loads(path.read_text())
        del stored["window"]
        path.write_text(json.dumps(stored | {"temperature": 0.5}))
        loaded = AutoDrafter.from_pretrained(tmp_path).generation_config
        assert loaded.window == window and type(loaded.window) is WindowConfig and loaded.temperature == 0.5
        path.unlink()
        assert AutoDrafter.from_pretrained(tmp_path).generation_config.window == window
    finally:
        install_hook()


def test_no_two_drafters_share_a_window():
    target = tiny_target("llama")
    first, second = tiny_causal_drafter(target), tiny_causal_drafter(target)
    first.generation_config.window.size = 9
    assert second.generation_config.window == WindowConfig()


def test_a_calibration_is_set_as_documented(prompt, store_costs):
    """The example of `fit_calibration`, on a drafter fresh from its target."""
    target = tiny_target("llama")
    drafter = tiny_eagle3(target)
    store_costs(target, drafter)
    target.generate(prompt, assistant_model=drafter, max_new_tokens=20)
    records = drafter.last_trace.calibration_records()
    drafter.generation_config.window.calibration = {"greedy": fit_calibration(records)}
    target.generate(prompt, assistant_model=drafter, max_new_tokens=20)
    assert drafter.last_trace.window["calibration"] == {"greedy": fit_calibration(records)}


def test_coerce():
    base = WindowConfig(policy="fixed", size=2, calibration={"greedy": [1.0] * 6})
    assert WindowConfig.coerce(None) == WindowConfig()
    assert WindowConfig.coerce(None, base) is base
    assert WindowConfig.coerce({"policy": "heuristic"}) == WindowConfig("heuristic")
    assert WindowConfig.coerce(WindowConfig("heuristic"), base).calibration == base.calibration
    own = WindowConfig("heuristic", calibration={"greedy": [2.0] * 6})
    assert WindowConfig.coerce(own, base) is own


def test_limit():
    assert WindowConfig("fixed", size=20).limit == 20
    assert WindowConfig("confidence", size=20, max_size=9).limit == 9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("size", 2.5),
        ("size", True),
        ("min_size", -1),
        ("max_size", 0),
        ("threshold", -0.1),
        ("threshold", float("nan")),
        ("threshold", "high"),
        ("grow", -1),
        ("shrink", -1),
        ("divergence_metric", "js"),
        ("divergence_decay", 1.0),
        ("stretch", 0.0),
        ("online_calibration", 1),
        ("calibration", [1, 2]),
        ("calibration", torch.zeros(6)),
        ("calibration", {"Greedy": [0.0] * 6}),
        ("calibration", {"greedy": torch.zeros(6)}),
        ("calibration", {"greedy": np.zeros(6)}),
        ("calibration", {"greedy": [0.0] * 6, "sampling": [0.0] * 5}),
        ("calibration", {"sampling": [float("nan")] * 6}),
        ("initial_rate", 0.0),
        ("rate_memory", 0.0),
    ],
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(ValueError, match=rf"`(window\.)?{field}"):
        WindowConfig(**{field: value})


def test_unknown_policy_lists_the_known_ones():
    with pytest.raises(ValueError) as error:
        WindowConfig(policy="adaptive")
    assert all(policy in str(error.value) for policy in WINDOW_POLICIES)


@pytest.mark.parametrize("text", ["adaptive", "adaptive:5", "fixd:5"])
def test_an_unknown_text_lists_every_form(text):
    with pytest.raises(ValueError, match=f"Unknown window policy '{text.split(':')[0]}'") as error:
        WindowConfig.parse(text)
    known = str(error.value).split("Write one of: ")[1].split(" (")[0].split(", ")
    assert known == [*WINDOW_POLICIES, "lookup", "mixed", "tree", "mixed_tree"]
    assert all(isinstance(WindowConfig.parse(form), WindowConfig) for form in known)


@pytest.mark.parametrize("policy", ["cost_aware", "divergence", "confidence", "heuristic", "fixed"])
def test_only_cost_aware_windows_may_be_empty(policy, prompt, store_costs):
    """`min_size=0`, where nothing a drafter says is ever worth anything."""
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=1)
    store_costs(target, drafter, gamma=5.0, slope=0.9)
    window = WindowConfig(policy, size=1, min_size=0, threshold=1.0, stretch=0.001)
    target.generate(prompt, assistant_model=drafter, window=window, max_new_tokens=20, do_sample=False)
    drafted = {cycle.drafted for cycle in drafter.last_trace.cycles if cycle.stop != "length"}
    assert (0 in drafted) == (policy == "cost_aware") and drafted <= {0, 1}


def test_the_memory_of_the_rate_is_a_cost():
    """After `rate_memory` plain target steps' worth of cycles, dear ones as well as cheap, the prior is forgotten."""
    for overhead, cycles in ((0.0, 400), (99.0, 4)):
        policy = make_policy(WindowConfig(initial_rate=9.0, rate_memory=100.0), CostModel(0.0, overhead=overhead))
        for _ in range(cycles):
            policy.update(Outcome(drafted=4, accepted=0, committed=1, forwards=4))
        assert policy.rate == pytest.approx(1 / (1 + overhead), rel=0.2)


def test_per_call_window_replaces_the_stored_one(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    drafter.generation_config.window = WindowConfig("fixed", size=2)
    options = {"assistant_model": drafter, "max_new_tokens": 12, "do_sample": False}
    target.generate(prompt, **options)
    assert {c.drafted for c in drafter.last_trace.cycles[:-2]} == {2}
    for window in ("fixed:4", {"policy": "fixed", "size": 4}, WindowConfig("fixed", size=4)):
        target.generate(prompt, window=window, **options)
        assert drafter.last_trace.cycles[0].drafted == 4
    with use_window(drafter, "fixed:3"):
        target.generate(prompt, **options)
        assert drafter.last_trace.cycles[0].drafted == 3
    target.generate(prompt, **options)
    assert drafter.last_trace.cycles[0].drafted == 2
    assert drafter.generation_config.window == WindowConfig("fixed", size=2)
    assert "window" not in target.generation_config.to_dict()


def test_window_in_a_generation_config_object(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    config = GenerationConfig(max_new_tokens=8, do_sample=False)
    config.window = "fixed:2"
    target.generate(prompt, generation_config=config, assistant_model=drafter)
    assert drafter.last_trace.window["size"] == 2


# ---- dicts of a few fields ------------------------------------------------------------------------------------------


def test_a_dict_without_a_policy_amends_the_drafters_own_window(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    own = WindowConfig(proposals="mixed", tree=True, lookup_size=9)
    drafter.generation_config.window = own
    target.generate(prompt, assistant_model=drafter, window={"carry_over": True}, max_new_tokens=6, do_sample=False)
    assert WindowConfig.from_dict(drafter.last_trace.window) == replace(own, carry_over=True)
    # One with a policy begins anew, and so does one that is stored.
    assert WindowConfig.coerce({"policy": "fixed"}, own) == WindowConfig("fixed")
    assert WindowConfig.coerce({"max_size": 3}) == WindowConfig(max_size=3)
    with pytest.raises(ValueError, match="tree"):
        WindowConfig.coerce({"tree": 7}, own)


@pytest.mark.parametrize(
    ("given", "unread"),
    [
        ({"size": 2}, ["size"]),
        ({"policy": "fixed", "max_size": 2, "size": 3}, ["max_size"]),
        ({"policy": "confidence", "grow": 3, "rate_memory": 9.0}, ["grow", "rate_memory"]),
        ({"policy": "fixed", "tree": True, "size": 3}, ["size"]),
        ({"max_size": 2}, []),
        ({"policy": "fixed", "size": 2}, []),
        (WindowConfig().to_dict(), []),
    ],
)
def test_fields_that_say_nothing_are_pointed_out(given, unread, monkeypatch):
    said = []
    monkeypatch.setattr(window_config.logger, "warning_once", said.append)
    WindowConfig.coerce(given, WindowConfig())
    assert len(said) == bool(unread)
    assert all(f"`{name}`" in said[0] for name in unread)
    assert not said or not any(f"`{name}`" in said[0] for name in given.keys() - set(unread))


@pytest.mark.parametrize(
    ("asked", "instead"),
    [({"num_assistant_tokens": 3}, "fixed:3"), ({"assistant_confidence_threshold": 0.7}, "confidence:0.7")],
)
@pytest.mark.parametrize("where", ["call", "drafter"])
def test_what_other_assistants_read_is_pointed_out(prompt, asked, instead, where, monkeypatch):
    """The default values, which transformers fills in, mean nothing: this fails where it changes them."""
    said = []
    monkeypatch.setattr(call_checks.logger, "warning_once", said.append)
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    options = {"assistant_model": drafter, "max_new_tokens": 4, "do_sample": False}
    target.generate(prompt, **options)
    assert said == []
    if where == "call":
        options |= asked
    else:
        drafter.generation_config.update(**asked)
    target.generate(prompt, **options)
    assert len(said) == 1 and next(iter(asked)) in said[0] and instead in said[0]
    WindowConfig.coerce(instead)
