# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Methods: names, what cannot run, and what they leave behind."""

import re

import pytest
import torch

from ppow_hf import LookupDrafter
from ppow_hf.evaluation import METHOD_NAMES, MethodError, parse_method, parse_methods
from ppow_hf.evaluation.measure import PassCounter, measure_generation
from ppow_hf.evaluation.methods import ASSISTANT_OPTIONS, check_methods, load_assistant, resolve_assistant
from ppow_hf.generation import WindowConfig
from tests.evaluation.bench_utils import tiny_models
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

PROMPT = torch.tensor([[5, 9, 12, 9, 12, 9, 12, 7]])


def test_plain_is_always_there_and_nothing_twice():
    names = [method.name for method in parse_methods(["fixed:3", "cost_aware", "fixed:3", "target"])]
    assert names == ["target", "fixed:3", "cost_aware"]
    assert [m.name for m in parse_methods("prompt_lookup, fixed:2")] == ["target", "prompt_lookup", "fixed:2"]


@pytest.mark.parametrize("name", [re.sub(":[KN]$", ":4", name) for name in METHOD_NAMES])
def test_every_listed_name_is_a_method(name):
    assert parse_method(name).name == name


def test_prompt_lookup_of_another_length():
    options = parse_method("prompt_lookup:3").options
    assert options == {**parse_method("prompt_lookup").options, "prompt_lookup_num_tokens": 3}
    target, _ = tiny_models()
    drafted = []
    for name in ("prompt_lookup:1", "prompt_lookup:5"):
        with PassCounter(target, PROMPT.shape[1]) as counter:
            measure_generation(parse_method(name), target, None, None, PROMPT, max_new_tokens=24)
        drafted.append(counter.drafted)
    assert 0 < drafted[0] < drafted[1]  # the prompt repeats itself


@pytest.mark.parametrize(
    "name",
    [
        "prompt_lookup:0",
        "fixed",
        "fixed:",
        "fixed:0",
        "fixed:-1",
        "fixed:2.5",
        "fixed:05",
        "tree:0",
        "tree:x",
        "mixed_tree:0",
        "eagle",
        "",
        5,
    ],
)
def test_bad_names_list_the_good_ones(name):
    with pytest.raises(MethodError) as caught:
        parse_method(name)
    assert re.search("(fixed|tree|lookup):", str(caught.value))


def test_no_methods():
    with pytest.raises(MethodError, match="`methods` is empty"):
        parse_methods([])


def test_what_cannot_run_names_the_method_and_the_remedy():
    target, eagle = tiny_models("eagle3")
    with pytest.raises(MethodError, match="'cost_aware'.*`--drafter"):
        check_methods(parse_methods(["cost_aware"]), target, None, None)
    with pytest.raises(MethodError, match="'fixed:2'.*CausalLMDrafter"):
        check_methods(parse_methods(["fixed:2"]), target, tiny_target(), None)
    assert resolve_assistant(eagle, None) is None
    with pytest.raises(MethodError, match="'hf_constant'.*Eagle3Drafter.*`--assistant"):
        check_methods(parse_methods(["hf_constant"]), target, eagle, resolve_assistant(eagle, None))
    with pytest.raises(MethodError, match="'hf_dynamic'.*causal LM that can generate"):
        check_methods(parse_methods(["hf_dynamic"]), target, None, eagle)
    with pytest.raises(MethodError, match="'hf_dynamic'.*64 token ids and the target 260"):
        check_methods(parse_methods(["hf_dynamic"]), target, None, tiny_target(vocab_size=64))
    other = tiny_target(vocab_size=260, seed=3)
    assert resolve_assistant(eagle, other) is other
    check_methods(parse_methods(["hf_dynamic", "cost_aware", "prompt_lookup"]), target, eagle, other)


@pytest.mark.parametrize("name", sorted(ASSISTANT_OPTIONS))
def test_assistant_settings_are_taken_back_even_after_an_error(name):
    _, drafter = tiny_models()
    assistant = resolve_assistant(drafter, None)
    assert assistant is drafter.model
    before = assistant.generation_config.to_dict()
    method = parse_method(name)
    with pytest.raises(RuntimeError), method.generate_kwargs(drafter, assistant):
        assert {key: getattr(assistant.generation_config, key) for key in method.options} == method.options
        raise RuntimeError
    assert assistant.generation_config.to_dict() == before


