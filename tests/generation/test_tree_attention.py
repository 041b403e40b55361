# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""One pass over a tree gives what plain passes over its paths give, one path after another: targets and drafters."""

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ppow_hf import CausalLMDrafter
from ppow_hf.drafters.tree_columns import DraftColumns, check_croppable, keep_columns
from ppow_hf.generation.tree_attention import check_tree_target, tree_inputs
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

#          text
#        /      \
#       0        5
#      / \       |
#     1   3      6
#     |   |
#     2   4
PARENTS = [-1, 0, 1, 0, 3, -1, 5]
TOKENS = [11, 23, 42, 7, 42, 90, 11]
FULL_ATTENTION = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {},
    "mistral": {"sliding_window": None},
    "gemma3_text": {"layer_types": ["full_attention"] * 4},
    "gpt_neox": {},
    "gpt2": {},
    "phi3": {},
}


def path_to(node):
    path = []
    while node != -1:
        path.append(node)
        node = PARENTS[node]
    return path[::-1]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FULL_ATTENTION)
@torch.no_grad()
def test_a_tree_pass_is_its_paths(family, implementation, prompt):
    target = tiny_target(family, **FULL_ATTENTION[family])
    target.set_attn_implementation(implementation)
    for padding in (0, 3):
        padded = torch.cat([torch.zeros((1, padding), dtype=torch.long), prompt], dim=-1)
        mask = (torch.arange(padded.shape[1]) >= padding).long()[None]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=target.config)
        target(
            padded[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, :-1],
            past_key_values=cache,
            use_cache=True,
        )
        columns = padded.shape[1] - 1
        tree_mask, tree_positions = tree_inputs(
            PARENTS, prompt.shape[1] - 1, columns, mask[:, :-1] if padding else None, target
        )
        fed = torch.cat([padded[:, -1:], torch.tensor([TOKENS])], dim=-1)
        logits = target(
            fed, attention_mask=tree_mask, position_ids=tree_positions, past_key_values=cache, use_cache=True
        ).logits[0]
        for node in range(-1, len(TOKENS)):
            text = torch.cat([prompt, torch.tensor([[TOKENS[i] for i in path_to(node)]], dtype=torch.long)], dim=-1)
            plain = target(text, use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits[node + 1], plain, rtol=1e-5, atol=1e-5)
        # After the cache is cut to a path that was not in front, the text goes on as if there had been no tree.
        path = path_to(4)
        keep_columns(cache, columns, [0, *(node + 1 for node in path)])
        assert cache.get_seq_length() == columns + 1 + len(path)
        text = torch.cat([prompt, torch.tensor([[TOKENS[i] for i in path] + [5]])], dim=-1)
        seen = torch.cat([mask, torch.ones((1, len(path) + 1), dtype=torch.long)], dim=-1)
        logits = target(
            text[:, -1:],
            attention_mask=seen,
            position_ids=torch.tensor([[text.shape[1] - 1]]),
            past_key_values=cache,
            use_cache=True,
        ).logits[0, -1]
        torch.testing.assert_close(logits, target(text, use_cache=False).logits[0, -1], rtol=1e-5, atol=1e-5)


def test_a_chain_needs_no_mask():
    target = tiny_target("llama")
    mask, positions = tree_inputs([-1, 0, 1], 6, 6, None, target)
    assert mask is None and positions.tolist() == [[6, 7, 8, 9]]
    padding = torch.tensor([[0, 0, 1, 1, 1, 1]])
    mask, positions = tree_inputs([-1, 0, 1], 4, 6, padding, target)
    assert mask.tolist() == [[0, 0] + [1] * 8] and positions.tolist() == [[4, 5, 6, 7]]
    mask, positions = tree_inputs([-1, -1], 4, 6, padding, target)
    assert mask.shape == (1, 1, 3, 9) and mask.dtype == target.dtype and positions.tolist() == [[4, 5, 5]]
    assert set(mask.unique().tolist()) == {0.0, -torch.inf}
    assert (mask[0, 0] == 0).int().tolist() == [
        [0, 0, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1, 1, 0, 1],
    ]


def drafters():
    llama, sliding = tiny_target("llama"), tiny_target("gemma3_text")
    eager = tiny_causal_drafter(llama, 2)
    eager.model.set_attn_implementation("eager")
    eager_eagle = tiny_eagle3(llama)
    eager_eagle.config._attn_implementation = "eager"
    return {
        "eagle3": (llama, tiny_eagle3(llama)),
        "eagle3_two_layers": (llama, tiny_eagle3(llama, num_hidden_layers=2)),
        "eagle3_reduced": (llama, tiny_eagle3(llama, draft_vocab_size=48)),
        "eagle3_eager": (llama, eager_eagle),
        "causal": (llama, tiny_causal_drafter(llama, 2)),
        "causal_eager": (llama, eager),
        "causal_sliding": (sliding, CausalLMDrafter.from_causal_lm(sliding)),
    }


