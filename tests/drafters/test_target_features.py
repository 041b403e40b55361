# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Features are the residual stream entering the named layers, for every family of targets."""

import pytest
import torch

from ppow_hf.drafters import gather_features

from ..testing_utils import TARGET_FAMILIES, SilentLlama, tiny_eagle3, tiny_target


def layers_of(target) -> torch.nn.ModuleList:
    return target.transformer.h if hasattr(target, "transformer") else target.base_model.layers


@torch.no_grad()
def hooked_inputs(target, tokens, **kwargs) -> dict[int, torch.Tensor]:
    """What each layer is really given, seen from outside."""
    seen = {}
    handles = []
    for k, layer in enumerate(layers_of(target)):

        def hook(module, args, kwargs, k=k):
            seen[k] = (args[0] if args else kwargs["hidden_states"]).clone()

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        target(tokens, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("family", TARGET_FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_features_are_what_the_layers_are_given(family, attention):
    target = tiny_target(family, vocab_size=96)
    if attention == "sdpa" and not target._supports_sdpa:
        pytest.skip(f"{family} has no sdpa attention")
    target.set_attn_implementation(attention)
    tokens = torch.randint(0, 96, (2, 12))
    seen = hooked_inputs(target, tokens)
    assert len(seen) == 4
    with torch.no_grad():
        hidden_states = target(tokens, output_hidden_states=True).hidden_states
    for ids in ((0, 1, 2, 3), (1, 3), (2,)):
        features = gather_features(hidden_states, ids)
        assert features.shape == (2, 12, 32 * len(ids))
        assert torch.equal(features, torch.cat([seen[k] for k in ids], dim=-1))
    assert len({seen[k].double().sum().item() for k in range(4)}) == 4


@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_drafters_read_these_features(family):
    """A column's logits follow from what the target's layers were given, and from nothing else of the target."""
    target = tiny_target(family, vocab_size=96)
    drafter = tiny_eagle3(target)
    tokens = torch.randint(0, 96, (1, 9))
    seen = hooked_inputs(target, tokens[:, :-1])
    with torch.no_grad():
        hidden_states = target(tokens[:, :-1], output_hidden_states=True).hidden_states
    taken = gather_features(hidden_states, drafter.feature_layer_ids)
    expected = torch.cat([seen[k] for k in drafter.feature_layer_ids], dim=-1)
    first = drafter.extend(drafter.new_state(), tokens, taken)
    assert torch.equal(first, drafter.extend(drafter.new_state(), tokens, expected))


@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_cached_decoding_gives_the_same_features(family):
    """Features of tokens verified behind a cache equal those of one pass over the whole text."""
    target = tiny_target(family, vocab_size=96)
    tokens = torch.randint(0, 96, (1, 14))
    with torch.no_grad():
        whole = gather_features(target(tokens, output_hidden_states=True).hidden_states, (1, 2, 3))
        prefix = target(tokens[:, :10], use_cache=True, output_hidden_states=True)
        rest = target(tokens[:, 10:], past_key_values=prefix.past_key_values, output_hidden_states=True)
    parts = [gather_features(output.hidden_states, (1, 2, 3)) for output in (prefix, rest)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_a_target_without_hidden_states_is_named():
    target = SilentLlama(tiny_target(vocab_size=96).config)
    output = target(torch.ones(1, 4, dtype=torch.long), output_hidden_states=True)
    with pytest.raises(ValueError, match="returned no `hidden_states`.*`CausalLMDrafter`"):
        gather_features(output.hidden_states, (1, 2))


def test_a_target_with_too_few_hidden_states_is_named():
    hidden_states = tuple(torch.zeros(1, 2, 4) for _ in range(3))
    with pytest.raises(ValueError, match=r"3 hidden states but none for layers \[3, 5\]"):
        gather_features(hidden_states, (1, 3, 5))


def test_entries_that_were_not_asked_for_may_be_missing():
    hidden_states = (None, torch.ones(1, 2, 4), None, torch.zeros(1, 2, 4))
    assert gather_features(hidden_states, (1, 3)).shape == (1, 2, 8)
    with pytest.raises(ValueError, match=r"none for layers \[2\]"):
        gather_features(hidden_states, (1, 2))
