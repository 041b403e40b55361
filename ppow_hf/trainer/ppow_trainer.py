# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The reinforcement-learning stage: a drafter is trained on the speculative window (PPOW, arXiv 2605.14978)."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    IntervalStrategy,
    get_last_checkpoint,
    has_length,
)
from transformers.utils import logging

from ..drafters import DrafterModel
from ..end_tokens import eos_token_ids_of
from ..generation import CostModel
from ..generation.tree_attention import evaluating
from ..rl import WindowSchedule, target_kl
from .decoding_costs import costs_of_run, decoding_costs, save_costs_of_run
from .drafter_trainer import DrafterTrainer
from .ppow_config import PPOWConfig
from .ppow_sampler import IterationSampler
from .precision_check import warn_of_emulated_bfloat16
from .reward_checks import (
    is_ours,
    needs_cost_model,
    rewards_of_run,
    warn_of_missing_texts,
    warn_of_rewarded_refusals,
    warn_of_unread_settings,
)
from .reward_inputs import RewardLog
from .skipped_rows import SkippedRows
from .start_checks import check_configuration, check_rows_repeat
from .step_clock import StepClock
from .weighted_means import summed_over_processes
from .window_checks import check_windows
from .window_experience import Experience, ExperienceMaker
from .window_loss import WindowLoss, blockwise_loss
from .window_metrics import Metrics

logger = logging.get_logger(__name__)

RewardFunc = Callable[..., list]

_BY_SPEEDUP = ("eval_speedup_predicted", "speedup_predicted")
_PHASES = ("target", "selection", "rollout", "verification", "scoring", "update")