@pytest.mark.parametrize("name", drafters())
@torch.no_grad()
def test_a_level_is_its_nodes(name, prompt):
    """Three levels fed side by side against one `step` after another along every path, over two windows."""
    target, drafter = drafters()[name]
    drafter.bind_target(target)
    features = None
    states = target(prompt, output_hidden_states=True).hidden_states
    if drafter.feature_layer_ids:
        features = torch.cat([states[k] for k in drafter.feature_layer_ids], dim=-1)
    text = torch.cat([prompt, torch.tensor([[33]])], dim=-1)
    levels = [[0, 5], [1, 3, 6], [2, 4]]  # places of `TOKENS`
    state = drafter.new_state()
    drafter.extend(state, text, features)
    last = [-1]
    for nodes in levels:
        parents = [last.index(PARENTS[node]) for node in nodes]
        logits = drafter.step_tree(state, torch.tensor([TOKENS[node] for node in nodes]), parents)
        for row, node in enumerate(nodes):
            alone = drafter.new_state()
            drafter.extend(alone, text, features)
            for place in path_to(node):
                wanted = drafter.step(alone, torch.tensor([TOKENS[place]]))
            torch.testing.assert_close(logits[row], wanted[0], rtol=1e-5, atol=1e-5)
        last = nodes
    # The path 0, 3, 4 is accepted; it was fed as columns 0, 3 and 6.
    drafter.keep_path(state, [0, 3, 6])
    new = torch.tensor([[TOKENS[0], TOKENS[3], TOKENS[4], 20]])
    extra = features[:, :4] if features is not None else None
    logits = drafter.extend(state, new, extra, num_accepted=3)
    fresh = drafter.new_state()
    drafter.extend(fresh, text, features)
    wanted = drafter.extend(fresh, new, extra, num_accepted=0)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    assert state.committed == fresh.committed and state.tree is None and state.drafted == 0


def test_draft_columns():
    columns = DraftColumns()
    assert columns.add_level([0, 0]) == [[True, False], [False, True]]
    assert columns.add_level([1, 1, 0]) == [
        [False, True, True, False, False],
        [False, True, False, True, False],
        [True, False, False, False, True],
    ]
    assert columns.levels == [0, 0, 1, 1, 1] and columns.next_level == 2
    assert columns.add_level([2]) == [[True, False, False, False, True, True]]


def test_keep_columns_moves_what_stays():
    """The contract with transformers' cache: layers are DynamicLayers with `keys` and `values`, cropped by `crop`."""
    cache = DynamicCache()
    for layer in range(2):
        states = torch.arange(8.0).view(1, 1, 8, 1) + 100 * layer
        cache.update(states.clone(), states.clone() + 0.5, layer)
    assert all(type(layer) is DynamicLayer for layer in cache.layers)
    keep_columns(cache, 3, [0, 2, 4])
    for index, layer in enumerate(cache.layers):
        wanted = torch.tensor([0.0, 1, 2, 3, 5, 7]) + 100 * index
        assert torch.equal(layer.keys.flatten(), wanted) and torch.equal(layer.values.flatten(), wanted + 0.5)
    assert cache.get_seq_length() == 6
    keep_columns(cache, 4, [])
    assert cache.get_seq_length() == 4
    for wrong in ([1, 0], [0, 4], [-1, 0], [1, 1]):
        with pytest.raises(ValueError, match="ascending"):
            keep_columns(cache, 0, wrong)


def test_refused_targets():
    for family in ("mistral", "gemma2", "gemma3_text"):
        with pytest.raises(ValueError, match="sliding-window attention.*Leave `tree` out"):
            check_tree_target(tiny_target(family))
    with pytest.raises(ValueError, match="recurrent state"):
        check_tree_target(tiny_target("mamba", state_size=4))
    target = tiny_target("llama")
    target.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' takes no mask of ours"):
        check_tree_target(target)


def test_a_target_that_ignores_masks_is_refused():
    target = tiny_target("llama")
    forward = target.model.forward
    target.model.forward = lambda *args, **kwargs: forward(*args, **kwargs | {"attention_mask": None})
    with pytest.raises(ValueError, match="of their spread away from plain ones"):
        check_tree_target(target)


def test_a_trial_is_done_once_and_moves_no_generator():
    target = tiny_target("llama")
    before, calls = torch.get_rng_state(), []
    handle = target.register_forward_hook(lambda *args: calls.append(1))
    check_tree_target(target)
    assert torch.equal(torch.get_rng_state(), before) and calls
    count = len(calls)
    check_tree_target(target)
    handle.remove()
    assert len(calls) == count


def test_a_target_in_training_mode_is_tried_without_dropout():
    """Two passes with dropout differ whatever the mask. Decoding may have it all the same, as plain `generate` may."""
    target = tiny_target("llama", attention_dropout=0.5)
    target.train()
    target.model.layers[1].eval()
    modes = [module.training for module in target.modules()]
    check_tree_target(target)
    assert [module.training for module in target.modules()] == modes
    target.eval()
    check_tree_target(target)


def test_a_trial_that_broke_off_is_tried_again():
    target = tiny_target("llama")
    target.train()

    def out_of_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = target.model.layers[2].register_forward_pre_hook(out_of_memory)
    for _ in range(2):
        match = "broke off with OutOfMemoryError: CUDA out of memory.*Leave `tree` out.*the next call tries again"
        with pytest.raises(ValueError, match=match):
            check_tree_target(target)
    assert all(module.training for module in target.modules())
    handle.remove()
    check_tree_target(target)


def test_other_caches_are_refused(prompt):
    target = tiny_target("gemma3_text")
    cache = DynamicCache(config=target.config)
    target(prompt, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="DynamicSlidingWindowLayer.*`cache_implementation`"):
        check_croppable(cache)
