# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How many rows had no room for a window."""

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class SkippedRows(TrainerCallback, ExportableState):
    """
    Counts rows over a whole training. The count is stored with checkpoints and goes on where a run is resumed
    (`restore_callback_states_from_checkpoint`).
    """

    def __init__(self):
        self.total = 0

    def state(self) -> dict:
        return {"args": {}, "attributes": {"total": self.total}}
