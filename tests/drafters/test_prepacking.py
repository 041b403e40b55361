# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import copy
import gc
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from ppow_hf.drafters import eagle3_step, is_prepacked, prepack_weights, prepacking, unpack_weights
from ppow_hf.drafters.prepacking import PrepackedLinear, can_prepack, current_blocks, keep_prepacked, multiply
from tests.testing_utils import tiny_eagle3, tiny_target

needs_bfloat16 = pytest.mark.skipif(
    not can_prepack(nn.Linear(4, 4).bfloat16()), reason="this CPU does not multiply bfloat16 matrices"
)


def layer(bias=True, width=96, out=160):
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias).bfloat16().requires_grad_(False)


def uses_blocks(linear, rows):
    """Whether a product is made of blocks, seen by spoiling them."""
    known = prepacking._BLOCKS[linear]
    spoilt = prepacking._blocks_of(torch.zeros_like(linear.weight))
    prepacking._BLOCKS[linear] = known._replace(blocks=spoilt)
    try:
        return not torch.equal(linear(rows), functional.linear(rows, linear.weight, linear.bias))
    finally:
        prepacking._BLOCKS[linear] = known


def test_upstream_still_has_the_operators():
    """Private to torch. If this fails, `ppow_hf/drafters/prepacking.py` has to follow."""
    schema = str(torch.ops.mkldnn._linear_pointwise.default._schema)
    assert schema.startswith("mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars,")
    schema = str(torch.ops.mkldnn._reorder_linear_weight.default._schema)
    assert schema.startswith("mkldnn::_reorder_linear_weight(Tensor self, int? batch_size=None)")
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)


@needs_bfloat16
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 7), (2, 3), (33,), (1, 300)])
def test_it_is_the_same_product(bias, shape):
    linear, rows = layer(bias), torch.randn(*shape, 96).bfloat16()
    usual = linear(rows)
    assert prepack_weights(linear) == 1
    found = linear(rows)
    assert uses_blocks(linear, rows)
    assert found.shape == usual.shape and found.dtype == usual.dtype
    # Two roundings of one sum, whose terms may have been added in another order.
    torch.testing.assert_close(found, usual, rtol=2**-7, atol=2**-9)


@needs_bfloat16
@pytest.mark.parametrize("bias", [False, True])
def test_one_vector(bias):
    linear, vector = layer(bias), torch.randn(96).bfloat16()
    wanted = multiply(linear, vector)
    prepack_weights(linear)
    torch.testing.assert_close(multiply(linear, vector), wanted)
    out = torch.empty(160, dtype=torch.bfloat16)
    assert multiply(linear, vector, out=out) is out
    torch.testing.assert_close(out, wanted)


@needs_bfloat16
def test_a_weight_that_is_not_what_it_was_takes_the_usual_way():
    rows = torch.randn(3, 96).bfloat16()

    def changed(change):
        linear = layer()
        prepack_weights(linear)
        assert is_prepacked(linear) and current_blocks(linear, rows) is not None
        change(linear)
        assert not is_prepacked(linear)
        inputs = rows.to(linear.weight.dtype)
        assert torch.equal(linear(inputs), functional.linear(inputs, linear.weight, linear.bias))
        return linear

    def replace(linear):
        linear.weight.data = torch.randn(160, 96).bfloat16()

    def assign(linear):
        linear.weight = nn.Parameter(torch.randn(160, 96).bfloat16(), requires_grad=False)

    def narrow(linear):
        linear.weight.data, linear.bias.data = linear.weight.data[:80], linear.bias.data[:80]

    written = changed(lambda linear: linear.weight.mul_(2))
    changed(lambda linear: linear.load_state_dict(nn.Linear(96, 160).bfloat16().state_dict()))
    changed(replace)
    changed(assign)
    changed(narrow)
    changed(lambda linear: linear.float())
    changed(lambda linear: linear.half())
    # And is prepacked again when asked.
    assert prepack_weights(written) == 1 and is_prepacked(written) and uses_blocks(written, rows)


@needs_bfloat16
def test_training_and_autocast_take_the_usual_way():
    linear = layer().requires_grad_(True)
    prepack_weights(linear)
    rows = torch.randn(3, 96).bfloat16()
    assert current_blocks(linear, rows) is None
    linear(rows).sum().backward()
    assert linear.weight.grad is not None
    with torch.no_grad():
        assert uses_blocks(linear, rows)
        with torch.autocast("cpu", torch.bfloat16):
            assert current_blocks(linear, rows) is None
            assert linear(rows.float()).dtype == torch.bfloat16
    frozen = layer()
    prepack_weights(frozen)
    assert current_blocks(frozen, rows.clone().requires_grad_()) is None


