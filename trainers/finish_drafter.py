# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Calibrates a trained drafter and writes the folder to share: see `ppow_hf/scripts/finish_drafter.py`."""

from trl import TrlParser

from ppow_hf.scripts.command_line import errors_in_one_line
from ppow_hf.scripts.finish_drafter import FinishArguments, main

if __name__ == "__main__":
    with errors_in_one_line():
        main(*TrlParser((FinishArguments,)).parse_args_and_config())
