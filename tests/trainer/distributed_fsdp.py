# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Run by `test_fsdp.py`, alone and under torchrun: PPOW training with the drafter sharded by accelerate's FSDP2."""

import os
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from ppow_hf import AutoDrafter, PPOWTrainer
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.ppow_common import RowByRow, equal_length_rows, ppow_args

FAMILIES = {
    "eagle3": lambda target: tiny_eagle3(target, draft_vocab_size=48),
    "eagle3_two_layers": lambda target: tiny_eagle3(target, num_hidden_layers=2, hidden_size=48),
    "causal_lm_tied": lambda _: tiny_causal_drafter(tiny_target(tie_word_embeddings=True)),
}


def shard_on_cpu() -> None:
    """What `accelerate launch` with `fsdp_8gpu.yaml` sets up on GPUs; accelerate itself leaves FSDP out on a CPU."""
    state = Accelerator(cpu=True).state
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=False,
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )


def main(path: str, family: str) -> None:
    torch.set_num_threads(1)
    sharded = "WORLD_SIZE" in os.environ
    target = tiny_target()
    with tempfile.TemporaryDirectory() as own:
        folder = f"{path}.run" if sharded else own  # one folder for all processes
        args = ppow_args(
            folder,
            per_device_train_batch_size=2 if sharded else 4,
            train_sampling_strategy="sequential",
            ddp_backend="gloo" if sharded else None,
            max_steps=3,
            num_windows=6,
            anchor_weight=0.2,
            eval_strategy="steps",
            eval_steps=3,
        )
        if sharded:
            assert args.world_size == 2  # looked up before the state is changed, which it would begin anew
            shard_on_cpu()
        trainer = PPOWTrainer(FAMILIES[family](target), target, args, equal_length_rows(), token_rows(3, seed=1))
        trainer.experience_maker = RowByRow(trainer.experience_maker)
        trainer.train()
        parameters = list(trainer.model.parameters())
        assert all(isinstance(parameter, DTensor) for parameter in parameters) == sharded
        trainer.save_model(str(Path(folder) / "saved"))
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            logs = [log["reward"] for log in trainer.state.log_history if "reward" in log]
            tau = [log["eval_acceptance_length"] for log in trainer.state.log_history if "eval_runtime" in log]
            weights = AutoDrafter.from_pretrained(Path(folder) / "saved").state_dict()
            torch.save({"weights": weights, "rewards": logs, "tau": tau}, path)
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