def test_windows_keep_what_the_drafter_brings():
    _, drafter = tiny_models()
    drafter.generation_config.window = WindowConfig(policy="cost_aware", max_size=7, size=4)
    with parse_method("divergence").generate_kwargs(drafter, None) as kwargs:
        assert kwargs["window"].to_dict() == WindowConfig(policy="divergence", max_size=7, size=4).to_dict()
    with parse_method("fixed:9").generate_kwargs(drafter, None) as kwargs:
        assert (kwargs["window"].policy, kwargs["window"].size) == ("fixed", 9)
    for name in ("lookup", "mixed"):
        with parse_method(name).generate_kwargs(drafter, None) as kwargs:
            assert kwargs["window"] == WindowConfig(policy="cost_aware", max_size=7, size=4, proposals=name)
    assert drafter.generation_config.window.policy == "cost_aware"


def test_every_method_is_the_drafters_window_changed_in_one_respect():
    """Whatever the drafter's own window is: `fixed:4` is its chain of four, and no prompt knows of the one before."""
    _, drafter = tiny_models()
    drafter.generation_config.window = WindowConfig(proposals="mixed", carry_over=True, max_size=7)
    for name in ("fixed:4", "cost_aware", "mixed"):
        with parse_method(name).generate_kwargs(drafter, None) as kwargs:
            window = kwargs["window"]
        assert window.proposals == ("mixed" if name == "mixed" else "drafter")
        assert window.max_size == 7 and not window.carry_over
    drafter.generation_config.window = WindowConfig(tree=True)
    with parse_method("lookup").generate_kwargs(drafter, None) as kwargs:
        assert kwargs["window"] == WindowConfig(proposals="lookup")
    drafter.generation_config.window = WindowConfig(tree={"max_nodes": 9, "branching": 2}, carry_over=True)
    for name, nodes in (("tree", 9), ("tree:5", 5), ("mixed_tree", 9), ("mixed_tree:5", 5)):
        with parse_method(name).generate_kwargs(drafter, None) as kwargs:
            window = kwargs["window"]
        assert window.proposals == ("mixed" if name.startswith("mixed") else "drafter")
        assert (window.tree.max_nodes, window.tree.branching, window.carry_over) == (nodes, 2, False)
    with parse_method("cost_aware").generate_kwargs(drafter, None) as kwargs:
        assert kwargs["window"].tree is None


@pytest.mark.parametrize(
    ("name", "chain"),
    [("fixed:3", True), ("divergence", True), ("mixed", False), ("tree", False), ("mixed_tree", False)],
)
def test_only_chains_have_a_predicted_speedup(name, chain):
    assert parse_method(name).is_chain == chain


@pytest.mark.parametrize("name", ["lookup", "mixed", "tree:6", "mixed_tree:6"])
@pytest.mark.parametrize("kind", ["causal", "eagle3", "none"])
def test_lookup_and_trees_write_the_same_text(name, kind, tmp_path, monkeypatch):
    if kind == "none" and "tree" in name:
        pytest.skip("lookup has no tree")
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path))
    target, drafter = tiny_models("causal" if kind == "none" else kind)
    if kind == "none":
        drafter = LookupDrafter.from_target(target)
    plain = measure_generation(parse_method("target"), target, None, None, PROMPT, max_new_tokens=20)
    run = measure_generation(parse_method(name), target, drafter, None, PROMPT, max_new_tokens=20)
    assert run.tokens == plain.tokens and run.committed == 19 and run.drafted > 0
    assert sum(run.phases.values()) == pytest.approx(run.seconds)


