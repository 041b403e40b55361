# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Whether the precision of a training is one that the device computes in."""

import torch
from accelerate import Accelerator
from transformers.utils import logging

from ..targets import inference_dtype

logger = logging.get_logger(__name__)


def warn_of_emulated_bfloat16(accelerator: Accelerator) -> None:
    """
    Warns where a training in mixed precision gains nothing and costs time: on a device without bfloat16 arithmetic
    every product is made in float32 and rounded (ours).

    Args:
        accelerator ([`~accelerate.Accelerator`]): Of the trainer.
    """
    device = accelerator.device
    if accelerator.mixed_precision == "bf16" and inference_dtype(device) != torch.bfloat16:
        logger.warning(
            f"`bf16=True`, but this {device.type.upper()} does not compute in bfloat16: products are emulated, which "
            "is slower than float32 and less precise. Set `bf16=False` (or `mixed_precision: no` in the accelerate "
            "configuration)."
        )
