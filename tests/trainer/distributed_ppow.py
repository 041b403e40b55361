# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Run by `test_two_processes_take_the_step_of_one`, alone and under torchrun: trains and saves weights and metrics."""

import os
import sys
import tempfile

import torch

from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.ppow_common import RowByRow, equal_length_rows, ppow_trainer


def main(path: str, batch_size: int) -> None:
    torch.set_num_threads(1)
    target = tiny_target()
    with tempfile.TemporaryDirectory() as folder:
        trainer = ppow_trainer(
            folder,
            tiny_eagle3(target, draft_vocab_size=48),
            target,
            equal_length_rows(),
            token_rows(3, seed=1),
            per_device_train_batch_size=batch_size,
            train_sampling_strategy="sequential",
            ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
            max_steps=4,
            num_iterations=2,
            num_windows=6,
            anchor_weight=0.2,
            proximity_epsilon=8.0,
            expected_length_weight=0.1,
            kl_weighting="reach",
        )
        # Windows by row, not by process; all that is summed and divided over processes stays the trainer's.
        trainer.experience_maker = RowByRow(trainer.experience_maker)
        trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    kept = [{k: v for k, v in log.items() if "second" not in k and k != "epoch"} for log in logs]
    if trainer.is_world_process_zero():
        weights = trainer.accelerator.unwrap_model(trainer.model_wrapped).state_dict()
        torch.save({"weights": weights, "logs": kept, "num_processes": trainer.accelerator.num_processes}, path)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
