# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The short way gives a target what transformers would give it."""

import types

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ppow_hf.generation.window_inputs import WindowInputs
from tests.testing_utils import TARGET_FAMILIES, tiny_target

PROMPT = torch.tensor([[5, 17, 3, 60, 9, 44, 21, 8]])


def given(target, **more) -> dict:
    kwargs = {
        "past_key_values": DynamicCache(config=target.config),
        "use_cache": True,
        "attention_mask": torch.ones_like(PROMPT),
        "position_ids": torch.arange(PROMPT.shape[1])[None],
        "logits_to_keep": 1,
        **more,
    }
    return {name: value for name, value in kwargs.items() if value is not None}


def both_ways(target, kwargs) -> list[list[dict]]:
    """The inputs of some passes, as they are made and as transformers prepares them."""
    found = []
    for short in (None, False):
        inputs = WindowInputs(target, dict(kwargs))
        if short is not None:
            inputs._short = short
        text, passes = PROMPT, []
        for drafted, committed in ((0, 1), (3, 2), (0, 1), (5, 6), (1, 1), (700, 600), (2, 3)):
            candidates = torch.cat([text, torch.arange(drafted)[None] % 90], dim=-1)
            passes.append(inputs.of(candidates, drafted))
            inputs.commit(CausalLMOutputWithPast(past_key_values=kwargs["past_key_values"]), committed)
            text = torch.cat([candidates[:, : text.shape[1] + committed - 1], torch.tensor([[7]])], dim=-1)
        found.append((inputs, passes))
    return found


def assert_same(mine: dict, theirs: dict) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        same = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value is theirs[name]
        assert same or value == theirs[name], name


@pytest.mark.parametrize("without", [(), ("attention_mask",), ("logits_to_keep",)])
@pytest.mark.parametrize("family", sorted(TARGET_FAMILIES))
def test_inputs_of_one_pass_after_another(family, without):
    target = tiny_target(family, max_position_embeddings=2048)
    (mine, passes), (_, expected) = both_ways(target, given(target, **dict.fromkeys(without)))
    for one, other in zip(passes, expected, strict=True):
        assert_same(one, other)
    # A target whose model prepares its own inputs is asked.
    assert mine._short == (family != "phi3")


def test_positions_that_do_not_begin_at_zero():
    target = tiny_target()
    (_, passes), (_, expected) = both_ways(target, given(target, position_ids=torch.arange(40, 48)[None]))
    for one, other in zip(passes, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    "more",
    [
        {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])},
        {"position_ids": None},
        {"position_ids": torch.zeros(3, 1, 8, dtype=torch.long)},
        {"token_type_ids": torch.zeros_like(PROMPT)},
    ],
    ids=["padding", "no positions", "positions of images", "token types"],
)
def test_other_inputs_are_prepared_by_the_target(more):
    target = tiny_target()
    assert not WindowInputs(target, given(target, **more))._short


@pytest.mark.parametrize("name", ["prepare_inputs_for_generation", "_update_model_kwargs_for_generation"])
@pytest.mark.parametrize("where", ["class", "instance"])
def test_a_target_with_a_way_of_its_own_is_asked(name, where):
    target = tiny_target()
    assert WindowInputs(target, given(target))._short
    own = getattr(target, name)
    if where == "instance":
        setattr(target, name, types.MethodType(lambda self, *args, **kwargs: own(*args, **kwargs), target))
    else:
        target.__class__ = type("Own", (type(target),), {name: lambda self, *args, **kwargs: own(*args, **kwargs)})
    assert not WindowInputs(target, given(target))._short
