# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A drafter whose learned positions end before the target's drafts up to its last one; the target goes on alone."""

import pytest
import torch

from ppow_hf import CausalLMDrafter, CostModel, WindowConfig
from ppow_hf.generation.tree_config import TreeConfig
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

LAST = 24
TREE = TreeConfig(max_nodes=8, max_depth=4, branching=2)


@pytest.fixture(scope="module")
def pair():
    """A target, and a drafter that says the same as far as its positions go."""
    target, short = tiny_target("gpt2"), tiny_target("gpt2", max_position_embeddings=LAST)
    weights = {name: t[:LAST] if name.endswith("wpe.weight") else t for name, t in target.state_dict().items()}
    short.load_state_dict(weights)
    return target, CausalLMDrafter.from_causal_lm(short)


def test_positions_end_where_a_table_does():
    assert [tiny_causal_drafter(tiny_target(family)).max_positions for family in ("gpt2", "llama")] == [256, None]
    assert tiny_eagle3(tiny_target("gpt2")).max_positions is None


WINDOWS = {
    "chain": WindowConfig("fixed", size=4),
    "confidence": WindowConfig("confidence", threshold=0.0),
    "cost_aware": WindowConfig(),
    "mixed": WindowConfig(proposals="mixed", policy="fixed", size=4),
    "tree": WindowConfig("fixed", tree=TREE),
    "cost_aware tree": WindowConfig(tree=TREE),
    "mixed tree": WindowConfig("fixed", proposals="mixed", tree=TREE),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("length", [8, LAST - 1, LAST, LAST + 6])
def test_drafts_up_to_the_last_position(pair, name, length, store_costs):
    target, drafter = pair
    store_costs(target, drafter, gamma=0.01, slope=0.01)
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(2, 96, (1, length), generator=generator)
    places = []
    table = drafter.model.transformer.wpe
    handle = table.register_forward_pre_hook(lambda module, args: places.append(int(args[0].max())))
    options = {"max_new_tokens": 30, "do_sample": False}
    try:
        text = target.generate(ids, assistant_model=drafter, window=WINDOWS[name], **options)
    finally:
        handle.remove()
    assert torch.equal(text, target.generate(ids, **options))
    # To the first token behind the prompt the drafter needs a place, too.
    assert max(places, default=None) == (LAST - 1 if length < LAST else None)
    assert "mixed" in name or drafter.last_trace.cycles[-1].stop == "length"
    assert (drafter.last_trace.accepted > 0) == (length < LAST) or "mixed" in name


@pytest.mark.parametrize("window", ["fixed:4", WINDOWS["tree"]], ids=["chain", "tree"])
def test_padding_takes_no_position(pair, window):
    target, drafter = pair
    ids, mask = torch.tensor([[0] * 20 + [5, 17, 3, 60, 9, 44, 21, 8]]), torch.tensor([[0] * 20 + [1] * 8])
    options = {"max_new_tokens": 24, "do_sample": False, "attention_mask": mask}
    text = target.generate(ids, assistant_model=drafter, window=window, **options)
    assert torch.equal(text, target.generate(ids, **options)) and drafter.last_trace.accepted > 0


def test_costs_are_measured_within_its_positions(pair, cache_folder, prompt):
    target, drafter = pair
    cost_model = CostModel.measure(target, drafter, repetitions=1)
    assert cost_model.gamma > 0 and cost_model.overhead > 0 and len(cost_model.verify_curve) == 33
    options = {"max_new_tokens": 30, "do_sample": False}
    text = target.generate(prompt, assistant_model=drafter, window="cost_aware", **options)
    assert torch.equal(text, target.generate(prompt, **options)) and drafter.last_trace.cost is not None
    tiny = CausalLMDrafter.from_causal_lm(tiny_target("gpt2", max_position_embeddings=6))
    with pytest.raises(ValueError, match="`drafter` has 6 positions, too few to measure it"):
        CostModel.measure(target, tiny)
