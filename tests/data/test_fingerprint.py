# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import hashlib

import pytest
import torch

from ppow_hf.data.fingerprint import source_sha256, weights_fingerprint
from tests.testing_utils import tiny_target


def test_equal_weights_have_equal_fingerprints():
    assert weights_fingerprint(tiny_target()) == weights_fingerprint(tiny_target())
    assert weights_fingerprint(tiny_target()) != weights_fingerprint(tiny_target(seed=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_anywhere_is_seen(dtype):
    target = tiny_target().to(dtype)
    found = {weights_fingerprint(target)}
    weight = target.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[-1, -1] += 0.25  # far behind the first row
        found.add(weights_fingerprint(target))
        target.model.norm.weight.mul_(2)
        found.add(weights_fingerprint(target))
        target.model.layers[0].mlp.up_proj.weight[:2] = target.model.layers[0].mlp.up_proj.weight[:2].flip(0)
        found.add(weights_fingerprint(target))
    assert len(found) == 4


def test_dtype_and_name_count():
    target = tiny_target()
    names = {weights_fingerprint(target), weights_fingerprint(target.bfloat16())}
    names.add(weights_fingerprint(target.model))
    assert len(names) == 3


def test_it_does_not_depend_on_the_number_of_threads():
    layer = torch.nn.Linear(700, 700)
    found = set()
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(weights_fingerprint(layer))
    torch.set_num_threads(before)
    assert len(found) == 1


def test_source_sha256(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    file = tmp_path / "a" / "deep" / "x.txt"
    file.write_bytes(b"abc")
    assert source_sha256(file) == hashlib.sha256(b"abc").hexdigest()
    assert source_sha256("org/dataset") is None
    before = source_sha256(tmp_path / "a")
    assert len(before) == 64
    file.rename(file.with_name("y.txt"))
    renamed = source_sha256(tmp_path / "a")
    file.with_name("y.txt").write_bytes(b"abd")
    assert len({before, renamed, source_sha256(tmp_path / "a")}) == 3
