# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How many rows of a vocabulary to work on at a time."""

import torch

# A GPU wants few launches of many rows; its caches are smaller than a row's vocabulary anyway. A loss makes a dozen
# tensors of a block's size: of a wide vocabulary fewer rows are taken at a time, 1 GiB of float32 at most.
ROWS_ON_GPU = 4096
_VALUES_ON_GPU = 2**28


def rows_per_block(device: torch.device, on_cpu: int, width: int) -> int:
    """
    Rows of logits that are widened, scored and differentiated together.

    Args:
        device (`torch.device`): Where the logits are.
        on_cpu (`int`): Rows that stay in a processor's cache with what is made of them.
        width (`int`): Tokens of the vocabulary.

    Returns:
        `int`: `on_cpu` on a CPU, and on anything else enough rows to fill it.
    """
    return on_cpu if device.type == "cpu" else max(on_cpu, min(ROWS_ON_GPU, _VALUES_ON_GPU // width))
