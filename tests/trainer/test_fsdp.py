# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A whole PPOW training with FSDP2: the drafter is sharded over two processes, and drafts and decodes all the same."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ppow_hf.trainer.sharding import check_sharding
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.distributed_fsdp import FAMILIES


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_sharded_processes_take_the_steps_of_one(family, tmp_path):
    script = Path(__file__).parent / "distributed_fsdp.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command, name in (([sys.executable], "one.pt"), (launcher, "two.pt")):
        command = [*command, str(script), str(tmp_path / name), family]
        done = subprocess.run(command, env=env, timeout=300, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert one["weights"].keys() == two["weights"].keys()
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=2e-5, rtol=1e-4, msg=name)
    assert len(one["rewards"]) == 3 and two["rewards"] == pytest.approx(one["rewards"], rel=1e-3, abs=1e-5)
    assert len(one["tau"]) == 2 and two["tau"] == pytest.approx(one["tau"])


def test_only_layers_that_are_there_are_named():
    target = tiny_target()
    assert set(tiny_eagle3(target)._no_split_modules) == {"Eagle3DecoderLayer"}
    both = tiny_eagle3(target, num_hidden_layers=2)._no_split_modules
    assert set(both) == {"Eagle3DecoderLayer", "Eagle3ExtraDecoderLayer"}
    assert tiny_eagle3(target).get_input_embeddings() is None
    own = tiny_eagle3(target, hidden_size=48)
    assert own.get_input_embeddings() is own.embed_tokens


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"fsdp_plugin": object()}, "FSDP version 1 .* `fsdp_version: 2`"),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "ZeRO stage 3 .* `zero_stage: 2`"),
    ],
)
def test_sharding_without_whole_weights_is_refused(state, said):
    with pytest.raises(ValueError, match=said):
        check_sharding(SimpleNamespace(state=SimpleNamespace(**state), is_fsdp2=False))


def test_other_sharding_is_not():
    for state in ({"fsdp_plugin": object()}, {"deepspeed_plugin": SimpleNamespace(zero_stage=2)}, {}):
        check_sharding(SimpleNamespace(state=SimpleNamespace(**state), is_fsdp2="fsdp_plugin" in state))
