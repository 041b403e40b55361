# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Run under torchrun by `test_sharding.py`: drafting with a drafter whose weights are sharded by FSDP2."""

import copy
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ppow_hf.drafters import window_logits
from ppow_hf.trainer.sharding import WholeDrafter
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target


def windows_of(drafter, rank: int) -> torch.Tensor:
    """Every process draws as many steps as it likes: no collective may be needed."""
    input_ids = torch.arange(8)[None] + rank
    features = None
    if drafter.feature_layer_ids:
        width = len(drafter.feature_layer_ids) * drafter.config.target_hidden_size
        features = torch.linspace(-1, 1, 8 * width).view(1, 8, width)
    tokens = torch.arange(2 * (2 + rank)).view(1, 2, 1, 2 + rank)
    return torch.stack(window_logits(drafter, input_ids, features, torch.tensor([[3, 6]]), tokens))


def main(family: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    target = tiny_target()
    drafter = tiny_eagle3(target) if family == "eagle3" else tiny_causal_drafter(target)
    drafter.eval()
    plain = copy.deepcopy(drafter)
    plain.bind_target(target)
    whole = WholeDrafter(drafter, target)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in [module for module in drafter.modules() if type(module).__name__ in drafter._no_split_modules]:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(drafter, mesh=mesh)
    assert any(isinstance(parameter, DTensor) for parameter in drafter.parameters())
    with torch.no_grad():
        first = whole.refresh(drafter)
        assert torch.equal(windows_of(first, rank), windows_of(plain, rank))
        # A training step changes the shards; the copy follows.
        for sharded, parameter in zip(drafter.parameters(), plain.parameters(), strict=True):
            sharded.mul_(1.25)
            parameter.mul_(1.25)
        second = whole.refresh(drafter)
        assert second is first
        assert torch.equal(windows_of(second, rank), windows_of(plain, rank))
    assert all(isinstance(parameter, DTensor) for parameter in drafter.parameters()), "still sharded"
    dist.destroy_process_group()
    print(f"process {rank}: equal", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
