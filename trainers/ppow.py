# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
PPOW stage of a drafter, for `accelerate launch` (on one process, `ppow train` does the same).

    accelerate launch --config_file trainers/accelerate/fsdp_8gpu.yaml trainers/ppow.py \
        --config trainers/configs/ppow_8b_8gpu.yaml
"""

from ppow_hf.scripts.command_line import errors_in_one_line
from ppow_hf.scripts.train_ppow import main, make_parser

if __name__ == "__main__":
    with errors_in_one_line():
        main(*make_parser().parse_args_and_config())
