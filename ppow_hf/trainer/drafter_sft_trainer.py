# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The supervised stage: a drafter learns its target's distributions, several draft steps deep."""

from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from ..attention_kernels import attention_of_any_shape
from ..drafters import DrafterModel
from .drafter_sft_config import DrafterSFTConfig
from .drafter_trainer import DrafterTrainer
from .feature_cache import FeatureCache
from .positions import learned_positions
from .precision_check import warn_of_emulated_bfloat16
from .start_checks import check_configuration
from .step_scoring import StepScoring
from .target_pass import TargetPass
from .text_checks import check_learnable, check_texts

_ROW_ID = "ppow_row_id"


class DrafterSFTTrainer(DrafterTrainer):
    """
    Trainer of a drafter's supervised initialisation (EAGLE-3 training-time test, arXiv 2503.01840; soft targets).

    Example:

    ```python
    >>> from ppow_hf import DrafterSFTConfig, DrafterSFTTrainer, Eagle3Drafter

    >>> drafter = Eagle3Drafter.from_target(target, draft_token_ids=draft_token_ids)
    >>> trainer = DrafterSFTTrainer(
    ...     model=drafter,
    ...     target_model=target,
    ...     args=DrafterSFTConfig(output_dir="my-drafter", ttt_steps=3),
    ...     train_dataset=dataset,  # columns input_ids and loss_mask, as written by `ppow data`
    ...     processing_class=tokenizer,
    ... )
    >>> trainer.train()
    ```

    Args:
        model ([`DrafterModel`]): The drafter to train.
        target_model ([`~transformers.PreTrainedModel`]): The frozen target.
        args ([`DrafterSFTConfig`], *optional*): Configuration.
        train_dataset ([`~datasets.Dataset`]): Rows with `input_ids` and `loss_mask` (1 on the target's own tokens).
        eval_dataset ([`~datasets.Dataset`], *optional*): Held-out rows of the same form. Their prompts are decoded
            for real, which gives `eval_acceptance_length` (tau, bonus token included).
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): The target's tokenizer.
        callbacks (`list[TrainerCallback]`, *optional*): Further callbacks.
        optimizers (`tuple`, *optional*): Optimizer and scheduler, as for [`~transformers.Trainer`].
    """

    stage = "supervised"
    # By the window starts of the whole optimiser step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: DrafterModel,
        target_model: PreTrainedModel,
        args: DrafterSFTConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ):
        args = args if args is not None else DrafterSFTConfig("drafter-sft")
        check_configuration(args, DrafterSFTConfig, type(self).__name__)
        if args.feature_cache_dir is not None and isinstance(train_dataset, IterableDataset):
            raise ValueError(
                "`feature_cache_dir` keeps the states of every row of `train_dataset`, which is streamed: its rows "
                "have no number. Give a `Dataset`, or train without `feature_cache_dir`."
            )
        number_rows = args.feature_cache_dir is not None and isinstance(train_dataset, Dataset)
        fingerprint = train_dataset._fingerprint if number_rows else None
        if number_rows:
            train_dataset = train_dataset.add_column(_ROW_ID, range(len(train_dataset)))
        super().__init__(
            model,
            target_model,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            callbacks,
            optimizers,
            kept_columns=(_ROW_ID,),
        )
        warn_of_emulated_bfloat16(self.accelerator)
        counts = {"target": learned_positions(self.target_model), "drafter": learned_positions(model)}
        positions = {name: count for name, count in counts.items() if count is not None}
        check_texts(self, self.target_model, positions, positions)
        if isinstance(self.train_dataset, Dataset):
            check_learnable(self.train_dataset, args.max_length)
        self.ttt_steps = min(args.ttt_steps, model.max_ttt_steps)
        cache = None
        if number_rows:
            cache = FeatureCache(
                args.feature_cache_dir,
                [len(ids) for ids in train_dataset["input_ids"]],
                self.target_model,
                model.feature_layer_ids,
                fingerprint,
                args.max_length,
            )
        self.target_pass = TargetPass(self.target_model, model, cache)

    def fill_feature_cache(self) -> int:
        """
        Runs the target on all rows that the feature cache does not hold yet, rows of like length together
        (`per_device_eval_batch_size`). Trainings that share the folder then never run its layers: worth it where there
        are several. May be stopped and started again. Source: ours.

        Returns:
            `int`: Rows that this process ran it on.

        Raises:
            ValueError: Without `feature_cache_dir` or `train_dataset`.
        """
        cache = self.target_pass.cache
        if cache is None:
            raise ValueError("There is no cache to fill: set `feature_cache_dir`, and give a `train_dataset`.")
        row_ids = [int(row) for row in self.train_dataset[_ROW_ID]]
        missing = [index for index, row in enumerate(row_ids) if not cache.filled[row]]
        missing.sort(key=lambda index: cache.offsets[row_ids[index] + 1] - cache.offsets[row_ids[index]])
        mine = missing[self.accelerator.process_index :: self.accelerator.num_processes]
        size = self.args.per_device_eval_batch_size
        bar = tqdm(total=len(mine), desc="features", unit="row", disable=not self.is_world_process_zero())
        with bar, attention_of_any_shape():
            for first in range(0, len(mine), size):
                part = mine[first : first + size]
                batch = self._prepare_inputs(self.data_collator([self.train_dataset[index] for index in part]))
                self.target_pass.fill_cache(batch["input_ids"], batch["attention_mask"], batch[_ROW_ID])
                bar.update(len(part))
        self.accelerator.wait_for_everyone()
        return len(mine)

    # ---- loss ------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """Window starts of one optimiser step, over its micro-batches and all processes."""
        counts = [self._columns_of(batch)[0].sum() for batch in batch_samples]
        count = torch.stack(counts).sum().to(device) if counts else torch.zeros((), dtype=torch.long, device=device)
        return self.accelerator.reduce(count, reduction="sum")

    def _columns_of(self, inputs: dict[str, Any]) -> torch.Tensor:
        loss_mask = inputs["loss_mask"].bool() & inputs["attention_mask"].bool()
        return scored_columns(loss_mask, self.model.prediction_offset, self.ttt_steps)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        total, scoring = self._score(model, inputs)
        by_text = torch.stack([torch.stack(list(sums.values())) for sums in scoring.sums]).movedim(-1, 0)
        table = self._sum_over_texts(by_text).T.tolist()
        sums = dict(zip(scoring.sums[0], table, strict=True))
        rewards = scoring.window_rewards
        reward = None if rewards is None else float(self._sum_over_texts(rewards))
        figures = self._figures(sums, reward)
        if self.model.training:
            self._check_finite(figures)
        self._metrics["train" if self.model.training else "eval"].add(figures)
        starts = sums["count"][0] if num_items_in_batch is None else float(num_items_in_batch)
        # Gradients are averaged over processes, so the share of this one is scaled up by their number: two processes
        # with half a batch each take the very step one process takes with the whole.
        loss = total * self.accelerator.num_processes / max(starts, 1.0)
        return (loss, {}) if return_outputs else loss

    def _score(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, StepScoring]:
        """The loss of a batch, summed over its window starts, and the figures of its texts."""
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
        loss_mask = inputs["loss_mask"].bool() & attention_mask.bool()
        columns = self._columns_of(inputs)
        positions = predicting_positions(loss_mask)
        features, teacher = self.target_pass(input_ids, attention_mask, positions, inputs.get(_ROW_ID))
        if self.model.training:
            self.training_cost.add(attention_mask.sum())
        teacher_row = (positions.flatten().cumsum(0) - 1).view_as(positions)

        scoring = StepScoring(self.model, self.args, input_ids, columns, teacher, teacher_row)
        output = model(
            input_ids=input_ids,
            target_features=features,
            attention_mask=attention_mask,
            ttt_steps=self.ttt_steps,
            column_mask=columns,
            score=scoring,
        )
        return scoring.total(output.scores), scoring

    def _sum_over_texts(self, values: torch.Tensor) -> torch.Tensor:
        """Sums `(batch, ...)` over the texts of all processes."""
        if self.model.training:
            return self.accelerator.reduce(values.sum(0), reduction="sum")
        # The last batch is filled up with texts seen before, so that every process has one: those do not count again.
        return self.accelerator.gather_for_metrics(values.contiguous()).sum(0)

    def _figures(self, sums: dict[str, list[float]], reward: float | None) -> dict[str, tuple[float, float]]:
        """Sums and counts of what is logged; `sums` has one entry per step."""
        starts = sums["count"][0]
        figures = {"simulated_acceptance_length": (starts + sum(sums["chain"]), starts)}
        for k, count in enumerate(sums["count"]):
            figures[f"step_{k}/loss"] = (sums["loss"][k], count)
            figures[f"step_{k}/accuracy"] = (sums["correct"][k], count)
            figures[f"step_{k}/expected_acceptance"] = (sums["acceptance"][k], count)
        total = sum(self.args.step_loss_decay**k * loss for k, loss in enumerate(sums["loss"]))
        total = self.args.distillation_weight * total
        if reward is not None:
            figures["window_reward"] = (reward, starts)
            total = total - self.args.window_reward_weight * reward
        if not self.model.training:
            # `Trainer` would take the mean of the batches' own.
            figures["loss"] = (total, starts)
        return figures

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None


