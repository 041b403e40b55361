# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json

import pytest
import torch
from transformers import DynamicCache, GenerationMixin, StoppingCriteriaList

from ppow_hf.drafters import eagle3_step
from ppow_hf.drafters.growing_cache import GrowingCache
from ppow_hf.evaluation import stopwatches
from ppow_hf.evaluation.cycle_profile import profile_cycles
from ppow_hf.evaluation.stopwatches import DRAFT, OURS, REST, THEIRS, VERIFY
from ppow_hf.generation import DraftSampler, LookupProposer, PPOWCandidateGenerator, TreeConfig, WindowConfig
from ppow_hf.generation.text_end import TextEnd
from ppow_hf.generation.tree_decoding import TreeDecoding
from ppow_hf.generation.tree_policy import CostAwareTreePolicy, FixedTreePolicy, TreePolicy
from ppow_hf.generation.tree_verification import TreeVerifier
from ppow_hf.generation.window_inputs import WindowInputs
from ppow_hf.scripts import profile_cycle
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

PROMPTS = [{"input_ids": torch.tensor([[5, 17, 3, 60, 9]])}, {"input_ids": torch.tensor([[8, 2, 40]])}]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path / "cache"))


def patched_places(target, drafter):
    owners = (
        PPOWCandidateGenerator,
        DraftSampler,
        LookupProposer,
        StoppingCriteriaList,
        DynamicCache,
        GrowingCache,
        eagle3_step.Eagle3Step,
        TreeDecoding,
        TreePolicy,
        CostAwareTreePolicy,
        FixedTreePolicy,
        TreeVerifier,
        TextEnd,
        WindowInputs,
        type(target),
        GenerationMixin,
    )
    modules = (
        stopwatches.generator_module,
        stopwatches.chains_module,
        stopwatches.decoding_module,
        stopwatches.tree_module,
        stopwatches.graft_module,
        eagle3_step,
    )
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in (*target.modules(), *drafter.modules())]
    # Python notes the names of slots when a class is first copied.
    kept = [{k: v for k, v in vars(owner).items() if k != "__slotnames__"} for owner in (*owners, *modules)]
    return kept, set(vars(drafter)), hooks


@pytest.mark.parametrize("window", ["fixed:3", "mixed", "tree:4", "mixed_tree"])
@pytest.mark.parametrize("kind", ["short way", "modules", "causal"])
def test_parts_make_up_the_cycles_and_nothing_stays_behind(kind, window):
    target = tiny_target()
    drafter = tiny_causal_drafter(target) if kind == "causal" else tiny_eagle3(target)
    if kind == "modules":
        drafter.set_attn_implementation("eager")
    target.generate(**PROMPTS[0], assistant_model=drafter, max_new_tokens=4, do_sample=False, window=window)
    before = patched_places(target, drafter)
    result = profile_cycles(target, drafter, PROMPTS, max_new_tokens=16, operators=5, window=window)
    assert patched_places(target, drafter) == before
    assert result.new_tokens == 32
    assert result.cycles >= 2
    assert sum(result.shares.values()) == pytest.approx(1.0)
    assert {"lm_head", "mlp", "attention", "norm", REST} <= set(result.parts[DRAFT])
    assert ("fc" in result.parts[DRAFT]) == (kind != "causal")
    assert set(result.parts[VERIFY]) == {"target"}
    assert {"learning from verification", "choosing the target's tokens"} <= set(result.parts[OURS])
    assert ("candidate generator" in result.parts[OURS]) == ("tree" not in window)
    assert ({"growing the tree", "choosing nodes"} <= set(result.parts[OURS])) == ("tree" in window)
    assert "end of the text" in result.parts[OURS] and "cropping the cache" in result.parts[THEIRS]
    assert ("preparing inputs" in result.parts[OURS]) == ("tree" not in window)
    assert ("lookup" in result.parts[OURS]) == ("mixed" in window)
    assert all(value > 0 for parts in result.parts.values() for value in parts.values())
    rows = result.rows()
    assert sum(row[3] for row in rows) == pytest.approx(1.0)
    assert len(result.operators) == 5 and all(row["milliseconds"] > 0 for row in result.operators)


def test_levels_of_several_nodes_are_told_from_single_steps():
    target = tiny_target()
    drafter = tiny_eagle3(target)
    window = WindowConfig(policy="fixed", tree=TreeConfig(max_nodes=6, max_depth=3, branching=2))
    wide = profile_cycles(target, drafter, PROMPTS, max_new_tokens=8, operators=0, window=window).parts[DRAFT]
    chains = profile_cycles(target, drafter, PROMPTS, max_new_tokens=8, operators=0, window="fixed:3").parts[DRAFT]
    several = {"layer, several nodes", "lm_head, several nodes"}
    assert several <= set(wide) and not several & set(chains)


def test_a_tree_that_gives_way_to_chains_is_profiled_as_chains():
    target = tiny_target("mistral", sliding_window=4)
    drafter = tiny_eagle3(target)
    drafter.generation_config.window = WindowConfig(policy="fixed", tree=True)
    parts = profile_cycles(target, drafter, PROMPTS, max_new_tokens=8, operators=0).parts[OURS]
    assert "candidate generator" in parts and "growing the tree" not in parts


@pytest.mark.parametrize("window", ["fixed:2", "tree:4"])
def test_sampling_can_be_profiled(window):
    target = tiny_target()
    result = profile_cycles(
        target, tiny_eagle3(target), PROMPTS, max_new_tokens=8, operators=0, window=window, do_sample=True
    )
    assert result.operators == []
    assert result.parts[OURS]["drawing draft tokens"] > 0


def test_nothing_to_profile_is_refused():
    target = tiny_target()
    with pytest.raises(ValueError, match="`prompts` is empty"):
        profile_cycles(target, tiny_eagle3(target), [])
    with pytest.raises(ValueError, match="`max_new_tokens`=1"):
        profile_cycles(target, tiny_eagle3(target), PROMPTS, max_new_tokens=1)


def test_the_command_writes_json_table_and_picture(tmp_path, capsys):
    target = char_target()
    target.save_pretrained(tmp_path / "target")
    char_tokenizer().save_pretrained(tmp_path / "target")
    tiny_eagle3(target).save_pretrained(tmp_path / "drafter")
    suite = tmp_path / "letters.jsonl"
    rows = [{"id": str(i), "turns": [text]} for i, text in enumerate(("abc", "hello there", "no"))]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "profile"
    profile_cycle.main(
        prompts=str(suite),
        output=output,
        target=str(tmp_path / "target"),
        drafter=str(tmp_path / "drafter"),
        window="fixed:3",
        max_new_tokens=12,
        limit=2,
    )
    content = json.loads((output / "profile.json").read_text())
    assert content["arguments"]["num_prompts"] == 2
    assert content["arguments"]["seed"] == 0
    assert content["new_tokens"] == 24
    assert content["gamma"] == content["cost"]["gamma"] > 0
    table = (output / "profile.md").read_text()
    assert table in capsys.readouterr().out
    for row in content["parts"]:
        assert f"| {row['phase']} | {row['part']} | {row['milliseconds']:.3f} |" in table
    assert (output / "profile.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in output.iterdir()) == ["profile.json", "profile.md", "profile.png"]
