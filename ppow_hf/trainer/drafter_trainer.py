# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the trainers of all stages share: the frozen target, metrics, evaluation by decoding, and the initial drafter.

The initial drafter is kept beside the checkpoints: training can make a drafter worse, and then the best one is the one
that training began with.
"""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ..attention_kernels import attention_of_any_shape
from ..data import DrafterDataCollator
from ..drafters import DrafterModel
from ..generation import CostModel
from .decoding_evaluation import check_prompts, decode_held_out
from .drafter_training_config import DrafterTrainingConfig
from .early_stopping import EarlyStopping
from .initial_drafter import InitialDrafter
from .keeping_collator import KeepingCollator
from .sharding import WholeDrafter, check_sharding
from .start_checks import (
    check_columns,
    check_models,
    check_streams,
    columns_of,
    on_one_device,
    train_in_float32,
    warn_of_what_goes_unnoticed,
)
from .time_budget import TimeBudget, schedule_over_budget
from .tokenizer_check import check_tokenizer
from .training_cost import TrainingCost
from .training_record import TrainingRecord, recorded_weights, remove_record
from .weighted_means import WeightedMeans

logger = logging.get_logger(__name__)

TAU = "acceptance_length"
_INITIAL = "initial"
# Where a drafter remembers, as long as it is in memory, what the training it came out of recorded.
_RECORD = "training_record"


class DrafterTrainer(Trainer):
    """
    Base of the trainers: a [`~transformers.Trainer`] of a drafter beside a frozen target.

    Args:
        model ([`DrafterModel`]): The drafter to train.
        target_model ([`~transformers.PreTrainedModel`]): The frozen target.
        args ([`DrafterTrainingConfig`]): Configuration. One process trains on one device: several GPUs take
            `accelerate launch`.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*): Rows with `input_ids` and
            `loss_mask`, of the same length in every row.
        eval_dataset ([`~datasets.Dataset`], *optional*): The same of held-out rows; not streamed, unless
            `eval_decode_prompts` is 0.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): The target's tokenizer.
        callbacks (`list[TrainerCallback]`, *optional*): Further callbacks.
        optimizers (`tuple`, *optional*): Optimizer and scheduler, as for [`~transformers.Trainer`].
        kept_columns (`tuple[str, ...]`, *optional*): Further columns to pass through to the batches as lists; `None`
            for all.

    Attributes:
        stage (`str`): What records and cards call this stage.
        provenance (`dict`): Facts that no trainer can know, to be recorded with those of the training: `arguments`,
            `responses` (provenance of the data), `started_from` (the record of the drafter it began with).
    """

    stage: str
    _tag_names = ["ppow-hf", "speculative-decoding", "drafter"]
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: DrafterModel,
        target_model: PreTrainedModel,
        args: DrafterTrainingConfig,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        kept_columns: tuple[str, ...] | None = (),
    ):
        check_models(model, target_model)
        train_in_float32(model)
        check_tokenizer(processing_class, target_model)
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if dataset is not None:
                check_columns(dataset, name)
        if eval_dataset is not None and args.eval_decode_prompts:
            check_prompts(eval_dataset, args.eval_decode_prompts, target_model, model)
        args = on_one_device(args)
        callbacks = [*(callbacks or []), TrainingCost()]
        if args.early_stopping_patience:
            callbacks.append(EarlyStopping(args.early_stopping_patience))
        if args.max_seconds:
            callbacks.append(TimeBudget(args.max_seconds))
        pad_token_id = next(
            (t for t in (getattr(processing_class, "pad_token_id", None), model.config.pad_token_id) if t is not None),
            0,
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=KeepingCollator(DrafterDataCollator(pad_token_id, args.max_length), kept_columns),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        check_streams(train_dataset, self.accelerator.num_processes)
        self.model_accepts_loss_kwargs = False
        # A plain attribute of the trainer: the target is never saved, wrapped or stepped with the drafter.
        self.target_model = target_model.to(self.accelerator.device).eval().requires_grad_(False)
        model.bind_target(self.target_model)
        check_sharding(self.accelerator)
        self._whole = WholeDrafter(model, self.target_model)
        model.add_model_tags(self._tag_names)
        self._metrics = {"train": WeightedMeans(), "eval": WeightedMeans()}
        self.provenance: dict[str, Any] = {}
        self._record: TrainingRecord | None = None
        self._started_from: dict[str, Any] | None = getattr(model, _RECORD, None)
        self._initial_stands_in = False
        if eval_dataset is not None and self.is_world_process_zero():
            warn_of_what_goes_unnoticed(args)

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = columns_of(self.train_dataset) if self.train_dataset is not None else []

    @property
    def time_budget(self) -> TimeBudget | None:
        """The budget of `max_seconds`. Looked up, since resuming puts a new one in its place."""
        return next((c for c in self.callback_handler.callbacks if isinstance(c, TimeBudget)), None)

    @property
    def training_cost(self) -> TrainingCost:
        """What training has taken so far. Looked up for the same reason."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, TrainingCost))

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        # What was spent counts on. How much there is to spend is this run's to say.
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TimeBudget) and self.args.max_seconds:
                callback.seconds = self.args.max_seconds
            elif isinstance(callback, EarlyStopping) and self.args.early_stopping_patience:
                callback.early_stopping_patience = self.args.early_stopping_patience
            if isinstance(callback, ExportableState):
                # `Trainer` looks up all of them when it saves: a checkpoint from before this one was there has none.
                self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None and self.time_budget is not None:
            optimizer = optimizer if optimizer is not None else self.optimizer
            self.lr_scheduler = schedule_over_budget(
                lambda: self.time_budget.fraction, optimizer, self.args, num_training_steps
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- metrics ---------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # The figures of an evaluation come with it, see `evaluation_loop`.
        if not any(name.startswith("eval_") for name in logs):
            logs = {**logs, **self._metrics["train"].take()}
            if self.is_in_train and self.training_cost.target_tokens is not None:
                logs["target_tokens"] = self.training_cost.target_tokens
        super().log(logs, start_time)

    def _check_finite(self, metrics: dict[str, tuple[float, float]]) -> None:
        """
        Raises before a loss that is not finite reaches the weights: `Trainer` would go on, and log 0. All parts of the
        loss are among the metrics, which are summed over all processes: these stop together, and no device is waited
        for that is not anyway.
        """
        broken = {name: total for name, (total, _) in metrics.items() if not math.isfinite(total)}
        if broken:
            raise RuntimeError(
                f"Training diverged at step {self.state.global_step}, at a learning rate of "
                f"{self._get_learning_rate():.3g}: {', '.join(f'{n} is {v}' for n, v in broken.items())}. Lower "
                "`learning_rate`, warm it up (`warmup_steps`), or clip gradients (`max_grad_norm`); resume from the "
                "last checkpoint."
            )

    # ---- evaluation by decoding ------------------------------------------------------------------------------------

    @attention_of_any_shape()
    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs) -> EvalLoopOutput:
        self._metrics["eval"].take()
        output = self._held_out_loss(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self._metrics["eval"].take()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        if self.args.eval_decode_prompts:
            drafter = self._whole_drafter()
            figures = decode_held_out(
                self.accelerator,
                drafter,
                self.target_model,
                dataloader.dataset,
                num_prompts=self.args.eval_decode_prompts,
                max_new_tokens=self.args.eval_decode_new_tokens,
                window=self.args.eval_window,
            )
            costs = self._evaluation_costs()
            if costs is not None:
                figures["speedup_predicted"] = costs.speedup(figures[TAU], figures["mean_window"])
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
            if self.is_in_train and metric_key_prefix == "eval":
                self._compare_with_initial(figures, output.metrics)
        return output

    def _whole_drafter(self) -> DrafterModel:
        """The drafter as it is now, with whole weights on every process."""
        drafter = self.accelerator.unwrap_model(self.model)
        return self._whole.refresh(drafter) if self.is_fsdp_enabled else drafter

    def _held_out_loss(self, *args, **kwargs) -> EvalLoopOutput:
        """The loss on held-out rows; stages whose loss says little about held-out rows leave it out."""
        return super().evaluation_loop(*args, **kwargs)

    def _evaluation_costs(self) -> CostModel | None:
        """Costs for the predicted speedup."""
        return None

    # ---- the initial drafter ---------------------------------------------------------------------------------------

    @property
    def initial_folder(self) -> Path:
        """Where the drafter that training began with is kept."""
        return Path(self.args.output_dir) / _INITIAL

    @property
    def _initial(self) -> InitialDrafter:
        return InitialDrafter(self.initial_folder)

    @property
    def _metric_for_best(self) -> str:
        """What the best drafter is chosen by, without the `eval_` that `Trainer` takes it with or without."""
        return (self.args.metric_for_best_model or "").removeprefix("eval_")

    def initial_figures(self) -> dict[str, float] | None:
        """The held-out figures of the drafter that training began with, if they were measured (`eval_on_start`)."""
        return self._initial.figures()

    def _compare_with_initial(self, figures: dict[str, float], metrics: dict[str, float]) -> None:
        if self.state.global_step == 0:
            self._keep_initial(figures, metrics)
            return
        initial = self.initial_figures()
        if initial is not None and figures[TAU] < initial[TAU]:
            logger.warning(
                f"Held-out acceptance length is {figures[TAU]:.3f} at step {self.state.global_step}, below the "
                f"{initial[TAU]:.3f} of the drafter this training began with. A lower learning rate, a stronger "
                "anchor to the target, or stopping (`early_stopping_patience`) may be what it needs. "
                + (
                    "The best drafter is kept."
                    if self.args.load_best_model_at_end
                    else f"The last weights will be saved all the same, and the first are in `{self.initial_folder}`: "
                    "`load_best_model_at_end=True` keeps the best."
                )
            )

    def _keep_initial(self, figures: dict[str, float], metrics: dict[str, float]) -> None:
        self.save_model(str(self.initial_folder), _internal_call=True)
        if self.args.should_save:
            self._initial.write_figures(figures)
        self.accelerator.wait_for_everyone()
        name = self._metric_for_best
        if f"eval_{name}" in metrics:
            self.state.best_metric, self.state.best_global_step = metrics[f"eval_{name}"], 0

    def train(self, *args, **kwargs):
        drafter = self.accelerator.unwrap_model(self.model)
        if not kwargs.get("resume_from_checkpoint") and not (args and args[0]):
            self._initial.forget_figures()
            self._started_from = getattr(drafter, _RECORD, None)
        elif self.args.eval_strategy != "no" and self.args.eval_decode_prompts and self.initial_figures() is None:
            logger.warning(
                f"`{self.initial_folder}` holds no held-out figures of the drafter this training began with: nothing "
                "will tell when its acceptance length falls below that. Resume in the `output_dir` of the run that "
                "the checkpoint is from, or copy that folder from there."
            )
        self._initial_stands_in, self._record = False, None
        with attention_of_any_shape():
            output = super().train(*args, **kwargs)
        if self.args.load_best_model_at_end and self.state.best_global_step == 0:
            self._return_to_initial()
        if self.args.should_save:
            self._record = TrainingRecord(self, output.metrics, self._started_from)
            # A later stage in this process goes on from here.
            setattr(drafter, _RECORD, self._record.facts)
        return output

    def _return_to_initial(self) -> None:
        """Makes the drafter that training began with its result, too."""
        found = (
            "No checkpoint was better on held-out prompts than the drafter this training began with "
            f"({self._metric_for_best.replace('_', ' ')} {self.state.best_metric:.3f})"
        )
        is_kept = torch.tensor(float(self._initial.is_kept), device=self.accelerator.device)
        if not self.accelerator.reduce(is_kept, reduction="sum"):
            logger.warning(
                f"{found}, but that one is not in `{self.initial_folder}`: the last weights stay. Resume in the "
                "`output_dir` that training began in, or copy the folder from there."
            )
            return
        logger.warning(f"{found}: it is kept.")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self._initial_stands_in = True
            logger.warning(
                "The drafter in memory is sharded over processes and has the last weights all the same. `save_model` "
                f"and `push_to_hub` take the initial ones, from `{self.initial_folder}`."
            )
        elif self._initial.is_kept:
            self._initial.restore(self.accelerator.unwrap_model(self.model))

    # ---- saving ----------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Saves the drafter in memory, or the initial one where that is the best and what is in memory is sharded. Once
        training is done, what it records of itself goes beside it; before, no record of other weights stays there.

        Args:
            output_dir (`str`, *optional*): Folder; the configuration's by default.
        """
        folder = self.args.output_dir if output_dir is None else output_dir
        recorded = recorded_weights(folder) if self.args.should_save and self._record is None else None
        if self._initial_stands_in:
            if self.args.should_save:
                self._initial.copy_to(folder)
            self.accelerator.wait_for_everyone()
        else:
            super().save_model(folder, _internal_call=True)
        if self._record is not None:
            self._record.write(folder)
        elif recorded is not None and recorded != recorded_weights(folder):
            remove_record(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(self, *args, **kwargs) -> None:
        """
        Saves the drafter and writes its card beside it, with the training's figures and the papers to cite. Arguments
        of [`~transformers.Trainer`]'s own card are not used: what they would say is read from the training.
        """
        from ..hub.card import write_card

        self.save_model(_internal_call=True)
        if self.is_world_process_zero():
            write_card(self.args.output_dir, repo_id=self.args.hub_model_id)

    # ---- the Hub ---------------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Leaves making the repository to the first push, which retries; training can begin without it. Not without a
        name that the Hub takes: no later push could succeed.
        """
        from ..hub.push_drafter import hub_repo_id

        self.hub_model_id, self.push_in_progress = hub_repo_id(self.args), None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """
        Pushes the drafter with the card of its training, all in one commit.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`): Kept for [`~transformers.Trainer`]; pushes always wait.
            token (`str`, *optional*): Token of the Hub; the stored one by default.
            revision (`str`, *optional*): Branch.
            private (`bool`, *optional*): Whether a new repository is private.
            kwargs: `create_pr`.

        Returns:
            [`~ppow_hf.hub.push.PushResult`].
        """
        from ..hub.push_drafter import push_trainer

        return push_trainer(
            self,
            commit_message=commit_message,
            token=token,
            revision=revision,
            private=private,
            create_pr=kwargs.get("create_pr", False),
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        from ..hub.push_drafter import push_checkpoint

        push_checkpoint(self, checkpoint_folder)