class PPOWTrainer(DrafterTrainer):
    """
    Trainer of a drafter on groups of speculative windows (PPOW, arXiv 2605.14978).

    For every batch of texts one target pass gives the target's distributions and features; window starts are chosen
    by criticality (ADAW); the drafter rolls out `num_generations` windows from each start in one batch; one packed
    target pass verifies them all; rewards become group-relative advantages, and the drafter takes PPO steps on its
    draft tokens with a KL divergence to the target as the anchor.

    Batches that are accumulated make one step as one large batch would: their windows are all rolled out before the
    first of them is learned from, and kept until the last one is, and sums are divided by what the whole step counts.
    Two things are of a micro-batch on its process all the same: the draws (another split draws other windows, by the
    same law), and what reward functions see. Those of the library judge every window by itself, except the proximity
    reward, whose threshold `proximity_epsilon="median"`, the default, takes from one micro-batch.

    Dropout is off, in the loss as in the rollouts: the policy whose log-probabilities are raised is the one that
    drafted the windows, and decodes.

    Example:

    ```python
    >>> import torch
    >>> from ppow_hf import AutoDrafter, PPOWConfig, PPOWTrainer

    >>> trainer = PPOWTrainer(
    ...     model=AutoDrafter.from_pretrained("my-supervised-drafter", dtype=torch.float32),
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
            One that is streamed takes `num_iterations=1`.
        eval_dataset ([`~datasets.Dataset`], *optional*): Held-out rows. Their prompts are decoded for real, which
            gives `eval_acceptance_length` (tau, bonus token included) and, where costs on this machine are known
            (given, measured or stored), `eval_speedup_predicted`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): The target's tokenizer.
        reward_funcs (`Callable` or `list[Callable]`, *optional*): Reward functions in `GRPOTrainer`'s calling
            convention, see [`~ppow_hf.rl.rewards`]. By default the paper's speedup and proximity rewards; with
            `cost_ratio="measured"` gamma comes from the cost model. What they log with `log_metric` comes with the
            trainer's own metrics.
        cost_model ([`CostModel`], *optional*): Measured costs. By default found beside the drafter or in the user's
            cache, or measured, with the drafter in the target's dtype, if `cost_ratio`, a reward function or
            `metric_for_best_model="eval_speedup_predicted"` needs it. The main process's count for all.
        callbacks (`list[TrainerCallback]`, *optional*): Further callbacks.
        optimizers (`tuple`, *optional*): Optimizer and scheduler, as for [`~transformers.Trainer`].
    """

    stage = "ppow"
    _tag_names = ["ppow-hf", "ppow", "speculative-decoding", "drafter"]
    # By the tokens and windows of the whole optimiser step.
    loss_is_scaled_for_ga = True

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
        check_configuration(args, PPOWConfig, type(self).__name__)
        kept_columns = None if reward_funcs is not None else ()
        self.reward_funcs = rewards_of_run(reward_funcs, args)
        check_rows_repeat(train_dataset, args.num_iterations)
        if args.eval_on_start and eval_dataset is None:
            # A copy: the caller's configuration stays as it was given.
            args = copy.copy(args)
            args.eval_on_start = False
        self._clock = StepClock()
        super().__init__(
            model,
            target_model,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            [*(callbacks or []), self._clock, SkippedRows()],
            optimizers,
            kept_columns=kept_columns,
        )
        warn_of_emulated_bfloat16(self.accelerator)
        check_windows(self, self.target_model, model)
        warn_of_unread_settings(self.reward_funcs, args)
        warn_of_missing_texts(self.reward_funcs, processing_class)
        self._find_costs(model, cost_model)
        warn_of_rewarded_refusals(
            self.reward_funcs,
            args.reward_weights,
            args.window_size,
            self.cost_model.gamma if args.cost_ratio == "measured" else args.cost_ratio,
            self.cost_model,
        )
        self.reward_log = RewardLog()
        self._logs_of_rewards = not all(map(is_ours, self.reward_funcs))
        self.experience_maker = ExperienceMaker(
            self.target_model,
            args,
            self.reward_funcs,
            self.cost_model,
            processing_class,
            eos_token_ids_of(self.target_model.generation_config),
            self._reward_kwargs,
        )
        self._forget_rollouts()

    def _find_costs(self, model: DrafterModel, given: CostModel | None) -> None:
        args = self.args
        asked = args.cost_ratio == "measured" or needs_cost_model(self.reward_funcs)
        asked = asked or args.metric_for_best_model in _BY_SPEEDUP
        costs = given
        if given is not None or asked or args.eval_decode_prompts:
            costs = decoding_costs(self.accelerator, self.target_model, model, given, measure=asked)
        # A reward must not depend on what happens to be stored on a machine: reward functions get what was asked for.
        self.cost_model = costs if given is not None or asked else None
        self._decoding_costs = costs
        self._costs_are_given = given is not None

    def _forget_rollouts(self) -> None:
        self._schedule: WindowSchedule | None = None
        # The batches of the optimiser step at hand, which of them is next, and what was made of them.
        self._batches: list[dict[str, Any]] = []
        self._micro_step = 0
        self._buffer: list[Experience] = []
        self._counts: torch.Tensor | None = None
        # Time that was not logged when a run ended is none of the next one's.
        self._clock.take()
        self.experience_maker.seconds.clear()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        self._forget_rollouts()
        self.skipped_rows.total = 0
        if resume_from_checkpoint:
            self._return_to_costs(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._forget_rollouts()

    def _return_to_costs(self, checkpoint: str | bool) -> None:
        """The costs a run began with, which another machine, or this one another time, would measure differently."""
        if self.cost_model is None or self._costs_are_given:
            return
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)
        costs = None if checkpoint is None else costs_of_run(checkpoint)
        if costs is not None:
            self.cost_model = self._decoding_costs = self.experience_maker.cost_model = costs

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

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> None:
        """Takes the batches of an optimiser step. What their sums are divided by is known when their windows are."""
        self._batches, self._micro_step = batch_samples, 0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._micro_step += 1
        return loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> Any:
        if not self.model.training:
            return super()._prepare_inputs(inputs)
        fresh = self.state.global_step % self.args.num_iterations == 0
        if self._micro_step == 0 and (fresh or not self._buffer):
            batches, self._batches = self._batches or [inputs], []
            self._buffer = []
            self.reward_log.extra = {}
            for index, batch in enumerate(batches):
                batch = super()._prepare_inputs(batch)
                self._buffer.append(self._generate_and_score_completions(batch, index))
            self._counts = self._count(self._buffer)
        return self._buffer[self._micro_step]

    def _generate_and_score_completions(self, inputs: dict[str, Any], micro_step: int = 0) -> Experience:
        """One target pass, windows chosen, rolled out, verified and rewarded."""
        # Of the step whose drafter rolls out, also where a resumed run begins between two of them.
        step = self.state.global_step - self.state.global_step % self.args.num_iterations
        law = self._law(step)
        # Drawn from the step, not from a stream: a resumed run sees the very same windows.
        batch = step * self.args.gradient_accumulation_steps + micro_step
        draw = batch * self.accelerator.num_processes + self.accelerator.process_index
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
                measure_criticality=self._is_logged(step),
            )
            drafter.train(was_training)
        self.training_cost.add(inputs["attention_mask"].sum() + experience.mask.sum())
        experience.metrics["adaw"] = (float(law == "adaw"), 1.0)
        table = self._collect(experience.metrics)
        self.skipped_rows.total += round(table["skipped_rows"][0])
        if self._logs_of_rewards:
            # Apart from what is checked to be finite: what a reward function logs is no sign of a divergence.
            self.reward_log.add(summed_over_processes(self.accelerator, self.reward_log.take_metrics()))
        return experience

    def _is_logged(self, step: int) -> bool:
        """Whether a step on the rollouts made before `step` is one that is logged."""
        args = self.args
        if step == 0 and args.logging_first_step:
            return True
        if args.logging_strategy != IntervalStrategy.STEPS:
            return False
        return any((step + ahead) % self.state.logging_steps == 0 for ahead in range(1, args.num_iterations + 1))

    def _reward_kwargs(self) -> dict[str, Any]:
        """What `GRPOTrainer` gives reward functions beside texts and columns of the dataset."""
        log = self.reward_log
        return {"trainer_state": self.state, "log_metric": log.log_metric, "log_extra": log.log_extra}

    def _law(self, step: int) -> str:
        if self._schedule is None:
            args = self.args
            self._schedule = WindowSchedule(args.window_selection, args.adaw_warmup, total_steps=self.state.max_steps)
        budget = self.time_budget
        return self._schedule.law(step, None if budget is None else budget.fraction)

    def _count(self, experiences: list[Experience]) -> torch.Tensor:
        """
        What an optimiser step's sums are divided by, `(4,)`: drafted tokens, their weights by reach, windows, and
        tokens of the text's own windows. Gradients are averaged over processes, so the counts are as well: two
        processes with half a batch each take the very step one process takes with the whole.
        """
        size = self.args.window_size
        parts = [
            (e.mask.sum(), (e.reach * e.mask).sum(), e.mask.any(-1).sum(), e.chosen.sum() * size) for e in experiences
        ]
        counts = torch.stack([torch.stack(part).float() for part in parts]).sum(0)
        return self.accelerator.reduce(counts, reduction="sum") / self.accelerator.num_processes

    def _unwrapped(self) -> AbstractContextManager[DrafterModel]:
        """The drafter with whole weights, also where they are sharded over processes."""
        if not self.is_deepspeed_enabled:
            return nullcontext(self._whole_drafter())
        from trl.models import unwrap_model_for_generation

        return unwrap_model_for_generation(self.model_wrapped, self.accelerator)

    def _save_checkpoint(self, model, trial):
        if self.state.global_step % self.args.num_iterations:
            logger.warning(
                f"The checkpoint at step {self.state.global_step} lies between two rollouts, which begin every "
                f"{self.args.num_iterations} steps (`num_iterations`): a run resumed from it makes new ones, and "
                "will differ from an uninterrupted one."
            )
        if self.cost_model is not None and not self._costs_are_given and self.args.should_save:
            # Before the rest: a checkpoint is whole when its last file, the trainer's state, is there.
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            save_costs_of_run(Path(self._get_output_dir(trial=trial)) / name, self.cost_model)
        return super()._save_checkpoint(model, trial)

    # ---- loss ------------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not isinstance(inputs, Experience):
            raise ValueError("PPOWTrainer has no loss on held-out rows: it evaluates by decoding their prompts.")
        loss, metrics = self._compute_loss(model, inputs)
        self._collect(metrics)
        return (loss, {}) if return_outputs else loss

    def _compute_loss(self, model: nn.Module, experience: Experience) -> tuple[torch.Tensor, Metrics]:
        args = self.args
        logits = self._window_logits(model, experience, experience.inputs["window_tokens"])
        fresh = self.state.global_step % args.num_iterations == 0
        window_loss = WindowLoss(args, experience, fresh, *self._counts[:3])
        loss, sums = blockwise_loss(logits, window_loss)
        metrics = window_loss.metrics(sums)
        if args.anchor_weight:
            anchor, metrics["anchor"] = self._anchor(model, experience)
            loss = loss + args.anchor_weight * anchor
        return loss, metrics

    def _window_logits(
        self, model: nn.Module, experience: Experience, window_tokens: torch.LongTensor
    ) -> torch.Tensor:
        """Draft logits along windows, `(N, K, draft_vocab_size)`, in the dtype of the pass."""
        # In the mode of the rollouts: with dropout it would be another policy, whose ratios do not begin at 1.
        with evaluating(self.accelerator.unwrap_model(self.model)):
            output = model(**{**experience.inputs, "window_tokens": window_tokens})
        return torch.stack([step[experience.chosen].flatten(0, 1) for step in output.logits], dim=1)

    def _anchor(self, model: nn.Module, experience: Experience) -> tuple[torch.Tensor, tuple[float, float]]:
        """The supervised anchor, and its sum and count."""
        logits = self._window_logits(model, experience, experience.text_tokens)
        positions = self._counts[3]
        probs = experience.text_probs
        probs = logits.new_zeros(logits.shape, dtype=torch.float32) if probs is None else probs

        def divergence(part: torch.Tensor, block: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return target_kl(part, probs[block], "forward", denominator=positions), {}

        anchor = blockwise_loss(logits, divergence)[0]
        return anchor, (float(anchor.detach()) * float(positions), float(logits.shape[:2].numel()))

    # ---- metrics ---------------------------------------------------------------------------------------------------

    @property
    def skipped_rows(self) -> SkippedRows:
        """The count of rows without room for a window. Looked up, since resuming puts a new one in its place."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, SkippedRows))

    def _collect(self, metrics: Metrics) -> Metrics:
        """Keeps sums and counts over all processes for [`~DrafterTrainer.log`], and returns them."""
        table = summed_over_processes(self.accelerator, metrics)
        self._check_finite(table)
        self._metrics["train"].add(table)
        return table

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._clock.steps:
            made = self.experience_maker.seconds
            total, steps = self._clock.take()
            # Beside the phases of the rollouts: forward, backward, clipping and the optimizer.
            phases = {**made, "update": max(total - sum(made.values()), 0.0)}
            logs = {**logs, **{f"seconds/{phase}": phases.get(phase, 0.0) / steps for phase in _PHASES}}
            # Counted over all processes. Steps on rollouts made before make none.
            if windows := self._metrics["train"].count("accepted_length"):
                logs["windows_per_second"] = windows / max(total, 1e-9)
            made.clear()
            logs["skipped_rows_total"] = float(self.skipped_rows.total)
            own = self._metrics["train"]
            logs.update(self.reward_log.take_means(lambda name: name in logs or own.count(name) > 0))
        super().log(logs, start_time)

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def _held_out_loss(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs) -> EvalLoopOutput:
        # Held-out rows are decoded, not scored: a window loss on them would depend on what was rolled out.
        rows = len(dataloader.dataset) if has_length(dataloader) else 0
        return EvalLoopOutput(predictions=None, label_ids=None, metrics={}, num_samples=rows)

    def _evaluation_costs(self) -> CostModel | None:
        # Without measured costs there is no prediction: `cost_ratio` alone would let verification be free.
        return self._decoding_costs
