# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
from contextlib import ExitStack

import pytest
import torch
from transformers import DynamicCache, StoppingCriteriaList

from ppow_hf.drafters import eagle3_step
from ppow_hf.drafters.growing_cache import GrowingLayer
from ppow_hf.evaluation import cycle_profile
from ppow_hf.evaluation.cycle_profile import DRAFT, OURS, REST, THEIRS, VERIFY, Stopwatch, profile_cycles
from ppow_hf.generation import DraftSampler, LookupProposer, PPOWCandidateGenerator, candidate_generator
from ppow_hf.scripts import profile_cycle
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

PROMPTS = [{"input_ids": torch.tensor([[5, 17, 3, 60, 9]])}, {"input_ids": torch.tensor([[8, 2, 40]])}]


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by hand."""
    now = [0.0]
    monkeypatch.setattr(cycle_profile.time, "perf_counter", lambda: now[0])
    return now


def test_a_stopwatch_counts_everything_once(clock):
    class Work:
        def outer(self):
            clock[0] += 1.0
            self.inner(0.5)
            clock[0] += 2.0
            self.inner(0.25)

        def inner(self, seconds):
            clock[0] += seconds

        def failing(self):
            clock[0] += 4.0
            raise KeyError

    watch, work = Stopwatch(torch.device("cpu")), Work()
    inner = Work.inner
    with ExitStack() as stack:
        watch.watch(stack, Work, "outer", "a", "outer")
        watch.watch(stack, Work, "inner", "a", lambda self, seconds: f"inner {seconds}")
        watch.watch(stack, work, "failing", "b", "failing")
        with watch.timing("b", "all"):
            clock[0] += 8.0
            work.outer()
            with pytest.raises(KeyError):
                work.failing()
    clock[0] += 16.0
    work.outer()
    assert watch.seconds == {
        ("b", "all"): 8.0,
        ("a", "outer"): 3.0,
        ("a", "inner 0.5"): 0.5,
        ("a", "inner 0.25"): 0.25,
        ("b", "failing"): 4.0,
    }
    assert Work.inner is inner and "failing" not in vars(work)


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
        GrowingLayer,
        eagle3_step.Eagle3Step,
        type(target),
    )
    modules = (candidate_generator, cycle_profile.verification_module, eagle3_step)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in (*target.modules(), *drafter.modules())]
    return [dict(vars(owner)) for owner in (*owners, *modules)], set(vars(drafter)), hooks


@pytest.mark.parametrize("window", ["fixed:3", "mixed"])
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
    assert {"candidate generator", "learning from verification"} <= set(result.parts[OURS])
    assert {"preparing inputs", "stopping criteria"} <= set(result.parts[THEIRS])
    assert ("lookup" in result.parts[OURS]) == (window == "mixed")
    assert all(value > 0 for parts in result.parts.values() for value in parts.values())
    rows = result.rows()
    assert sum(row[3] for row in rows) == pytest.approx(1.0)
    assert len(result.operators) == 5 and all(row["milliseconds"] > 0 for row in result.operators)


def test_sampling_can_be_profiled():
    target = tiny_target()
    result = profile_cycles(
        target, tiny_eagle3(target), PROMPTS, max_new_tokens=8, operators=0, window="fixed:2", do_sample=True
    )
    assert result.operators == []
    assert result.parts[OURS]["drawing draft tokens"] > 0


def test_nothing_to_profile_is_refused():
    target = tiny_target()
    with pytest.raises(ValueError, match="`prompts` is empty"):
        profile_cycles(target, tiny_eagle3(target), [])
    with pytest.raises(ValueError, match="`window` drafts trees"):
        profile_cycles(target, tiny_eagle3(target), PROMPTS, window="tree:4")
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
