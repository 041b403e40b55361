# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target


class Never:
    """A criterion that is asked about every token, and ends nothing."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


# Every loop of ours: greedy chains, chains token by token and sampled ones, trees.
CALLS = {
    "greedy": {"window": "fixed:3", "do_sample": False},
    "token by token": {"window": "fixed:3", "do_sample": False, "stopping_criteria": [Never()]},
    "sampled": {"window": "fixed:3", "do_sample": True},
    "trees": {"window": "tree:5", "do_sample": False},
    "sampled trees": {"window": "tree:5", "do_sample": True},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["eagle3", "causal"])
def test_verification_writes_the_cache_in_place(prompt, kind, call):
    target = tiny_target()
    drafter = tiny_eagle3(target) if kind == "eagle3" else tiny_causal_drafter(target, num_layers=1)
    places = []
    attention = target.model.layers[0].self_attn

    def note(module, args, kwargs, output):
        places.append(kwargs["past_key_values"].layers[0].keys.data_ptr())

    target.generate(prompt, assistant_model=drafter, max_new_tokens=4, **CALLS[call])  # trials are made here
    handle = attention.register_forward_hook(note, with_kwargs=True)
    try:
        target.generate(prompt, assistant_model=drafter, max_new_tokens=24, **CALLS[call])
        assert len(places) > 2 and len(set(places)) == 1
        places.clear()
        target.generate(prompt, max_new_tokens=24, do_sample=False)
        assert len(set(places)) > 1, "transformers grows caches in place now: `growing_in_place` can go"
    finally:
        handle.remove()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_the_cache_that_comes_back_is_a_plain_one(prompt, call, given):
    target = tiny_target()
    own = {"past_key_values": DynamicCache(config=target.config)} if given else {}
    output = target.generate(
        prompt,
        assistant_model=tiny_eagle3(target),
        max_new_tokens=12,
        return_dict_in_generate=True,
        **CALLS[call],
        **own,
    )
    cache = output.past_key_values
    if given:
        assert cache is own["past_key_values"]
    assert {type(layer) for layer in cache.layers} == {DynamicLayer}
    text = output.sequences
    length = cache.get_seq_length()
    assert length in (text.shape[1] - 1, text.shape[1])
    plain = target(text[:, :length], use_cache=True).past_key_values
    for mine, theirs in zip(cache.layers, plain.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.values, theirs.values, rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_a_cache_that_came_back(prompt):
    target = tiny_target()
    cache = target.generate(
        prompt,
        assistant_model=tiny_eagle3(target),
        window="fixed:3",
        max_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
    ).past_key_values
    position = cache.get_seq_length()
    for step in range(2):
        ids = torch.tensor([[7 + step]])
        logits = target(ids, past_key_values=cache, position_ids=torch.tensor([[position + step]])).logits
    logits.sum().backward()
    assert target.model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0
