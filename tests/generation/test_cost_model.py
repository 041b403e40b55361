# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import copy
import functools
import json
import os
import shutil
import subprocess

import pytest
import torch
import transformers

from ppow_hf import AutoDrafter, CostModel, LookupDrafter, WindowConfig, prepack_weights, unpack_weights
from ppow_hf.generation import cost_measurement, stored_costs
from ppow_hf.generation.cost_measurement import _level_costs
from ppow_hf.generation.cost_model import isotonic
from ppow_hf.generation.stored_costs import cost_model_key, find_cost_model
from ppow_hf.generation.tree_config import TreeConfig
from ppow_hf.hub.push_files import select_files
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target


def test_worked_example():
    """Target step 150 ms, draft step 30 ms: 130 ms per accepted token, and about 53 ms."""
    cost_model = CostModel(gamma=30 / 150, target_step_seconds=0.150)
    assert cost_model.cost_per_accepted_token(accepted=3, window=8) == pytest.approx(0.130)
    assert cost_model.cost_per_accepted_token(accepted=6.5, window=6.5) == pytest.approx(0.053, abs=0.0005)
    # The same in plain target steps of 150 ms, of which the example's cycles take the time of tau.
    assert cost_model.speedup(acceptance_length=3, window=8) == pytest.approx(150 / 130)
    assert cost_model.speedup(acceptance_length=6.5, window=6.5) == pytest.approx(0.150 / 0.053, rel=0.01)


def test_speedup_and_cycle_cost():
    cost_model = CostModel(gamma=0.1, verify_curve=[1.0, 1.1, 1.3, 1.3], overhead=0.05)
    assert cost_model.cycle_cost(2) == pytest.approx(0.2 + 1.3 + 0.05)
    assert cost_model.speedup(acceptance_length=3, window=2) == pytest.approx(3 / 1.55)
    assert cost_model.cost_per_accepted_token(2, 0) == pytest.approx(1.05 / 2)  # in target steps: seconds unknown


def test_verify_interpolates_and_continues_the_last_slope():
    cost_model = CostModel(gamma=0.0, verify_curve=[1.0, 1.2, 1.6])
    assert cost_model.verify(0) == 1.0
    assert cost_model.verify(0.5) == pytest.approx(1.1)
    assert cost_model.verify(4) == pytest.approx(2.4)
    assert CostModel(gamma=0.0).verify(7) == 1.0


def test_a_flat_end_is_not_continued_as_if_it_were_free():
    """Entries stored with windows up to 16, whose end smoothing has made flat."""
    curve = [1.0, 1.07, 1.13, 1.49, 1.56, 1.66, 1.76, 1.82, 1.88, 1.95, 2.03, 2.11, 2.18, 2.18, 2.18, 2.18, 2.18]
    stored = {"gamma": 0.05, "verify_curve": curve, "overhead": 0.06, "target_step_seconds": 0.03, "key": "a machine"}
    cost_model = CostModel.from_dict(stored)
    assert cost_model.to_dict() == stored
    assert cost_model.verify(24) == pytest.approx(2.18 + 8 * (2.18 - 1.88) / 8)
    assert cost_model.verify(16.5) == pytest.approx(2.18 + 0.5 * (2.18 - 1.88) / 8)
    values = [cost_model.verify(n / 2) for n in range(200)]
    assert values == sorted(values) and len({cost_model.verify(n) for n in range(16, 64)}) == 48
    # A steep end goes on as it is, and what is flat throughout stays flat.
    assert CostModel(0.0, [1.0, 1.0, 1.0, 1.5]).verify(5) == pytest.approx(2.5)
    assert CostModel(0.0, [1.0] * 17).verify(40) == 1.0


def test_isotonic():
    assert isotonic([1.0, 3.0, 2.0, 4.0]) == [1.0, 2.5, 2.5, 4.0]
    assert isotonic([3.0, 2.0, 1.0]) == [2.0, 2.0, 2.0]
    assert isotonic([1.0, 2.0]) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gamma": -0.1}, "`gamma` of the cost model must be a number of at least 0, got -0.1"),
        ({"gamma": float("nan")}, "`gamma`"),
        ({"gamma": 0.1, "overhead": -1.0}, "`overhead`"),
        ({"gamma": 0.1, "verify_curve": [1.1, 1.2]}, r"begin with v\(0\) = 1"),
        ({"gamma": 0.1, "verify_curve": []}, r"begin with v\(0\) = 1"),
        ({"gamma": 0.1, "verify_curve": [1.0, 0.9]}, "must not decrease"),
        ({"gamma": 0.1, "verify_curve": "flat"}, "list of finite numbers"),
        ({"gamma": 0.1, "target_step_seconds": 0.0}, "`target_step_seconds`"),
        ({"gamma": 0.1, "level_costs": [0.1]}, r"`level_costs` must be two numbers of at least 0, got \[0.1\]"),
        ({"gamma": 0.1, "level_costs": [0.1, -1]}, "`level_costs`"),
        ({"gamma": 0.1, "level_costs": 0.1}, "`level_costs`"),
    ],
)
def test_bad_values(arguments, match):
    with pytest.raises(ValueError, match=match):
        CostModel(**arguments)


