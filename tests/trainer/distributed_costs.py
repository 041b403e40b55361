# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Run by `test_all_processes_go_by_the_costs_of_the_first` under torchrun: writes the costs that a process goes by."""

import os
import sys
from pathlib import Path

import torch

from ppow_hf import CostModel
from ppow_hf.generation.stored_costs import cost_model_key
from ppow_hf.targets import cache_dir
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.ppow_common import QUIET, ppow_trainer


def main(folder: str) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    # As on machines of their own, which differ.
    os.environ["PPOW_HF_CACHE"] = f"{folder}/cache-{rank}"
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48)
    CostModel(gamma=0.25 + rank, key=cost_model_key(target, drafter)).save(cache_dir())
    trainer = ppow_trainer(folder, drafter, target, cost_ratio="measured", ddp_backend="gloo", **QUIET)
    assert trainer.accelerator.num_processes == 2
    Path(folder, f"gamma-{rank}").write_text(str(trainer.cost_model.gamma))
    # One that leaves while the other still talks to it takes gloo's threads down with an abort.
    trainer.accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