def predicting_positions(loss_mask: torch.Tensor) -> torch.Tensor:
    """
    Positions at which the target predicts a token it wrote: position `t` gives the distribution of token `t + 1`.

    Args:
        loss_mask (`torch.Tensor` of shape `(batch, length)`, bool): Tokens the target wrote.

    Returns:
        `torch.Tensor` of shape `(batch, length)`, bool.
    """
    positions = torch.zeros_like(loss_mask)
    positions[:, :-1] = loss_mask[:, 1:]
    return positions


def scored_columns(loss_mask: torch.Tensor, prediction_offset: int, ttt_steps: int) -> torch.Tensor:
    """
    Which columns each training-time-test step learns from: those whose whole window so far lies in the target's text.

    Args:
        loss_mask (`torch.Tensor` of shape `(batch, length)`, bool): Tokens the target wrote.
        prediction_offset (`int`): Column `i` of step `k` predicts the token at `i + prediction_offset + k`.
        ttt_steps (`int`): Number of steps.

    Returns:
        `torch.Tensor` of shape `(ttt_steps, batch, length)`, bool.
    """
    length = loss_mask.shape[1]
    padded = nn.functional.pad(loss_mask, (0, prediction_offset + ttt_steps))
    columns = [padded[:, prediction_offset : prediction_offset + length]]
    for k in range(1, ttt_steps):
        columns.append(columns[-1] & padded[:, prediction_offset + k : prediction_offset + k + length])
    return torch.stack(columns)
