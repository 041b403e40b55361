# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Run by `test_two_processes_take_the_step_of_one`, alone and under torchrun: trains and saves weights and metrics."""

import os
import sys
import tempfile

import torch

from ppow_hf.trainer import DrafterSFTTrainer
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import sft_args, token_rows


def main(path: str, batch_size: int) -> None:
    torch.set_num_threads(1)
    target = tiny_target()
    with tempfile.TemporaryDirectory() as folder:
        args = sft_args(
            folder,
            per_device_train_batch_size=batch_size,
            train_sampling_strategy="sequential",
            ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
            max_steps=4,
        )
        trainer = DrafterSFTTrainer(
            model=tiny_eagle3(target, draft_vocab_size=48),
            target_model=target,
            args=args,
            train_dataset=token_rows(),
            eval_dataset=token_rows(5, seed=1),
        )
        trainer.train()
        metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        weights = trainer.accelerator.unwrap_model(trainer.model_wrapped).state_dict()
        torch.save(
            {
                "weights": weights,
                "metrics": {
                    name: value for name, value in metrics.items() if not name.endswith(("time", "per_second"))
                },
                "num_processes": trainer.accelerator.num_processes,
            },
            path,
        )
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
