# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`LookupDrafter`: a drafter like the others, without weights."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig, AutoModel

from ppow_hf import AutoDrafter, LookupDrafter, LookupDrafterConfig, WindowConfig
from ppow_hf.generation import LookupIndex
from tests.testing_utils import tiny_target

VOCAB = 96


@pytest.fixture
def target():
    return tiny_target("llama", vocab_size=VOCAB)


@pytest.fixture
def drafter(target):
    return LookupDrafter.from_target(target)


def proposed(logits):
    """The token of every row of one-hot logits; `None` where any token is as good as another."""
    tokens = []
    for row in logits:
        certain = row.isfinite()
        assert row[certain].eq(0).all()
        assert certain.sum() in (1, len(row))
        tokens.append(int(certain.nonzero()) if certain.sum() == 1 else None)
    return tokens


def test_there_are_no_weights(drafter, target):
    assert list(drafter.parameters()) == []
    assert drafter.device == target.device and drafter.dtype == target.dtype
    assert drafter.feature_layer_ids == () and drafter.draft_token_ids is None
    assert drafter.to(torch.bfloat16).dtype == torch.bfloat16
    assert LookupDrafter.from_target(target.to(torch.bfloat16)).dtype == torch.bfloat16


def test_config(drafter, target, tmp_path):
    config = drafter.config
    assert config.vocab_size == config.draft_vocab_size == VOCAB
    assert config.target_model_type == "llama" and config.target_num_hidden_layers == 4
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LookupDrafterConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    assert LookupDrafterConfig().vocab_size == 32000


@pytest.mark.parametrize("loader", [AutoDrafter, AutoModel, LookupDrafter])
def test_save_and_load(drafter, target, loader, tmp_path):
    drafter.generation_config.window = WindowConfig(proposals="lookup", lookup_size=7)
    drafter.save_pretrained(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 10_000
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is LookupDrafter and not loaded.training
    assert loaded.device.type == "cpu" and loader.from_pretrained(tmp_path, dtype=torch.float16).device.type == "cpu"
    assert loaded.generation_config.window == drafter.generation_config.window
    loaded.bind_target(target)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "ppow_lookup"


def test_another_vocabulary_is_refused(drafter):
    with pytest.raises(ValueError, match="vocabulary of 64 tokens"):
        drafter.bind_target(tiny_target("llama", vocab_size=64))


def test_extend_and_step_say_what_the_index_says(drafter):
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, 5, (2, 60), generator=generator)
    state, indexes = drafter.new_state(2), [LookupIndex(), LookupIndex()]
    place, known = 0, 0
    while place + 6 <= text.shape[1]:
        count = 1 + int(torch.randint(0, 5, (), generator=generator))
        tokens = text[:, place : place + count]
        place += count
        logits = drafter.extend(state, tokens, num_accepted=count - 1)
        assert state.committed == place and state.drafted == 0
        for index, row in zip(indexes, tokens.tolist(), strict=True):
            index.extend(row)
        expected = [index.propose(4) or [None] * 4 for index in indexes]
        for position in range(4):
            assert proposed(logits) == [row[position] for row in expected]
            known += sum(row[position] is not None for row in expected)
            logits = drafter.step(state, torch.tensor([row[position] or 0 for row in expected]))
        assert state.drafted == 4
    assert known > 100


@pytest.mark.parametrize("keep", [0, 2])
def test_a_dropped_window_is_forgotten_but_for_what_is_kept(drafter, keep):
    """As the measurement of costs does between draft steps: each is then the first of its window."""
    text, window = [1, 2, 3, 4, 1, 2, 3], [4, 1, 2]
    state, other = drafter.new_state(), drafter.new_state()
    drafter.extend(state, torch.tensor([text]))
    for token in window:
        drafter.step(state, torch.tensor([token]))
    state.drop_draft(keep)
    drafter.extend(other, torch.tensor([text + window[:keep]]))
    assert (state.drafted, state.committed, state.window) == (0, len(text) + keep, [[]])
    following = torch.tensor([window[keep]])
    assert proposed(drafter.step(state, following)) == proposed(drafter.step(other, following)) != [None]


def test_off_the_proposal_nothing_is_known(drafter):
    state = drafter.new_state()
    assert proposed(drafter.extend(state, torch.tensor([[1, 2, 3, 1]]))) == [2]
    assert proposed(drafter.step(state, torch.tensor([7]))) == [None]
    assert proposed(drafter.step(state, torch.tensor([3]))) == [None]
    assert proposed(drafter.extend(state, torch.tensor([[2]]))) == [3]


@pytest.mark.parametrize("window", [None, "lookup:4", "fixed:4", WindowConfig(policy="confidence", min_size=0)])
def test_it_decodes(drafter, target, window, tmp_path, monkeypatch):
    """With its own window its costs are measured first, as any drafter's."""
    monkeypatch.setenv("PPOW_HF_CACHE", str(tmp_path))
    prompt = torch.tensor([[5, 17, 3, 60, 9, 5, 17, 3, 60, 9, 5, 17]])
    options = {"max_new_tokens": 60, "do_sample": False}
    plain = target.generate(prompt, **options)
    output = target.generate(prompt, assistant_model=drafter, window=window, **options)
    assert torch.equal(output, plain)
    trace = drafter.last_trace
    assert trace.drafted > 0 and trace.new_tokens == 60
    assert trace.window["proposals"] == ("drafter" if isinstance(window, WindowConfig) else "lookup")
    torch.manual_seed(0)
    sampled = target.generate(prompt, assistant_model=drafter, window=window, max_new_tokens=30, do_sample=True)
    assert sampled.shape[1] == prompt.shape[1] + 30
