# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Configurations and trainers for the tests of the reinforcement-learning stage."""

import torch
from datasets import Dataset

from ppow_hf.trainer import PPOWConfig, PPOWTrainer
from ppow_hf.trainer.window_experience import Experience, ExperienceMaker
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import token_rows

# No held-out prompts are decoded.
QUIET = {"eval_on_start": False, "eval_decode_prompts": 0}


def ppow_args(output_dir, **overrides) -> PPOWConfig:
    """A configuration for tests: CPU, float32, few short windows, nothing reported."""
    values = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "logging_steps": 1,
        "window_size": 3,
        "num_generations": 4,
        "num_windows": 2,
        "adaw_warmup": 1,
        "eval_decode_prompts": 2,
        "eval_decode_new_tokens": 8,
        "eval_window": "fixed:3",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return PPOWConfig(**{**values, **overrides})


def ppow_trainer(
    folder,
    drafter=None,
    target=None,
    dataset=None,
    eval_dataset=None,
    reward_funcs=None,
    tokenizer=None,
    cost_model=None,
    **overrides,
) -> PPOWTrainer:
    """A trainer of a tiny drafter."""
    target = target if target is not None else tiny_target()
    return PPOWTrainer(
        model=drafter if drafter is not None else tiny_eagle3(target, draft_vocab_size=48),
        target_model=target,
        args=ppow_args(folder, **overrides),
        train_dataset=dataset if dataset is not None else token_rows(),
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        reward_funcs=reward_funcs,
        cost_model=cost_model,
    )


def make_experience(trainer: PPOWTrainer, rows) -> Experience:
    """What the first training step would learn from, given these rows as its batch."""
    trainer.state.max_steps = trainer.args.max_steps
    trainer.model.train()
    return trainer._prepare_inputs(trainer.data_collator(list(rows)))


class RowByRow:
    """
    Makes experience for one row of a batch after another, with a seed of the row's own, and puts the parts together.

    Windows are then the same however rows are spread over processes, which the seed of a process would prevent.
    """

    def __init__(self, maker: ExperienceMaker):
        self.maker = maker

    def __getattr__(self, name):
        return getattr(self.maker, name)

    def __call__(self, drafter, inputs, *, seed, **kwargs) -> Experience:
        parts = []
        for row in range(len(inputs["input_ids"])):
            one = {name: values[row : row + 1] for name, values in inputs.items()}
            own_seed = int(one["input_ids"].sum())
            parts.append(self.maker(drafter, one, seed=own_seed, **kwargs))
        merged = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in parts[0].__dataclass_fields__
            if isinstance(getattr(parts[0], name), torch.Tensor)
        }
        names = sorted({name for part in parts for name in part.metrics})
        metrics = {
            name: tuple(map(sum, zip(*(part.metrics.get(name, (0.0, 0.0)) for part in parts), strict=True)))
            for name in names
        }
        inputs = {
            name: None if value is None else torch.cat([part.inputs[name] for part in parts])
            for name, value in parts[0].inputs.items()
        }
        return Experience(inputs=inputs, metrics=metrics, **merged)


def equal_length_rows(num_rows: int = 8, length: int = 18) -> Dataset:
    """Rows of one length, in which the target's own part is now long and now short: some offer fewer windows."""
    rows = token_rows(3 * num_rows, length=length).select(range(0, 3 * num_rows, 3))
    masks = [[0] * start + [1] * (length - start) for start in (5, 12, 13, 14, 6, 13, 4, 12)]
    return rows.remove_columns("loss_mask").add_column("loss_mask", masks[:num_rows])


def rows_with(masks) -> Dataset:
    """Rows of random tokens with these loss masks."""
    generator = torch.Generator().manual_seed(0)
    return Dataset.from_list(
        [{"input_ids": torch.randint(2, 96, (len(m),), generator=generator).tolist(), "loss_mask": m} for m in masks]
    )


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal_weights(one: dict, other: dict) -> None:
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def training_logs(trainer, having: str = "reward") -> list[dict]:
    """One entry per step; on rollouts used again there is no reward."""
    return [log for log in trainer.state.log_history if having in log]


def tokenizer_of(vocab_size=96):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", unk_token="t0")
