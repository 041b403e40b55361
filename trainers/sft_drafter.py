# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Supervised stage of a drafter, for `accelerate launch` (on one process, `ppow sft` does the same).

    accelerate launch --num_processes 8 trainers/sft_drafter.py --target Qwen/Qwen3-8B --responses runs/responses \
        --draft_vocab_size 32000 --output_dir runs/sft
"""

from ppow_hf.scripts.command_line import errors_in_one_line
from ppow_hf.scripts.sft_drafter import main, make_parser

if __name__ == "__main__":
    with errors_in_one_line():
        main(*make_parser().parse_args_and_config())