@pytest.mark.parametrize("kind", ["causal", "eagle3"])
def test_trace_agrees_with_counting_from_outside(kind):
    target, drafter = tiny_models(kind)
    with PassCounter(target, PROMPT.shape[1]) as counter:
        run = measure_generation(parse_method("fixed:3"), target, drafter, None, PROMPT, max_new_tokens=20)
    assert len(run.tokens) == 20
    assert run.verifications == counter.passes - 1  # the prefill verifies nothing
    assert run.committed == len(run.tokens) - 1
    assert run.drafted == counter.drafted
    assert sum(cycle[2] for cycle in run.cycles) == run.committed
    assert sum(run.phases.values()) == pytest.approx(run.seconds)


def test_counts_of_plain_and_of_transformers_own_assistants():
    target, drafter = tiny_models()
    plain = measure_generation(parse_method("target"), target, None, None, PROMPT, max_new_tokens=20)
    assert len(plain.tokens) == 20 and plain.verifications is None and plain.drafted is None
    assert plain.phases["draft"] is None and plain.phases["verify"] > 0
    run = measure_generation(parse_method("hf_constant"), target, drafter, drafter.model, PROMPT, max_new_tokens=20)
    assert run.tokens == plain.tokens
    assert run.committed == 20 and run.accepted == run.committed - run.verifications
    assert run.accepted <= run.drafted <= 5 * run.verifications
    # All windows have five tokens but those that the length budget cuts short.
    assert run.drafted >= 5 * (run.verifications - 5)
    # The target as its own assistant is always right: 20 tokens in four windows of five plus bonus.
    perfect = measure_generation(
        parse_method("hf_constant"), target, None, target_copy(target), PROMPT, max_new_tokens=20
    )
    assert perfect.tokens == plain.tokens
    assert perfect.accepted == perfect.drafted and perfect.verifications == 4


def target_copy(target):
    copy = tiny_target(vocab_size=260, max_position_embeddings=512)
    copy.load_state_dict(target.state_dict())
    return copy


def test_sampling_depends_on_the_seed_only():
    target, drafter = tiny_models()
    arguments = {"max_new_tokens": 16, "temperature": 1.0}
    for name in ("target", "fixed:3", "hf_constant", "prompt_lookup"):
        method = parse_method(name)
        runs = [
            measure_generation(method, target, drafter, drafter.model, PROMPT, seed=seed, **arguments).tokens
            for seed in (1, 1, 2)
        ]
        assert runs[0] == runs[1] != runs[2]


def test_hooks_are_gone_afterwards():
    target, drafter = tiny_models()
    measure_generation(parse_method("hf_constant"), target, drafter, drafter.model, PROMPT, max_new_tokens=4)
    for model in (target, drafter.model):
        assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize("wrapped", [True, False])
def test_an_assistant_comes_from_a_drafters_folder_or_a_causal_lms(tmp_path, wrapped):
    target = tiny_target()
    drafter = tiny_causal_drafter(target)
    (drafter if wrapped else drafter.model).save_pretrained(tmp_path)
    assistant = load_assistant(tmp_path, target)
    check_methods(parse_methods(["hf_dynamic"]), target, None, assistant)
    saved, loaded = drafter.model.state_dict(), assistant.state_dict()
    assert saved.keys() == loaded.keys() and all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_an_assistant_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match=r"`assistant` is .*nowhere.*There is no folder"):
        load_assistant(tmp_path / "nowhere", tiny_target())


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_truncated_assistant_is_refused(tmp_path, wrapped):
    drafter = tiny_causal_drafter(tiny_target())
    (drafter if wrapped else drafter.model).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(OSError, match=r"`assistant` is .*truncated or damaged"):
        load_assistant(tmp_path, tiny_target())


def test_an_assistant_with_missing_weights_is_refused(tmp_path):
    model = tiny_causal_drafter(tiny_target()).model
    weights = model.state_dict()
    del weights["model.norm.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"`assistant` is .*missing weights.*norm"):
        load_assistant(tmp_path, tiny_target())


def test_a_drafter_without_a_causal_lm_is_no_assistant(tmp_path):
    target = tiny_target()
    tiny_eagle3(target).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`assistant` is .*Eagle3Drafter, which is no causal LM.*hf_\*"):
        load_assistant(tmp_path, target)
