# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What reward functions are given beside the facts about windows, in `GRPOTrainer`'s convention: texts and a log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..rl import SelectedWindows
from .weighted_means import WeightedMeans
from .window_metrics import Metrics

logger = logging.get_logger(__name__)

_TENSORS = ("input_ids", "attention_mask", "loss_mask")


def texts_of_windows(
    inputs: dict[str, Any],
    selected: SelectedWindows,
    tokens: torch.LongTensor,
    mask: torch.Tensor,
    group_size: int,
    processing_class: PreTrainedTokenizerBase | None,
) -> dict[str, list]:
    """
    What only reward functions of the user's read: text, and the other columns of the dataset.

    Args:
        inputs (`dict`): The batch.
        selected ([`SelectedWindows`]): Starts of the windows.
        tokens, mask (`torch.Tensor` of shape `(N, K)`): Draft tokens, and which positions were drafted.
        group_size (`int`): Windows per start.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): The target's tokenizer.

    Returns:
        `dict[str, list]`: One entry per window; `prompts` and `completions` with a tokenizer only.
    """
    rows = selected.mask.nonzero()[:, 0].tolist()
    rows = [row for row in rows for _ in range(group_size)]
    texts = {name: [values[row] for row in rows] for name, values in inputs.items() if name not in _TENSORS}
    if processing_class is not None:
        starts = selected.starts[selected.mask].tolist()
        starts = [start for start in starts for _ in range(group_size)]
        prompts = [inputs["input_ids"][row, :start] for row, start in zip(rows, starts, strict=True)]
        texts["prompts"] = processing_class.batch_decode(prompts)
        windows = [row[keep] for row, keep in zip(tokens, mask, strict=True)]
        texts["completions"] = processing_class.batch_decode(windows)
    return texts


class RewardLog:
    """
    What reward functions log themselves, through the `log_metric` and `log_extra` that `GRPOTrainer` passes.

    Attributes:
        extra (`dict[str, list]`): Columns given to `log_extra`, one value per window of this process in the order in
            which they were rewarded, of the optimiser step at hand. `GRPOTrainer` prints them in its table of
            completions; here there is none, and callbacks read them (`trainer.reward_log.extra`).
    """

    def __init__(self):
        self.extra: dict[str, list] = {}
        self._metrics: Metrics = {}
        self._means = WeightedMeans()

    def log_metric(self, name: str, value: float) -> None:
        """
        Args:
            name (`str`): Name in the log of the training.
            value (`float`): A number about this batch; the log has its mean over batches and processes.
        """
        total, count = self._metrics.get(name, (0.0, 0.0))
        self._metrics[name] = (total + float(value), count + 1.0)

    def log_extra(self, column: str, values: list) -> None:
        """
        Args:
            column (`str`): Name of the column.
            values (`list`): One value per window.
        """
        self.extra.setdefault(column, []).extend(values)

    def take_metrics(self) -> Metrics:
        """Sums and counts of this process since they were last taken."""
        taken, self._metrics = self._metrics, {}
        return taken

    def add(self, metrics: Metrics) -> None:
        """
        Args:
            metrics (`dict[str, tuple[float, float]]`): What [`take_metrics`] gave, over all processes.
        """
        self._means.add(metrics)

    def take_means(self, is_own: Callable[[str], bool]) -> dict[str, float]:
        """
        Args:
            is_own (`Callable[[str], bool]`): Whether a name is that of a metric of the trainer's own, which stays.

        Returns:
            `dict[str, float]`: Means of what was added since they were last taken.
        """
        means = self._means.take()
        for name in filter(is_own, means):
            logger.warning_once(f"`log_metric` was given {name!r}, which the trainer logs itself. Use another name.")
        return {name: value for name, value in means.items() if not is_own(name)}