@needs_bfloat16
def test_copies_pickles_and_files_know_nothing_of_it(tmp_path):
    target = tiny_target().bfloat16()
    names, plain = list(target.state_dict()), target(torch.arange(8)[None]).logits
    assert prepack_weights(target) == sum(type(m) is PrepackedLinear for m in target.modules()) > 5
    assert list(target.state_dict()) == names
    for other in (copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        assert not is_prepacked(other) and is_prepacked(target)
        torch.testing.assert_close(other(torch.arange(8)[None]).logits, plain)
        assert prepack_weights(other) > 5
    target.save_pretrained(tmp_path)
    again = type(target).from_pretrained(tmp_path)
    assert not is_prepacked(again) and {type(m) for m in again.modules() if isinstance(m, nn.Linear)} == {nn.Linear}


@needs_bfloat16
def test_unpacking_leaves_what_was_there_and_frees_it():
    target = tiny_target().bfloat16()
    before = len(prepacking._BLOCKS)
    prepack_weights(target)
    assert len(prepacking._BLOCKS) > before
    unpack_weights(target)
    assert len(prepacking._BLOCKS) == before
    assert {type(m) for m in target.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    prepack_weights(target)
    del target
    gc.collect()
    assert len(prepacking._BLOCKS) == before


def test_other_layers_are_left_alone(monkeypatch):
    class Own(nn.Linear):
        pass

    hooked = nn.Linear(4, 4).bfloat16()
    hooked.forward = lambda x: x
    for module in (nn.Linear(4, 4), nn.Linear(4, 4).half(), Own(4, 4).bfloat16(), hooked, nn.Embedding(4, 4)):
        kind = type(module)
        assert prepack_weights(module) == 0 and type(module) is kind
    monkeypatch.setattr(prepacking, "cpu_computes_in_bfloat16", lambda: False)
    assert prepack_weights(layer()) == 0


@needs_bfloat16
def test_operators_that_give_other_products_are_not_used(monkeypatch):
    monkeypatch.setattr(prepacking, "_blocks_of", lambda weight: torch.ops.mkldnn._reorder_linear_weight(weight * 1.1))
    linear = layer()
    assert prepack_weights(linear) == 0 and type(linear) is nn.Linear

    def broken(*args):
        raise RuntimeError("no such kernel")

    for name in ("_blocks_of", "_multiply"):
        with monkeypatch.context() as patch:
            patch.setattr(prepacking, name, broken)
            assert prepack_weights(linear) == 0 and type(linear) is nn.Linear
    # Not tried for every call, but again when asked.
    monkeypatch.undo()
    keep_prepacked(linear)
    assert type(linear) is nn.Linear
    assert prepack_weights(linear) == 1


@needs_bfloat16
@pytest.mark.parametrize("window", ["fixed:3", "tree:5"])
def test_a_drafter_prepacks_itself_and_keeps_its_short_way(window):
    target = tiny_target().bfloat16()
    drafter = tiny_eagle3(target).bfloat16()
    prompt = torch.tensor([[5, 17, 3, 60, 9]])
    for module in (nn.ModuleList([drafter]), drafter):
        target.generate(prompt, assistant_model=drafter, window=window, max_new_tokens=4, do_sample=False)
        assert is_prepacked(drafter)
        module.train()
        assert not is_prepacked(drafter)
        drafter.eval()
    drafter.prepacks = False
    target.generate(prompt, assistant_model=drafter, window=window, max_new_tokens=4, do_sample=False)
    assert not is_prepacked(drafter)
    drafter.prepacks = True
    plain = target.generate(prompt, max_new_tokens=16, do_sample=False)
    output = target.generate(prompt, assistant_model=drafter, window=window, max_new_tokens=16, do_sample=False)
    assert is_prepacked(drafter) and not is_prepacked(target)
    assert eagle3_step.single_sequence_step(drafter) is not None
    assert output.shape == plain.shape
    single = tiny_eagle3(target)
    target.float()
    target.generate(prompt, assistant_model=single, window=window, max_new_tokens=4, do_sample=False)
    assert not is_prepacked(single)


@needs_bfloat16
@pytest.mark.parametrize("change", ["data", "fused"])
def test_changes_that_torch_does_not_count(change):
    linear, rows = layer().requires_grad_(True), torch.randn(3, 96).bfloat16()
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.5, fused=True)
    linear(rows).sum().backward()
    for prepack in (prepack_weights, keep_prepacked):
        prepack_weights(linear)
        if change == "data":
            linear.weight.data.mul_(-2)
        else:
            optimizer.step()
        prepack(linear)
        with torch.no_grad():
            usual = functional.linear(rows, linear.weight, linear.bias)
            torch.testing.assert_close(linear(rows), usual, rtol=2**-7, atol=2**-6)
            assert uses_blocks(linear, rows)


@needs_bfloat16
def test_what_is_laid_out_already_is_kept(monkeypatch):
    made = []
    original = prepacking._blocks_of
    monkeypatch.setattr(prepacking, "_blocks_of", lambda weight: made.append(1) or original(weight))
    linear = layer()
    for _ in range(3):
        keep_prepacked(linear)
    assert len(made) == 1
    prepack_weights(linear)
    assert len(made) == 2


@needs_bfloat16
@pytest.mark.parametrize("prepack", [prepack_weights, keep_prepacked])
def test_memory_does_not_outlive_its_use(prepack):
    linear = layer()
    prepack_weights(linear)
    linear.float()
    prepack(linear)
    assert linear not in prepacking._BLOCKS and type(linear) is nn.Linear


@needs_bfloat16
def test_generators_of_random_numbers_do_not_move():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    linear = nn.Linear(8, 8).bfloat16()
    torch.set_rng_state(state)
    prepack_weights(linear)
    assert torch.equal(torch.get_rng_state(), state)
