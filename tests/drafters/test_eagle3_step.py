# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The short way through an EAGLE-3 drafter gives what its modules give."""

import copy

import pytest
import torch
from torch import nn

from ppow_hf.drafters.eagle3_step import single_sequence_step

from ..testing_utils import tiny_eagle3, tiny_target
from .common import VOCAB, Text
from .reference_eagle3 import VARIANTS, exact_arithmetic, randomize_

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SEVERAL_LAYERS = ("two_layers", "everything")


def make(variant: str = "plain", **changes):
    target = tiny_target(vocab_size=VOCAB)
    return randomize_(tiny_eagle3(target, **{**VARIANTS[variant], **changes})), target


def draft(drafter, short: bool, length: int = 30, seed: int = 1) -> list[torch.Tensor]:
    """Logits, states and caches of a text drafted for window by window, by the short way or by the modules."""
    text, state = Text(drafter, length, seed=seed), drafter.new_state()
    if text.features is not None:
        text.features = text.features.to(drafter.dtype)
    if not short:
        state.short_way = False
    results, generator = [], torch.Generator().manual_seed(seed)
    for count, accepted, steps in ((length - 14, 0, 4), (3, 2, 2), (1, 0, 0), (1, 0, 5), (6, 4, 3)):
        results += [text.extend(drafter, state, count, accepted), state.hidden]
        for _ in range(steps):
            results.append(drafter.step(state, torch.randint(VOCAB, (1,), generator=generator)))
            results.append(state.hidden)
    layer = state.cache.layers[0]
    assert bool(state.short_way) == short
    return [*results, layer.keys, layer.values]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in SEVERAL_LAYERS])
def test_it_equals_the_modules_exactly(variant, monkeypatch):
    exact_arithmetic(monkeypatch)
    drafter, target = make(variant)
    drafter.double()
    target.double()
    for mine, theirs in zip(draft(drafter, True), draft(drafter, False), strict=True):
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine, theirs, **EXACT)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_it_equals_the_modules_up_to_rounding(dtype, tolerance):
    drafter, target = make(hidden_size=32)
    drafter.to(dtype)
    target.to(dtype)
    for mine, theirs in zip(draft(drafter, True), draft(drafter, False), strict=True):
        assert mine.dtype == theirs.dtype == dtype
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_positions_beyond_the_first_table(monkeypatch):
    exact_arithmetic(monkeypatch)
    drafter, target = make()
    drafter.double()
    target.double()
    for length in (100, 1400):  # one table, and one that must grow while the text does
        mine, theirs = (draft(drafter, short, length=length) for short in (True, False))
        torch.testing.assert_close(mine[-4:], theirs[-4:], **EXACT)
    text, state = Text(drafter, 1200), drafter.new_state()
    text.features = text.features.double()
    other, plain = Text(drafter, 1200), drafter.new_state()
    other.features, plain.short_way = text.features, False
    for count in [2, *[90] * 13]:
        torch.testing.assert_close(
            text.extend(drafter, state, count), other.extend(drafter, plain, count), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("change", ["in place", "state dict", "data"])
def test_changed_weights_are_seen_at_once(change):
    drafter, target = make()
    other = copy.deepcopy(drafter)
    other.bind_target(target)
    randomize_(other, seed=7)
    text, state = Text(drafter, 8), drafter.new_state()
    text.extend(drafter, state, 6)
    before = drafter.step(state, torch.tensor([5]))
    state.drop_draft()
    hidden = state.hidden
    if change == "state dict":
        drafter.load_state_dict(other.state_dict())
    for mine, theirs in zip(drafter.parameters(), other.parameters(), strict=True):
        if change == "in place":
            with torch.no_grad():
                mine.copy_(theirs)
        elif change == "data":
            mine.data = theirs.data.clone()
    state.hidden = hidden
    after = drafter.step(state, torch.tensor([5]))
    state.drop_draft()
    state.hidden, state.short_way = hidden, False
    torch.testing.assert_close(after, drafter.step(state, torch.tensor([5])), rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 0.1


def test_a_tree_of_one_branch_is_a_chain():
    drafter, _ = make()
    states = [drafter.new_state(), drafter.new_state()]
    for state in states:
        Text(drafter, 6).extend(drafter, state, 6)
    for token in (3, 9, 27):
        tokens = torch.tensor([token])
        assert torch.equal(drafter.step(states[0], tokens), drafter.step_tree(states[1], tokens, [0]))
    assert states[1].short_way


def test_a_branch_goes_on_from_its_own_parent():
    drafter, _ = make()
    chain, tree = drafter.new_state(), drafter.new_state()
    for state in (chain, tree):
        Text(drafter, 6).extend(drafter, state, 6)
    # A single node sees all columns only where nothing branched: behind two siblings the mask is needed.
    drafter.step_tree(tree, torch.tensor([3]), [0])
    level = drafter.step_tree(tree, torch.tensor([7, 9]), [0, 0])
    behind = drafter.step_tree(tree, torch.tensor([11]), [1])
    for token, logits in ((3, None), (9, level[1:]), (11, behind)):
        expected = drafter.step(chain, torch.tensor([token]))
        if logits is not None:
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_embeddings_that_are_more_than_tables_are_called():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 3.0 * super().forward(ids)

    drafter, target = make()
    table = target.get_input_embeddings()
    scaled = Scaled(*table.weight.shape)
    scaled.weight = table.weight
    target.set_input_embeddings(scaled)
    drafter.bind_target(target)
    for mine, theirs in zip(draft(drafter, True), draft(drafter, False), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


class Adapted(nn.Linear):
    """Stands for a quantised or adapted layer: its weight alone is not what it computes."""

    def forward(self, x):
        return 2.0 * super().forward(x)


def adapt(drafter):
    layer = drafter.midlayer.self_attn
    adapted = Adapted(layer.q_proj.in_features, layer.q_proj.out_features, bias=False)
    adapted.weight = layer.q_proj.weight
    layer.q_proj = adapted


def hook(drafter):
    drafter.midlayer.mlp.up_proj.register_forward_hook(lambda module, args, output: 2.0 * output)


def hook_head(drafter):
    drafter.lm_head.register_forward_hook(lambda module, args, output: 2.0 * output)


def mix_precisions(drafter):
    drafter.midlayer.mlp.double()


def dropout(drafter):
    drafter.train()
    drafter.midlayer.self_attn.attention_dropout = drafter.config.attention_dropout = 0.5


CHANGES = [adapt, hook, hook_head, mix_precisions, dropout, lambda drafter: drafter.set_attn_implementation("eager")]


@pytest.mark.parametrize("change", CHANGES)
def test_modules_that_do_something_else_are_called(change):
    drafter, _ = make()
    assert single_sequence_step(drafter) is not None
    change(drafter)
    assert single_sequence_step(drafter) is None


def test_it_is_for_one_sequence_of_one_layer_without_autocast():
    drafter, _ = make()
    state = drafter.new_state(2)
    Text(drafter, 5, batch=2).extend(drafter, state, 5)
    assert not state.short_way
    with torch.autocast("cpu", torch.bfloat16):
        assert single_sequence_step(drafter) is None
    assert single_sequence_step(make("two_layers")[0]) is None
    changing, _ = make(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert single_sequence_step(changing) is None
