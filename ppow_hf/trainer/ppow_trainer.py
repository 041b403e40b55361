# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The reinforcement-learning stage: a drafter is trained on the speculative window (PPOW, arXiv 2605.14978)."""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from ..drafters import DrafterModel
from ..generation import CostModel
from ..generation.call_checks import eos_token_ids_of
from ..rl import (
    ProximityReward,
    WindowSchedule,
    eligible_starts,
    measured_speedup_reward,
    speedup_reward,
    target_kl,
)
from .drafter_trainer import DrafterTrainer
from .ppow_config import PPOWConfig
from .ppow_sampler import IterationSampler
from .window_experience import Experience, ExperienceMaker, window_mask_of
from .window_loss import WindowLoss, blockwise_loss

RewardFunc = Callable[..., list]

_PHASES = ("target", "selection", "rollout", "verification", "update")


class PPOWTrainer(DrafterTrainer):
    """
    Trainer of a drafter on groups of speculative windows (PPOW, arXiv 2605.14978).

    For every batch of texts one target pass gives the target's distributions and features; window starts are chosen
    by criticality (ADAW); the drafter rolls out `num_generations` windows from each start in one batch; one packed
    target pass verifies them all; rewards become group-relative advantages, and the drafter takes PPO steps on its
    draft tokens with a KL divergence to the target as the anchor.

    Example:

    ```python
    >>> from ppow_hf import AutoDrafter, PPOWConfig, PPOWTrainer

    >>> trainer = PPOWTrainer(
    ...     model=AutoDrafter.from_pretrained("my-supervised-drafter"),
    ...     target_model=target,
    ...     args=PPOWConfig(output_dir="my-drafter"),
    ...     train_dataset=dataset,  # columns input_ids and loss_mask, as written by `ppow data`
    ...     processing_class=tokenizer,
    ... )
    >>> trainer.train()
    ```

    Args:
        model ([`DrafterModel`]): The drafter, after its supervised stage.
        target_model ([`~transformers.PreTrainedModel`]): The frozen target.
        args ([`PPOWConfig`], *optional*): Configuration.
        train_dataset ([`~datasets.Dataset`]): Rows with `input_ids` and `loss_mask` (1 on the target's own tokens).
        eval_dataset ([`~datasets.Dataset`], *optional*): Held-out rows. Their prompts are decoded for real, which
            gives `eval_acceptance_length` (tau, bonus token included) and `eval_speedup_predicted`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): The target's tokenizer.
        reward_funcs (`Callable` or `list[Callable]`, *optional*): Reward functions in `GRPOTrainer`'s calling
            convention, see [`~ppow_hf.rl.rewards`]. By default the paper's speedup and proximity rewards; with
            `cost_ratio="measured"` gamma comes from the cost model.
        cost_model ([`CostModel`], *optional*): Measured costs. By default found beside the drafter or measured, if
            `cost_ratio` or a reward function needs it.
        callbacks (`list[TrainerCallback]`, *optional*): Further callbacks.
        optimizers (`tuple`, *optional*): Optimizer and scheduler, as for [`~transformers.Trainer`].
    """

    _tag_names = ["ppow-hf", "ppow", "speculative-decoding", "drafter"]

    def __init__(
        self,
        model: DrafterModel,
        target_model: PreTrainedModel,
        args: PPOWConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        cost_model: CostModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ):
        args = args if args is not None else PPOWConfig("ppow-drafter")
        if args.num_iterations > 1 and args.save_strategy == "steps" and args.save_steps % args.num_iterations:
            raise ValueError(
                f"`save_steps` ({args.save_steps}) must be a multiple of `num_iterations` ({args.num_iterations}), in "
                "steps: a run can only be resumed exactly where new rollouts begin."
            )
        if args.eval_on_start and eval_dataset is None:
            # A copy: the caller's configuration stays as it was given.
            args = copy.copy(args)
            args.eval_on_start = False
        super().__init__(
            model,
            target_model,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            callbacks,
            optimizers,
            kept_columns=None if reward_funcs is not None else (),
        )
        if train_dataset is not None:
            _check_some_eligible(train_dataset, args)
        if reward_funcs is None:
            reward_funcs = [speedup_reward]
            if args.proximity_eta:
                reward_funcs.append(ProximityReward(args.proximity_eta, args.proximity_epsilon))
        self.reward_funcs = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        if args.reward_weights is not None and len(args.reward_weights) != len(self.reward_funcs):
            raise ValueError(
                f"`reward_weights` has {len(args.reward_weights)} entries for {len(self.reward_funcs)} reward "
                "functions; give one each."
            )
        if cost_model is None and (args.cost_ratio == "measured" or measured_speedup_reward in self.reward_funcs):
            cost_model = CostModel.for_models(self.target_model, model)
        self.cost_model = cost_model
        self.experience_maker = ExperienceMaker(
            self.target_model,
            args,
            self.reward_funcs,
            cost_model,
            processing_class,
            eos_token_ids_of(self.target_model.generation_config),
        )
        self._schedule: WindowSchedule | None = None
        # Which micro-batch of which optimiser step is running.
        self._micro_step, self._last_step = 0, -1
        self._buffer: dict[int, Experience] = {}

    # ---- batches ---------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset | None = None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if dataset is None or self.args.num_iterations == 1:
            return super()._get_train_sampler(dataset)
        # Every optimiser step's rows come again for each iteration on their rollouts.
        return IterationSampler(
            len(dataset),
            self.args.train_batch_size * self.accelerator.num_processes * self.args.gradient_accumulation_steps,
            self.args.num_iterations,
            current_step=lambda: self.state.global_step,
            shuffle=self.args.train_sampling_strategy != "sequential",
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> torch.Tensor:
        if self.state.global_step != self._last_step:
            self._last_step, self._micro_step = self.state.global_step, 0
        maker = self.experience_maker
        before = sum(maker.seconds.values())
        start = time.perf_counter()
        loss = super().training_step(model, inputs, *args, **kwargs)
        made = sum(maker.seconds.values()) - before
        maker.seconds["update"] = maker.seconds.get("update", 0.0) + time.perf_counter() - start - made
        self._micro_step += 1
        return loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> Any:
        inputs = super()._prepare_inputs(inputs)
        if not self.model.training:
            return inputs
        fresh = self.state.global_step % self.args.num_iterations == 0
        if fresh or self._micro_step not in self._buffer:
            self._buffer[self._micro_step] = self._generate_and_score_completions(inputs)
        return self._buffer[self._micro_step]

    def _generate_and_score_completions(self, inputs: dict[str, Any]) -> Experience:
        """One target pass, windows chosen, rolled out, verified and rewarded."""
        if self._schedule is None:
            self._schedule = WindowSchedule(
                self.args.window_selection, self.args.adaw_warmup, total_steps=self.state.max_steps
            )
        law = self._schedule.law(self.state.global_step)
        step = self.state.global_step * self.args.gradient_accumulation_steps + self._micro_step
        # Drawn from the step, not from a stream: a resumed run sees the very same windows.
        draw = step * self.accelerator.num_processes + self.accelerator.process_index
        seed = 2 * (self.args.seed * 1_000_003 + draw)
        with self._unwrapped() as drafter:
            was_training = drafter.training
            drafter.eval()
            experience = self.experience_maker(
                drafter,
                inputs,
                law=law,
                seed=seed,
                # The mixed precision of the training pass, which accelerate puts around `forward` alone.
                precision=self.accelerator.autocast,
            )
            drafter.train(was_training)
        experience.metrics["adaw"] = (float(law == "adaw"), 1.0)
        self._collect(experience.metrics)
        return experience

    def _unwrapped(self) -> AbstractContextManager[DrafterModel]:
        """The drafter with whole weights, also where they are sharded over processes."""
        if not self.is_deepspeed_enabled:
            return nullcontext(self._whole_drafter())
        from trl.models import unwrap_model_for_generation

        return unwrap_model_for_generation(self.model_wrapped, self.accelerator)

    # ---- loss ------------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not isinstance(inputs, Experience):
            raise ValueError("PPOWTrainer has no loss on held-out rows: it evaluates by decoding their prompts.")
        loss, metrics = self._compute_loss(model, inputs)
        self._collect(metrics)
        return (loss, {}) if return_outputs else loss

    def _compute_loss(
        self, model: nn.Module, experience: Experience
    ) -> tuple[torch.Tensor, dict[str, tuple[float, float]]]:
        args, mask = self.args, experience.mask
        logits = self._window_logits(model, experience, experience.inputs["window_tokens"])
        # Sums over this process, one divisor for all: two processes take the step one would take with both batches.
        counts = torch.stack([mask.sum(), (experience.reach * mask).sum(), mask.any(-1).sum()]).float()
        counts = self.accelerator.reduce(counts, reduction="sum") / self.accelerator.num_processes
        fresh = self.state.global_step % args.num_iterations == 0
        window_loss = WindowLoss(args, experience, fresh, *counts)
        loss, sums = blockwise_loss(logits, window_loss)
        metrics = window_loss.metrics(sums)
        if args.anchor_weight:
            anchor = self._anchor(model, experience)
            loss = loss + args.anchor_weight * anchor
            metrics["anchor"] = (float(anchor.detach()), 1.0)
        return loss, metrics

    def _window_logits(
        self, model: nn.Module, experience: Experience, window_tokens: torch.LongTensor
    ) -> torch.Tensor:
        """Draft logits along windows, `(N, K, draft_vocab_size)`, in the dtype of the pass."""
        output = model(**{**experience.inputs, "window_tokens": window_tokens})
        return torch.stack([step[experience.chosen].flatten(0, 1) for step in output.logits], dim=1)

    def _anchor(self, model: nn.Module, experience: Experience) -> torch.Tensor:
        logits = self._window_logits(model, experience, experience.text_tokens)
        positions = torch.tensor(float(logits.shape[:2].numel()), device=logits.device)
        positions = self.accelerator.reduce(positions, reduction="sum") / self.accelerator.num_processes
        probs = experience.text_probs
        probs = logits.new_zeros(logits.shape, dtype=torch.float32) if probs is None else probs

        def divergence(part: torch.Tensor, block: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return target_kl(part, probs[block], "forward", denominator=positions), {}

        return blockwise_loss(logits, divergence)[0]

    # ---- metrics ---------------------------------------------------------------------------------------------------

    def _collect(self, metrics: dict[str, tuple[float, float]]) -> None:
        """Keeps sums and counts over all processes for [`~DrafterTrainer.log`]."""
        names = sorted(self._all_names(metrics))
        values = [metrics.get(name, (0.0, 0.0)) for name in names]
        table = torch.tensor(values, dtype=torch.float32, device=self.accelerator.device)
        table = self.accelerator.reduce(table, reduction="sum").tolist()
        self._metrics["train"].add(dict(zip(names, table, strict=True)))

    def _all_names(self, metrics: dict[str, tuple[float, float]]) -> set[str]:
        if self.accelerator.num_processes == 1:
            return set(metrics)
        gathered = [None] * self.accelerator.num_processes
        torch.distributed.all_gather_object(gathered, sorted(metrics))
        return set().union(*gathered)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        seconds = self.experience_maker.seconds
        if seconds and not any(name.startswith("eval_") for name in logs) and "loss" in logs:
            steps = max(self._metrics["train"].times_added("kl"), 1)
            rolled = self._metrics["train"].times_added("reward")
            total = sum(seconds.values())
            logs = {**logs, **{f"seconds/{phase}": seconds.get(phase, 0.0) / steps for phase in _PHASES}}
            windows = rolled * self.args.train_batch_size * self.args.num_windows * self.args.num_generations
            logs["windows_per_second"] = windows * self.accelerator.num_processes / max(total, 1e-9)
            seconds.clear()
        super().log(logs, start_time)

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def _held_out_loss(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs) -> EvalLoopOutput:
        # Held-out rows are decoded, not scored: a window loss on them would depend on what was rolled out.
        return EvalLoopOutput(predictions=None, label_ids=None, metrics={}, num_samples=len(dataloader.dataset))

    def _evaluation_costs(self) -> CostModel | None:
        if self.cost_model is not None:
            return self.cost_model
        return CostModel(gamma=self.args.cost_ratio)


def _check_some_eligible(dataset: Dataset, args: PPOWConfig) -> None:
    """Refuses a dataset in which no row has room for a window."""
    for row in dataset.select_columns("loss_mask"):
        mask = torch.tensor(row["loss_mask"][: args.max_length], dtype=torch.bool)[None]
        if mask.shape[1] and eligible_starts(window_mask_of(mask), args.window_size).any():
            return
    raise ValueError(
        f"No row of `train_dataset` has room for a window of `window_size`={args.window_size} tokens behind a token "
        "of the target's own. Use a shorter window, a larger `max_length`, or longer responses."
    )