def test_bad_arguments():
    cost_model = CostModel(0.1)
    with pytest.raises(ValueError, match="`n`"):
        cost_model.verify(-1)
    with pytest.raises(ValueError, match="`accepted`"):
        cost_model.cost_per_accepted_token(0, 4)
    with pytest.raises(ValueError, match="`acceptance_length`"):
        cost_model.speedup(-1.0, 4)


def test_several_machines_share_a_file(tmp_path):
    one = CostModel(0.1, [1.0, 1.1], 0.02, 0.03, key="machine one")
    two = CostModel(0.2, [1.0, 1.4], 0.01, 0.02, key="machine two", level_costs=(0.3, 0.02))
    path = one.save(tmp_path)
    two.save(tmp_path)
    assert path == tmp_path / "cost_model.json"
    assert CostModel.load(tmp_path, "machine one") == one
    assert CostModel.load(path, "machine two") == two
    assert CostModel.load(tmp_path, "machine three") is None
    assert CostModel.load(tmp_path / "elsewhere", "machine one") is None
    with pytest.raises(ValueError, match="holds 2 cost models"):
        CostModel.load(tmp_path)
    assert os.listdir(tmp_path) == ["cost_model.json"]


def test_a_model_without_a_key_is_not_stored(tmp_path):
    with pytest.raises(ValueError, match="no `key`"):
        CostModel(0.1).save(tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"format": 1, "entries": {"k": {"gam', "truncated or not JSON"),
        ('{"format": 9, "entries": {}}', "format 1"),
        ("[]", "not a cost model file"),
        ('{"format": 1}', "not a cost model file"),
        ('{"format": 1, "entries": {"k": {"gamma": -1}}}', "`gamma`"),
        ('{"format": 1, "entries": {"k": {"verify_curve": [1.0]}}}', "needs the fields"),
        ('{"format": 1, "entries": {"k": {"gamma": 0.1, "speed": 2}}}', "needs the fields"),
    ],
)
def test_damaged_files(tmp_path, text, match):
    (tmp_path / "cost_model.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        CostModel.load(tmp_path, "k")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    CostModel(0.1, key="old").save(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        CostModel(0.2, key="new").save(tmp_path)
    assert os.listdir(tmp_path) == ["cost_model.json"]
    assert CostModel.load(tmp_path).gamma == 0.1


@pytest.mark.parametrize("kind", ["eagle3", "causal"])
def test_measure(kind, prompt):
    target = tiny_target("llama")
    drafter = tiny_eagle3(target) if kind == "eagle3" else tiny_causal_drafter(target, num_layers=1)
    trace = drafter.last_trace
    cost_model = CostModel.measure(target, drafter, max_window=8, repetitions=3)
    assert len(cost_model.verify_curve) == 9 and cost_model.verify(0) == 1.0
    assert 0 < cost_model.gamma < 5 and 0 < cost_model.overhead < 5
    assert 1e-5 < cost_model.target_step_seconds < 1
    assert cost_model.key == cost_model_key(target, drafter)
    assert "float32" in cost_model.key and "torch 2" in cost_model.key
    table = cost_model.table()
    assert [row["window"] for row in table] == list(range(9))
    assert table[3]["cycle"] == pytest.approx(cost_model.cycle_cost(3))
    assert drafter.last_trace is trace and not target._forward_hooks


@pytest.mark.parametrize("nodes", [4, 32, 40])
def test_trees_are_measured_up_to_their_size(nodes):
    target = tiny_target("llama")
    drafter = tiny_eagle3(target)
    drafter.generation_config.window = WindowConfig(tree=TreeConfig(max_nodes=nodes))
    cost_model = CostModel.measure(target, drafter, repetitions=2)
    assert len(cost_model.verify_curve) == max(nodes, 32) + 1
    assert cost_model.verify_curve == sorted(cost_model.verify_curve)
    assert [cost >= 0 for cost in cost_model.level_costs] == [True, True]
    assert CostModel.from_dict(json.loads(json.dumps(cost_model.to_dict()))) == cost_model


def test_measuring_fits_into_short_contexts():
    target = tiny_target("llama", max_position_embeddings=24)
    assert len(CostModel.measure(target, tiny_causal_drafter(target), repetitions=1).verify_curve) == 13


def test_level_costs_of_drafters_without_trees_are_not_measured():
    target = tiny_target("llama")
    drafter = LookupDrafter.from_target(target)
    cost_model = CostModel.measure(target, drafter, repetitions=1)
    assert cost_model.level_costs is None and "level_costs" not in cost_model.to_dict()


def test_level_costs_are_those_of_the_timings():
    assert _level_costs(2.0, {2: 2.4, 10: 4.0}) == pytest.approx([0.1, 0.1])
    assert _level_costs(2.0, {2: 1.9, 10: 1.8}) == [0.0, 0.0]
    several, each = _level_costs(2.0, {2: 2.4, 10: 4.0})
    cost_model = CostModel(0.1, level_costs=[several, each])
    assert [2.0 * cost_model.level_cost(n) for n in (1, 2, 10)] == pytest.approx([2.0, 2.4, 4.0])


@pytest.mark.parametrize(
    ("defaults", "call"),
    [
        ({"stop_strings": ["a"]}, {"stop_strings": None}),
        ({"cache_implementation": "static"}, {"cache_implementation": "dynamic"}),
        ({"guidance_scale": 1.5}, {"guidance_scale": 1}),
        ({"prompt_lookup_num_tokens": 3}, {"prompt_lookup_num_tokens": 0}),
        ({"assistant_early_exit": 2}, {"assistant_early_exit": 0}),
        ({"num_beams": 2}, {"num_beams": 1}),
        ({"max_time": 1e-9}, {"max_time": 60.0}),
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_targets_generation_defaults_are_not_measured(defaults, call, prompt):
    """What a call takes back validly does not come back in the generation that is measured."""
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    own, options = target.generation_config, {"max_new_tokens": 8, "do_sample": False}
    plain = target.generate(prompt, **options)
    for name, value in defaults.items():
        setattr(own, name, value)
    text = target.generate(prompt, assistant_model=drafter, window="cost_aware", **options, **call)
    assert torch.equal(text, plain) and drafter.last_trace.cost["overhead"] > 0
    assert target.generation_config is own and all(getattr(own, n) == v for n, v in defaults.items())


@pytest.mark.parametrize("eos", [None, list(range(96))])
def test_as_many_tokens_are_generated_whatever_ends_a_text(eos, monkeypatch):
    target = tiny_target("llama")
    target.generation_config.eos_token_id = eos
    texts = []
    generate = type(target).generate

    @functools.wraps(generate)
    def spy(self, *args, **kwargs):
        texts.append(generate(self, *args, **kwargs))
        return texts[-1]

    monkeypatch.setattr(type(target), "generate", spy)
    CostModel.measure(target, tiny_causal_drafter(target), repetitions=1)
    assert [text.shape[1] for text in texts] == [32 + 12]


def timings(*spoilt):
    """One measurement of windows of 0 to 8 tokens, with other numbers for some of them."""
    seconds = {n: 0.01 * (1.0 + 0.1 * n) for n in (0, 1, 2, 3, 4, 6, 8)}
    return seconds | dict(spoilt), 0.01, 0.001, {2: 0.0012, 10: 0.002}


@pytest.fixture
def measured(monkeypatch):
    """Lets measurements return what is given, one after another; the last one from then on."""

    def give(*results):
        left = list(results)
        monkeypatch.setattr(
            cost_measurement, "_time_forwards", lambda *args: left.pop(0) if len(left) > 1 else left[0]
        )
        return left

    return give


def test_a_disturbed_measurement_is_made_again(measured, cache_folder):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    calm = CostModel.from_dict({"gamma": 0.1, "verify_curve": [1.0 + 0.1 * n for n in range(9)]})
    left = measured(timings((4, 0.989), (8, 1.2)), timings((2, 0.5)), timings((0, 99.0)))
    found = find_cost_model(target, drafter)
    # Each was disturbed somewhere, and both together nowhere.
    assert found.verify_curve == pytest.approx(calm.verify_curve) and found.gamma == pytest.approx(0.1)
    assert len(left) == 1 and CostModel.load(cache_folder, found.key) == found


def test_a_measurement_that_stays_disturbed_is_not_stored(measured, cache_folder, monkeypatch):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    left = measured(*[timings((4, 0.989), (6, 0.99), (8, 1.2))] * 4)
    warnings = []
    for module in (cost_measurement, stored_costs):
        monkeypatch.setattr(module.logger, "warning", warnings.append)
    found = find_cost_model(target, drafter)
    assert found.verify_curve == pytest.approx([1.0, 1.1, 1.2, 1.3, 5.0, 6.0, 7.0, 8.0, 9.0]) and found.key is None
    assert len(left) == 1 and not cache_folder.exists()
    assert "kept this machine busy" in warnings[0] and "Not stored" in warnings[1]
    with pytest.raises(ValueError, match="nothing else kept the machine busy"):
        found.save(cache_folder)
    assert find_cost_model(target, drafter) is found
    measured(timings())
    assert find_cost_model(target, tiny_causal_drafter(target)).verify(4) == pytest.approx(1.4)


def test_disturbed_costs_that_were_stored_are_replaced(cache_folder):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    key = cost_model_key(target, drafter)
    CostModel(0.25, [1.0, 1.1, 1.2, 1.3, 98.9], key=key).save(cache_folder)
    assert find_cost_model(target, drafter).verify(4) <= 5.0
    assert CostModel.load(cache_folder, key).verify(4) <= 5.0


def test_measure_refuses_bad_arguments():
    target = tiny_target("llama")
    drafter = tiny_eagle3(target)
    with pytest.raises(ValueError, match="`repetitions`"):
        CostModel.measure(target, drafter, repetitions=0)
    with pytest.raises(ValueError, match="`max_window`"):
        CostModel.measure(target, drafter, max_window=255)


@pytest.fixture
def saved(tmp_path, calm_machine):
    """A target, and the folder of a drafter for it."""
    target, folder = tiny_target("llama"), tmp_path / "drafter"
    tiny_causal_drafter(target).save_pretrained(folder)
    return target, folder


def contents(folder):
    """Files of a drafter's folder. What decoding keeps in it is hidden in a folder of its own."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".cache"}


def test_measured_once_and_kept_in_the_cache(saved, prompt, cache_folder):
    """The drafter's own files stay as they are: they may be published or under version control."""
    target, folder = saved
    before = contents(folder)
    drafter = AutoDrafter.from_pretrained(folder)
    target.generate(prompt, assistant_model=drafter, window="cost_aware", max_new_tokens=4)
    assert contents(folder) == before
    content = json.loads((cache_folder / "cost_model.json").read_text())
    assert list(content["entries"]) == [cost_model_key(target, drafter)]
    again = AutoDrafter.from_pretrained(folder)
    found = find_cost_model(target, again)
    assert found.to_dict() == content["entries"][found.key] == drafter.last_trace.cost
    assert find_cost_model(target, again) is found


def test_measured_once_and_kept_beside_the_drafter(saved, cache_folder, monkeypatch):
    """Where the user's cache does not last, as in a container, a drafter's folder does."""
    target, folder = saved
    found = find_cost_model(target, AutoDrafter.from_pretrained(folder))
    kept = folder / ".cache" / "ppow_hf"
    assert CostModel.load(kept, found.key) == found
    assert not select_files(folder).files.keys() & {f".cache/ppow_hf/{name}" for name in os.listdir(kept)}
    shutil.rmtree(cache_folder)
    monkeypatch.setattr(cost_measurement, "measure_cost_model", None)
    assert find_cost_model(target, AutoDrafter.from_pretrained(folder)) == found
    # Costs measured since go before, wherever they are.
    CostModel(0.25, key=found.key).save(cache_folder)
    assert find_cost_model(target, AutoDrafter.from_pretrained(folder)).gamma == 0.25


def test_version_control_leaves_out_what_is_kept_beside_a_drafter(saved, cache_folder):
    target, folder = saved
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    find_cost_model(target, AutoDrafter.from_pretrained(folder))
    status = ["git", "-C", folder, "status", "--porcelain", "--untracked-files=all"]
    files = subprocess.run(status, check=True, capture_output=True, text=True).stdout
    assert "config.json" in files and ".cache" not in files


def test_drafters_of_one_shape_are_measured_once(saved, tmp_path):
    """Checkpoints, and folders trained one after another."""
    target, folder = saved
    found = find_cost_model(target, AutoDrafter.from_pretrained(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert find_cost_model(target, AutoDrafter.from_pretrained(tmp_path / "copy")) == found
    assert find_cost_model(target, tiny_causal_drafter(target)) == found


def test_costs_beside_the_drafter_go_before_those_in_the_cache(saved, cache_folder):
    target, folder = saved
    key = cost_model_key(target, AutoDrafter.from_pretrained(folder))
    CostModel(0.25, key=key).save(cache_folder)
    assert find_cost_model(target, AutoDrafter.from_pretrained(folder)).gamma == 0.25
    CostModel(0.125, key=key).save(folder)
    assert find_cost_model(target, AutoDrafter.from_pretrained(folder)).gamma == 0.125
    # Of another machine: no use here, and left alone.
    (folder / "cost_model.json").unlink()
    CostModel(0.5, key="another machine").save(folder)
    before = contents(folder)
    assert find_cost_model(target, AutoDrafter.from_pretrained(folder)).gamma == 0.25
    assert contents(folder) == before


def test_damaged_costs_beside_the_drafter_are_passed_over(saved, cache_folder):
    target, folder = saved
    (folder / "cost_model.json").write_text('{"format": 1, "entr')
    found = find_cost_model(target, AutoDrafter.from_pretrained(folder))
    assert CostModel.load(cache_folder, found.key) == found
    assert (folder / "cost_model.json").read_text() == '{"format": 1, "entr'


def test_costs_that_cannot_be_kept_are_used_all_the_same(saved, tmp_path, monkeypatch):
    target, folder = saved
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path / "file" / "cache"))
    (folder / ".cache").write_text("in the way, too")
    before = contents(folder)
    assert find_cost_model(target, AutoDrafter.from_pretrained(folder)).gamma > 0
    assert contents(folder) == before


def test_fresh_drafters_are_stored_in_the_cache(cache_folder, calm_machine):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    found = find_cost_model(target, drafter)
    assert CostModel.load(cache_folder, found.key) == found


def test_a_damaged_cache_is_replaced(cache_folder, calm_machine):
    cache_folder.mkdir()
    (cache_folder / "cost_model.json").write_text('{"format": 1, "entr')
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    found = find_cost_model(target, drafter)
    assert CostModel.load(cache_folder, found.key) == found


def test_the_key_tells_models_and_dtypes_apart():
    import torch

    target = tiny_target("llama")
    keys = {cost_model_key(target, tiny_causal_drafter(target, n)) for n in (1, 2)}
    keys.add(cost_model_key(target, tiny_eagle3(target)))
    keys.add(cost_model_key(target.to(torch.bfloat16), tiny_eagle3(target)))
    assert len(keys) == 4


def test_the_key_tells_targets_of_the_same_width_apart():
    eager = tiny_target("llama")
    eager.set_attn_implementation("eager")
    targets = [
        tiny_target("llama"),
        eager,
        tiny_target("llama", num_key_value_heads=4),
        tiny_target("qwen3_moe", num_experts=4),
        tiny_target("qwen3_moe", num_experts=8),
        tiny_target("qwen3_moe", num_experts=8, num_experts_per_tok=1),
    ]
    drafter = tiny_eagle3(targets[0])
    assert len({cost_model_key(target, drafter) for target in targets}) == len(targets)
    assert cost_model_key(tiny_target("llama", seed=1), drafter) == cost_model_key(targets[0], drafter)


@pytest.mark.parametrize("what", ["processor", "torch", "transformers", "threads", "our code"])
def test_costs_of_another_machine_or_version_are_not_used(what, cache_folder, monkeypatch):
    target = tiny_target()
    drafter = tiny_causal_drafter(target)
    CostModel(0.25, key=cost_model_key(target, drafter)).save(cache_folder)
    assert find_cost_model(target, drafter).gamma == 0.25
    changes = {
        "processor": (stored_costs, "_cpu_name", lambda: "another"),
        "torch": (torch, "__version__", "9.9.9+cpu"),
        "transformers": (transformers, "__version__", "9.9.9"),
        "threads": (torch, "get_num_threads", lambda: 99),
        "our code": (stored_costs, "_REVISION", stored_costs._REVISION + 1),
    }
    monkeypatch.setattr(*changes[what])
    assert find_cost_model(target, drafter).gamma != 0.25


def test_costs_of_a_changed_target_are_its_own():
    """The marks of `torch.compile` are private: this fails where they are gone."""
    target = tiny_target()
    drafter = tiny_eagle3(target)
    compiled, forward = copy.deepcopy(target), copy.deepcopy(target)
    compiled.compile(backend="eager")
    forward.forward = torch.compile(forward.forward, backend="eager")
    plain = cost_model_key(target, drafter)
    assert "compiled" not in plain and "prepacked" not in plain
    assert cost_model_key(compiled, drafter) == cost_model_key(forward, drafter) != plain
    narrow = copy.deepcopy(target).bfloat16()
    before = cost_model_key(narrow, drafter)
    if prepack_weights(narrow):
        assert cost_model_key(narrow, drafter) != before
        unpack_weights(narrow)
    assert cost_model_key(narrow, drafter) == before
